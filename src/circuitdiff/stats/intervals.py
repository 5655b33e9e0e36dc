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

Scenarios = Int[ndarray, " prompt"]  # of each prompt, the number of its scenario

_RESAMPLES = 2000
_Z = float(stats.norm.ppf(0.975))


class Interval(NamedTuple):
    """An estimate with the bounds of its confidence interval: floats, or arrays [*row] for many rows at once."""

    value: float | ndarray
    low: float | ndarray
    high: float | ndarray

    def __repr__(self) -> str:
        return one_line(self)


def shaped(shape: tuple[int, ...], *bounds: Float[ndarray, " row"]) -> Interval:
    """Value and bounds of many rows, in this shape; floats if it is empty."""
    return Interval(*(bound.reshape(shape) if shape else float(bound[0]) for bound in bounds))


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


def mean_interval(values: Shaped[ndarray, "*row prompt"], scenarios: Scenarios, *, level: float = 0.95) -> Interval:
    """The mean over prompts of each row, with a studentised bootstrap interval over scenarios.

    Resamples of whole scenarios give the distribution of (mean - true mean) / standard error, whose skewness a
    percentile bootstrap leaves uncorrected; the bounds are the mean less its quantiles times the standard error. All
    rows see the same resamples. A row that never varies has its mean as bounds, a row with a nan stays nan, and with
    one scenario the bounds are nan.

    Source: Efron 1981 (doi:10.2307/3314608); Davison & Hinkley 1997, Bootstrap Methods and their Application, sections
    2.4 and 5.2. `_pivot_quantiles` says where we differ.
    """
    rows = rows_of(values)
    totals, sizes = scenario_totals(rows, scenarios)
    mean = rows.mean(1)
    residuals = totals - mean[:, None] * sizes
    lowest, highest = _pivot_quantiles(residuals, sizes, level)
    error = np.sqrt(_squares(residuals)) / len(scenarios)
    return shaped(values.shape[:-1], mean, mean - highest * error, mean - lowest * error)


def ratio_interval(
    numerator: Shaped[ndarray, " prompt"], denominator: Shaped[ndarray, " prompt"], scenarios: Scenarios
) -> RatioInterval:
    """Mean numerator over mean denominator on the same prompts, with `ratio_bounds`; faithfulness is one.

    Booleans and whole numbers are hits and their differences. Undefined unless the denominator lies so far above 0 that
    the bounds are finite: the share of a score that is below 0 means nothing.
    """
    above, below = float(numerator.mean()), float(denominator.mean())
    hits = numerator.dtype.kind in "bi"
    low, high = ratio_bounds(numerator, denominator, scenarios, hits=hits) if below > 0 else (-np.inf, np.inf)
    if np.isinf([low, high]).any():
        reason = f"the denominator is {below:.4g}, which is not surely above 0"
        return RatioInterval(np.nan, np.nan, np.nan, reason)
    least = 0.0 if numerator.dtype == np.bool_ else -np.inf
    return RatioInterval(above / below, max(low, least), high)


def ratio_bounds(
    numerator: Shaped[ndarray, " prompt"], denominator: Shaped[ndarray, " prompt"], scenarios: Scenarios, *, hits: bool
) -> tuple[float, float]:
    """95 % bounds of mean numerator / mean denominator, by Fieller's theorem.

    The ratios r at which the mean of numerator - r * denominator, over its standard error, lies between two quantiles:
    the studentised bootstrap's, as in `mean_interval`. Of hits and their differences (`hits`) they are Student's, and
    the variances begin with z^2 / 2 scenarios of each kind that tells of a ratio: numerator 1 alone, denominator alone,
    and both. So at ratios of 0 and 1, where no prompt of a sample may differ, the bounds are as far as Wilson's and
    Tango's. Infinite where the denominator may be 0; nan with one scenario.

    Source: Fieller 1954 (doi:10.1111/j.2517-6161.1954.tb00159.x); Hwang 1995, Statistica Sinica 5, 161, for its
    bootstrap. The added scenarios are ours.
    """
    sign = np.sign(denominator.sum())
    if sign == 0:
        return -np.inf, np.inf
    rows = sign * np.stack([numerator, denominator]).astype(np.float64)
    totals, sizes = scenario_totals(rows, scenarios)
    above, below = rows.sum(1)
    centred = totals - rows.mean(1, keepdims=True) * sizes
    variance = centred @ centred.T * (1 + 1 / len(sizes))
    if hits:
        one = (sizes**2).sum() / len(scenarios)
        variance += _Z**2 / 2 * one**2 * np.array([[2, 1], [1, 2]])
        highest = np.float64(stats.t.ppf(0.975, len(sizes) - 1))  # nan with one scenario
        lowest = -highest
    else:
        lowest, highest = _pivot_quantiles(centred[:1] - above / below * centred[1:], sizes, 0.95)
    return _ratio_at(highest.item(), above, below, variance), _ratio_at(lowest.item(), above, below, variance)


