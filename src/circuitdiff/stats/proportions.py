"""Intervals for shares of hits and for differences of two such shares, by scores; a scenario is the independent unit.

Both use the counts of hits, or of discordant prompts, divided by the design effect: how much larger the variance over
scenarios is than that of as many independent prompts (Rao & Scott 1992, doi:10.2307/2532311). With one prompt per
scenario it is 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray
from scipy import stats

from circuitdiff.stats.intervals import Interval, Scenarios, rows_of, scenario_totals, shaped

_HALVINGS = 60  # of the range -1 to 1: to 2e-18


class _Effective(NamedTuple):
    """What stands for independent prompts: the prompts divided by the design effect."""

    n: Float[ndarray, " row"]
    z: float  # the normal quantile of the level


def accuracy_interval(hits: Shaped[ndarray, "*row prompt"], scenarios: Scenarios) -> Interval:
    """The share of hits (0 or 1 per prompt), with Wilson's 95 % interval for the effective number of prompts.

    Wilson's is the inverted score test. With effective sizes it is among the best for clustered samples, provided that
    these are better than plain estimates (Franco et al. 2019, PMC6690503); see `_effective`. One prompt per scenario
    gives Wilson's interval itself; with one scenario the bounds are nan.

    Source: Wilson 1927 (doi:10.1080/01621459.1927.10502953).

    Raises: InputError if there is no prompt.
    """
    rows = rows_of(hits)
    n, z = _effective(rows, scenarios, 0.95)
    p = rows.mean(1)
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    low, high = ((centre + side * half) / (1 + z**2 / n) for side in (-1, 1))
    return shaped(hits.shape[:-1], p, np.maximum(low, 0), np.minimum(high, 1))


def difference_interval(
    first: Bool[ndarray, " prompt"], second: Bool[ndarray, " prompt"], scenarios: Scenarios
) -> Interval:
    """Accuracy of the first less that of the second on the same prompts, with `paired_interval`."""
    return paired_interval(first.astype(np.float64) - second, scenarios)


def paired_interval(
    differences: Float[ndarray, "*row prompt"], scenarios: Scenarios, *, level: float = 0.95
) -> Interval:
    """Mean differences of hits on the same prompts, with Tango's score interval for the effective number of prompts.

    A prompt's difference is -1, 0 or 1, or a weighted mean of such (a Shapley value), which counts as that much of a
    discordant prompt. The interval inverts the score test of every difference: where no prompt differs it reaches
    z^2 / (n + z^2) either way, and one difference more never brings the bound on its side nearer (unless prompts of
    its own scenario differ the other way: the scenario as a whole then differs less). With one scenario the bounds are
    nan.

    Source: Tango 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B).
    """
    rows = rows_of(differences)
    n, z = _effective(rows, scenarios, level)
    won, lost = (n * np.maximum(side * rows, 0).mean(1) for side in (1, -1))
    return shaped(differences.shape[:-1], rows.mean(1), -_highest(lost, won, n, z), _highest(won, lost, n, z))


def _effective(rows: Float[ndarray, "row prompt"], scenarios: ndarray, level: float) -> _Effective:
    """Prompts divided by the design effect of each row, in which values lie between -1 and 1.

    The design effect is a ratio of sums of squares about the mean: of scenarios' totals, and of prompts. Both begin
    with z^2 / 2 scenarios in which all prompts agree, as many as Wilson's interval adds hits. So a row that never
    varies counts its scenarios (Kish's effective number of them), one that hardly varies nearly so, and no single
    prompt decides. With fewer the first discordant prompt would narrow an interval.

    The variance over few scenarios is itself uncertain: Student's quantile for as many scenarios replaces that for as
    many prompts (Korn & Graubard 1998, Survey Methodology 24, 193).
    """
    n = len(scenarios)
    totals, sizes = scenario_totals(rows, scenarios)
    z, quantile = float(stats.norm.ppf((1 + level) / 2)), (1 + level) / 2
    mean, one, prior = rows.mean(1, keepdims=True), (sizes**2).sum() / n, z**2 / 2
    between = ((totals - mean * sizes) ** 2).sum(1) + prior * one**2
    within = np.abs(rows).sum(1) - n * mean[:, 0] ** 2 + prior * one
    # With one scenario Student's quantile is nan, and so is all that follows.
    few = (stats.t.ppf(quantile, n - 1) / stats.t.ppf(quantile, len(sizes) - 1)) ** 2
    return _Effective(n * within / between * few, z)


def _highest(won: ndarray, lost: ndarray, n: ndarray, z: float) -> Float[ndarray, " row"]:
    """The largest difference that the score test does not reject: by bisection above the observed one."""
    low, high = (won - lost) / n, np.ones_like(n)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        rejected = n * middle - (won - lost) > z * np.sqrt(np.maximum(_null_variance(won, lost, n, middle), 0))
        low, high = np.where(rejected, low, middle), np.where(rejected, middle, high)
    return np.where(np.isnan(n), np.nan, high)


def _null_variance(won: ndarray, lost: ndarray, n: ndarray, difference: ndarray) -> ndarray:
    """The variance of won - lost if this is the true difference and the share of losses as likely as can be then."""
    b = (2 * n - won + lost) * difference - won - lost
    share_lost = (np.sqrt(b**2 + 8 * n * lost * difference * (1 - difference)) - b) / (4 * n)
    return n * (2 * share_lost + difference * (1 - difference))
