"""Intervals and tests that treat a scenario, not a prompt, as the independent unit."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray
from scipy import stats

from circuitdiff.errors import InputError
from circuitdiff.readable import one_line

_RESAMPLES = 2000


class Interval(NamedTuple):
    """An estimate with the bounds of its confidence interval: floats, or arrays [*row] for many rows at once."""

    value: float | ndarray
    low: float | ndarray
    high: float | ndarray

    def __repr__(self) -> str:
        return one_line(self)


class RatioInterval(NamedTuple):
    """A ratio with its bounds. All three are nan when it has no meaning, and `undefined` says why."""

    value: float
    low: float
    high: float
    undefined: str | None = None


class ClusterPValues(NamedTuple):
    """Two-sided tests of mean = 0, one per row; nan where a row holds a nan or there is one scenario only."""

    t: Float[ndarray, "*row"]  # sign of the mean
    p: Float[ndarray, "*row"]
    max_t_p: Float[ndarray, "*row"]  # adjusted for testing all rows


def cluster_resamples(
    scenarios: Int[ndarray, " prompt"], n_resamples: int, generator: np.random.Generator
) -> Float[ndarray, "resample prompt"]:
    """How often each prompt occurs in each bootstrap resample of the scenarios.

    As many scenarios as there are, drawn with replacement; each brings all of its prompts. So a resampled sum is one
    matrix product.
    """
    distinct, member = np.unique(scenarios, return_inverse=True)
    n = len(distinct)
    return generator.multinomial(n, np.full(n, 1 / n), size=n_resamples)[:, member].astype(np.float64)


def mean_interval(
    values: Shaped[ndarray, "*row prompt"],
    scenarios: Int[ndarray, " prompt"],
    *,
    level: float = 0.95,
) -> Interval:
    """The mean over prompts of each row, with a percentile bootstrap interval over scenarios.

    All rows see the same resamples. A row with a nan stays nan; with one scenario the bounds are nan. With few
    scenarios the interval is too narrow, as every percentile bootstrap is: by a sixth with 10, by a thirtieth with 50.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; clusters: Davison & Hinkley 1997,
    section 3.8.
    """
    weights, values = cluster_weights(scenarios), values.astype(np.float64)
    resampled = resampled_means(values.reshape(-1, len(scenarios)), weights)
    low, high = _bounds(resampled, scenarios, level)
    return Interval(values.mean(-1), low.reshape(values.shape[:-1]), high.reshape(values.shape[:-1]))


def difference_interval(
    first: Shaped[ndarray, " prompt"],
    second: Shaped[ndarray, " prompt"],
    scenarios: Int[ndarray, " prompt"],
) -> Interval:
    """Mean of first - second on the same prompts: paired, so what both share cancels.

    The bootstrap over scenarios, except for hits (booleans) that differ on no prompt, where every resample is alike:
    there Wilson's bound for no success in so many scenarios, either way (wider than the bootstrap's for one success).
    """
    if first.dtype == second.dtype == np.bool_ and (first == second).all():
        most = accuracy_interval(np.zeros_like(first), scenarios).high
        return Interval(0.0, -float(most), float(most))
    return _lone(mean_interval(first.astype(np.float64) - second.astype(np.float64), scenarios))


def accuracy_interval(
    hits: Shaped[ndarray, " prompt"],
    scenarios: Int[ndarray, " prompt"],
    *,
    level: float = 0.95,
) -> Interval:
    """The share of hits (0 or 1 per prompt), with its interval.

    The bootstrap over scenarios, except at exactly 0 and 1, where every resample is alike: there Wilson's interval with
    the number of *scenarios* as the sample size.

    Source: Wilson 1927 (doi:10.1080/01621459.1927.10502953).
    """
    accuracy, n_scenarios = float(hits.mean()) if len(hits) else np.nan, len(np.unique(scenarios))
    if accuracy not in (0, 1):
        return _lone(mean_interval(hits, scenarios, level=level))
    wilson = stats.binomtest(round(accuracy * n_scenarios), n_scenarios).proportion_ci(level, method="wilson")
    return Interval(accuracy, float(wilson.low), float(wilson.high))


def ratio_interval(
    numerator: Shaped[ndarray, " prompt"],
    denominator: Shaped[ndarray, " prompt"],
    scenarios: Int[ndarray, " prompt"],
) -> RatioInterval:
    """Mean numerator over mean denominator, both resampled together; faithfulness is one.

    Undefined unless every resample's denominator is above 0: a ratio by a number that may be zero has no bounded
    interval, and the share of a score that is below 0 means nothing.

    Source: Fieller 1954 (doi:10.1111/j.2517-6161.1954.tb00159.x), for why.
    """
    rows = np.stack([numerator, denominator]).astype(np.float64)
    above, below = rows.mean(-1).tolist()
    resampled = resampled_means(rows, cluster_weights(scenarios))
    if not (resampled[:, 1] > 0).all():
        spread = f"{resampled[:, 1].min():.4g} to {resampled[:, 1].max():.4g}"
        reason = f"the denominator is {below:.4g} and its resamples run from {spread}, so it is not surely above 0"
        return RatioInterval(np.nan, np.nan, np.nan, reason)
    low, high = _bounds(resampled[:, :1] / resampled[:, 1:], scenarios)
    return RatioInterval(above / below, float(low[0]), float(high[0]))


def normalised_ratio_interval(
    circuit: Shaped[ndarray, " prompt"],
    ablated: Shaped[ndarray, " prompt"],
    model: Shaped[ndarray, " prompt"],
    scenarios: Int[ndarray, " prompt"],
) -> RatioInterval:
    """(circuit - ablated) / (model - ablated) on the same prompts: 0 = no better than ablating all, 1 = the model."""
    base = ablated.astype(np.float64)
    return ratio_interval(circuit - base, model - base, scenarios)


def cluster_p_values(
    values: Shaped[ndarray, "*row prompt"],
    scenarios: Int[ndarray, " prompt"],
    *,
    n_flips: int = 4999,
) -> ClusterPValues:
    """Is each row's mean over prompts other than zero, and still so when all rows are tested?

    `p`: t-test on the scenarios' totals, whose sign is the mean's (with equally large scenarios it is the t-test on
    their means). `max_t_p`: signs of whole scenarios flipped, the same flips for every row, against the largest
    statistic of all rows; at best 1 / (n_flips + 1). A row of zeros has p = 1. `p` is what false-discovery control
    needs: its resolution is not bounded by a number of flips.

    Source: Westfall & Young 1993, Resampling-Based Multiple Testing; Winkler et al. 2014
    (doi:10.1016/j.neuroimage.2014.01.060) for flips of whole clusters.
    """
    rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
    totals = rows @ (np.unique(scenarios)[None] == scenarios[:, None])
    t = _t_statistic(totals)
    p = 2 * stats.t.sf(np.abs(t), totals.shape[1] - 1) if totals.shape[1] > 1 else np.full_like(t, np.nan)
    adjusted = np.where(np.isnan(p), np.nan, _max_t(totals, n_flips, np.random.default_rng(0)))
    shape = values.shape[:-1]
    return ClusterPValues(t.reshape(shape), p.reshape(shape), adjusted.reshape(shape))


def one_sided(test: ClusterPValues, negative: Bool[ndarray, "*row"]) -> Float[ndarray, "*row"]:
    """p of each row against "the mean is not on the named side": below zero where `negative`, else above."""
    return np.where((test.t < 0) == negative, test.p / 2, 1 - test.p / 2)


def false_discovery_adjusted(p: Float[ndarray, "*row"]) -> Float[ndarray, "*row"]:
    """Benjamini and Hochberg's adjusted p over all rows that are not nan.

    Source: Benjamini & Hochberg 1995 (doi:10.1111/j.2517-6161.1995.tb02031.x).
    """
    adjusted, tested = p.copy(), ~np.isnan(p)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(p[tested], method="bh")
    return adjusted


def cluster_weights(scenarios: Int[ndarray, " prompt"]) -> Float[ndarray, "resample prompt"]:
    """`cluster_resamples`, 2,000 that are always the same for the same scenarios.

    Raises: InputError if there is no prompt.
    """
    if len(scenarios) == 0:
        raise InputError("an interval needs at least one prompt, got none; sample some")
    return _drawn(tuple(scenarios.tolist()))


@lru_cache(maxsize=8)  # a study asks for thousands of intervals on the same few sets of prompts
def _drawn(scenarios: tuple[int, ...]) -> ndarray:
    weights = cluster_resamples(np.array(scenarios), _RESAMPLES, np.random.default_rng(0))
    weights.flags.writeable = False
    return weights


def resampled_means(
    rows: Float[ndarray, "row prompt"], weights: Float[ndarray, "resample prompt"]
) -> Float[ndarray, "resample row"]:
    """The mean over prompts of each row, in each resample."""
    return weights @ rows.T / weights.sum(1, keepdims=True)


def _bounds(resampled: ndarray, scenarios: ndarray, level: float = 0.95) -> tuple[ndarray, ndarray]:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    nan = np.full_like(low, np.nan)
    return (low, high) if len(np.unique(scenarios)) > 1 else (nan, nan)


def _lone(interval: Interval) -> Interval:
    return Interval(*(float(bound) for bound in interval))


def _t_statistic(totals: ndarray) -> ndarray:
    """Student's t of each row's mean; 0 for a row of zeros, infinite for one of equal totals, nan for one total."""
    n = totals.shape[1]
    if n < 2:
        return np.full(len(totals), np.nan)
    mean, deviation = totals.mean(1), totals.std(1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((totals == 0).all(1), 0.0, mean / (deviation / np.sqrt(n)))


def _max_t(totals: ndarray, n_flips: int, generator: np.random.Generator) -> ndarray:
    """Adjusted p of each row. |sum| / root of the sum of squares orders as |t| does, and flips leave the root alone."""
    usable = np.nan_to_num(totals)
    root = np.sqrt((usable**2).sum(1))
    scaled = usable / np.where(root > 0, root, 1)[:, None]
    observed, reached = np.abs(scaled.sum(1)), np.ones(len(totals))
    for start in range(0, n_flips, 500):  # in parts, so that [flip, row] stays small
        signs = generator.choice([-1.0, 1.0], size=(min(500, n_flips - start), totals.shape[1]))
        largest = np.abs(signs @ scaled.T).max(1)
        reached += (largest[:, None] >= observed - 1e-12).sum(0)  # 1e-12: sums in another order tie
    return reached / (n_flips + 1)