def _ratio_at(quantile: float, above: float, below: float, variance: ndarray) -> float:
    """The ratio r at which (above - r * below) / its standard error is the quantile; infinite where none is."""
    square = quantile**2
    q, p = below**2 - square * variance[1, 1], above * below - square * variance[0, 1]
    r = above**2 - square * variance[0, 0]
    if q <= 0:
        return -np.inf if quantile > 0 else np.inf
    return float((p - np.sign(quantile) * np.sqrt(max(p**2 - q * r, 0))) / q)


def normalised_ratio_interval(
    circuit: Shaped[ndarray, " prompt"],
    ablated: Shaped[ndarray, " prompt"],
    model: Shaped[ndarray, " prompt"],
    scenarios: Scenarios,
) -> RatioInterval:
    """(circuit - ablated) / (model - ablated) on the same prompts: 0 = no better than ablating all, 1 = the model."""
    base = ablated.astype(np.int64) if ablated.dtype == np.bool_ else ablated
    return ratio_interval(circuit - base, model - base, scenarios)


def cluster_p_values(
    values: Shaped[ndarray, "*row prompt"], scenarios: Scenarios, *, n_flips: int = 4999
) -> ClusterPValues:
    """Is each row's mean over prompts other than zero, and still so when all rows are tested?

    `p`: t-test on the scenarios' totals, whose sign is the mean's (with equally large scenarios it is the t-test on
    their means). `max_t_p`: signs of whole scenarios flipped, the same flips for every row, against the largest
    statistic of all rows; at best 1 / (n_flips + 1). A row of zeros has p = 1. `p` is what false-discovery control
    needs: its resolution is not bounded by a number of flips.

    Source: Westfall & Young 1993, Resampling-Based Multiple Testing; Winkler et al. 2014
    (doi:10.1016/j.neuroimage.2014.01.060) for flips of whole clusters.
    """
    rows = rows_of(values)
    totals, _ = scenario_totals(rows, scenarios)
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


def rows_of(values: Shaped[ndarray, "*row prompt"]) -> Float[ndarray, "row prompt"]:
    """Raises: InputError if there is no prompt."""
    if values.shape[-1] == 0:
        raise InputError("an interval needs at least one prompt, got none; sample some")
    return values.reshape(-1, values.shape[-1]).astype(np.float64)


def scenario_totals(
    rows: Float[ndarray, "row prompt"], scenarios: Scenarios
) -> tuple[Float[ndarray, "row scenario"], Float[ndarray, " scenario"]]:
    """The sum of each row over each scenario's prompts, and how many they are."""
    names, sizes = np.unique(scenarios, return_counts=True)
    return rows @ (names[None] == scenarios[:, None]), sizes.astype(np.float64)


def cluster_weights(scenarios: Scenarios) -> Float[ndarray, "resample prompt"]:
    """How often each prompt occurs in each of 2,000 bootstrap resamples of the scenarios; always the same ones.

    As many scenarios as there are, drawn with replacement; each brings all of its prompts. So a resampled sum is one
    matrix product.
    """
    names, member = np.unique(scenarios, return_inverse=True)
    return _counts(len(names))[:, member]


@lru_cache(maxsize=8)  # a study asks for thousands of intervals on the same few numbers of scenarios
def _counts(n: int) -> Float[ndarray, "resample scenario"]:
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)
    counts.flags.writeable = False
    return counts


def resampled_means(
    rows: Float[ndarray, "row prompt"], weights: Float[ndarray, "resample prompt"]
) -> Float[ndarray, "resample row"]:
    """The mean over prompts of each row, in each resample."""
    return weights @ rows.T / weights.sum(1, keepdims=True)


def _pivot_quantiles(
    residuals: Float[ndarray, "row scenario"], sizes: Float[ndarray, " scenario"], level: float
) -> tuple[ndarray, ndarray]:
    """Quantiles, over resamples, of the mean residual over its standard error; residuals are scenarios' totals.

    A standard error is the root of the scenarios' squares about the resample's mean, by the number of prompts. We add
    the sample's mean square to the squares, in the sample (`_squares`) as in each resample: where one scenario differs
    from all others, a third of the resamples lacks it, and would have no spread to divide by. Tusher et al. 2001
    (doi:10.1073/pnas.091062498) add a constant to standard errors for the same reason. A row without residuals has 0.
    """
    if len(sizes) < 2:
        undefined = np.full(len(residuals), np.nan)
        return undefined, undefined
    counts = _counts(len(sizes))
    n = counts @ sizes[:, None]
    means, across = counts @ residuals.T / n, counts @ (residuals * sizes).T
    squares = counts @ (residuals**2).T - means * (2 * across - means * (counts @ sizes[:, None] ** 2))
    own = (residuals**2).mean(1)
    errors = np.sqrt(np.maximum(squares, 0) + np.where(own == 0, 1, own)) / n
    lowest, highest = np.quantile(means / errors, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return lowest, highest


def _squares(residuals: Float[ndarray, "row scenario"]) -> Float[ndarray, " row"]:
    """The squares of all residuals and their mean."""
    return (residuals**2).sum(1) * (1 + 1 / residuals.shape[1])


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
