"""Two models' effects of every head: how alike they are, how far each repeats itself, and which heads changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import stats

from circuitdiff.circuit import Head
from circuitdiff.errors import InputError
from circuitdiff.stats.intervals import (
    Interval,
    RatioInterval,
    Scenarios,
    cluster_p_values,
    false_discovery_adjusted,
    scenario_totals,
)

_HALVINGS = 100
_ERROR_RATE = 0.05  # of the heads that are called changed, how many may be so by chance
PerPrompt = Float[ndarray, "layer head prompt"]
OfAble = Float[ndarray, "head prompt"]  # of heads that could have an effect
Weights = Float[ndarray, "layer head"]  # how many heads each stands for, where of some only a sample was measured


def likeness(
    first: PerPrompt,
    second: Float[ndarray, "other_layer other_head prompt"],
    scenarios: Scenarios,
    weights: Weights | None = None,
) -> RatioInterval:
    """The correlation (Pearson's, over heads) of two models' effects on the same prompts, corrected for noise, at 95 %.

    1. The covariance over heads of one scenario's effects in one model with another scenario's in the other, averaged
       over all pairs of different scenarios, has the covariance of the true mean effects as its mean: no scenario's
       noise meets itself, though both models see the same prompts. Variances likewise, within each model.
    2. The covariance by the root of both variances is the correlation without its attenuation. Noise makes it less
       certain, never smaller; it may exceed 1.
    3. Bias and standard error are the jackknife's over scenarios, bounds Student's. Where noise outweighs effects this
       error is too large rather than too small.

    Over heads that could have an effect in either model, and were measured in both; with `weights` each as often as it
    says, whose own chance is not in the interval. Undefined unless the reliability of both maps is above 0 by its
    interval: what does not repeat itself is like nothing.

    Source: Spearman 1904 (doi:10.2307/1412159) for the correction; Efron & Stein 1981 (doi:10.1214/aos/1176345462) for
    the jackknife. The pairs of scenarios are ours: Spearman divides by reliabilities, and lets common noise in.

    Raises: InputError if the maps have other shapes or there are fewer than three scenarios.
    """
    if first.shape != second.shape:
        raise InputError(f"two maps of effects must have one shape; got {first.shape} and {second.shape}")
    for name, effects in (("first", first), ("second", second)):
        value, low, high = reliability(effects, scenarios, weights)
        if not low > 0:
            reason = f"the {name} map may be noise alone: its reliability is {value:.2f} [{low:.2f}, {high:.2f}]"
            reason = f"the effects of the {name} map are all the same" if np.isnan(value) else reason
            return RatioInterval(np.nan, np.nan, np.nan, reason)
    maps = [np.nan_to_num(effects) for effects in (first, second)]
    both = ~np.isnan(first + second).any(-1)
    either = (_able(maps[0]) | _able(maps[1])) & both
    across = _products([effects[either] for effects in maps], scenarios, _of(weights, either)).across
    with np.errstate(invalid="ignore", divide="ignore"):
        value, low, high = _jackknife(across[:, 0, 1] / np.sqrt(across[:, 0, 0]) / np.sqrt(across[:, 1, 1]))
    if np.isnan(value):
        return RatioInterval(np.nan, np.nan, np.nan, "without one of the scenarios a map is noise alone")
    return RatioInterval(value, low, high)


def reliability(effects: PerPrompt, scenarios: Scenarios, weights: Weights | None = None) -> Interval:
    """The correlation to be expected of a map with the same model's on as many other scenarios, at 95 %.

    The share of the variance of mean effects over heads that is no noise of prompts. Over heads that could have an
    effect; by the moments, weights and jackknife of `likeness`. nan for a map without differences between heads.
    """
    known = np.nan_to_num(effects)
    able = _able(known)
    across, within, share = _products([known[able]], scenarios, _of(weights, able))
    true = across[:, 0, 0]
    with np.errstate(invalid="ignore"):
        return Interval(*_jackknife(true / (true + share * (within[:, 0, 0] - true))))


class _Products(NamedTuple):
    """Products of effects that are centred over heads, averaged over heads: of all scenarios, then without each."""

    across: Float[ndarray, "sample map map"]  # of one scenario with another; the covariance of true means
    within: Float[ndarray, "sample map map"]  # of a scenario with itself: that, and a scenario's noise
    share: float  # of a scenario's noise that is in the mean of all


def _of(weights: Weights | None, heads: Bool[ndarray, "layer head"]) -> Float[ndarray, " able"]:
    return np.ones(int(heads.sum())) if weights is None else weights[heads]


def _products(maps: Sequence[OfAble], scenarios: ndarray, weights: Float[ndarray, " head"]) -> _Products:
    """From sums, as the sum over pairs of different scenarios is the sum's square less the sum of squares."""
    sizes = np.unique(scenarios, return_counts=True)[1].astype(np.float64)
    if len(sizes) < 3:
        raise InputError(f"how alike effects are needs at least three scenarios; got {len(sizes)}")
    n_heads, weight = max(1.0, weights.sum()), weights[:, None]
    centred = [np.sqrt(weight) * (rows - (weight * rows).sum(0) / n_heads) for rows in maps]
    totals = np.stack([scenario_totals(rows, scenarios)[0] for rows in centred])
    own = np.einsum("ahs,bhs->sab", totals, totals)
    sums = _with_each_left_out(np.moveaxis(totals, -1, 0))
    prompts, squares = (_with_each_left_out(each)[:, None, None] for each in (sizes, sizes**2))
    same = _with_each_left_out(own)
    across = (np.einsum("sah,sbh->sab", sums, sums) - same) / (prompts**2 - squares)
    return _Products(across / n_heads, same / squares / n_heads, float(squares[0, 0, 0] / prompts[0, 0, 0] ** 2))


def _with_each_left_out(values: Float[ndarray, "scenario ..."]) -> Float[ndarray, "sample ..."]:
    """The sum over scenarios, and those without one of them."""
    whole = values.sum(0, keepdims=True)
    return np.concatenate([whole, whole - values])


def _jackknife(values: Float[ndarray, " sample"]) -> tuple[float, float, float]:
    """From a number's value on all scenarios, and without each of them: without its bias of order 1 / n, and bounds."""
    whole, without, n = float(values[0]), values[1:], len(values) - 1
    value = n * whole - (n - 1) * float(without.mean())
    half = float(stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) * without.var()))
    return value, value - half, value + half


def _able(effects: Float[ndarray, "*layers_and_heads prompt"]) -> Bool[ndarray, " *layers_and_heads"]:
    """Heads that could have an effect: those after the last receiver have exactly none."""
    return (effects != 0).any(-1)


class CommonStrongest(NamedTuple):
    """Jaccard index of the k heads that help most on one half of the scenarios with those on the other: means over
    halvings, which say nothing of their error; nan where no head helps. Heads that were not measured are none of them,
    but could be by chance.
    """

    between: float  # one half from each model
    first: float  # both from one model: what it repeats
    second: float
    chance: float  # of random sets of `between`'s sizes


def strongest_in_common(
    first: PerPrompt, second: PerPrompt, scenarios: Scenarios, ks: Sequence[int]
) -> dict[int, CommonStrongest]:
    """By k, over 100 random halvings, the same for every k.

    Raises: InputError if there are fewer than two scenarios.
    """
    able = [_able(np.nan_to_num(effects, nan=1.0)) for effects in (first, second)]
    maps = [np.nan_to_num(effects)[able[0] | able[1]] for effects in (first, second)]
    names, g, halves = np.unique(scenarios), np.random.default_rng(0), []
    if len(names) < 2:
        raise InputError(f"two halves need at least two scenarios; got {len(names)}")
    for _ in range(_HALVINGS):
        half = np.isin(scenarios, g.permutation(names)[: len(names) // 2])
        halves.append([effects[:, side].mean(1) for effects in maps for side in (half, ~half)])
    in_both = int((able[0] & able[1]).sum()) / max(1, int(able[0].sum()) * int(able[1].sum()))
    return {k: _common(halves, k, in_both) for k in ks}


def _common(halves: Sequence[Sequence[Float[ndarray, " head"]]], k: int, in_both: float) -> CommonStrongest:
    """Of mean effects: of the first model on one half and the other, then of the second model.

    Between the models both ways round; by chance heads that only one of them can use are never common (`in_both`).
    """
    rows = []
    for four in halves:
        first_a, first_b, second_a, second_b = (_strongest(effects, k) for effects in four)
        crossed = [(first_a, second_b), (first_b, second_a)]
        between = np.mean([_jaccard(len(a & b), a, b) for a, b in crossed])
        first, second = (_jaccard(len(a & b), a, b) for a, b in ((first_a, first_b), (second_a, second_b)))
        rows.append((between, first, second, np.mean([_jaccard(len(a) * len(b) * in_both, a, b) for a, b in crossed])))
    return CommonStrongest(*np.mean(rows, axis=0).tolist())


def _strongest(effects: ndarray, k: int) -> frozenset[int]:
    """The k heads that help most; fewer if fewer help."""
    order = np.argsort(effects, kind="stable")[:k]
    return frozenset(order[effects[order] < 0].tolist())


def _jaccard(common: float, first: frozenset[int], second: frozenset[int]) -> float:
    size = len(first) + len(second) - common
    return common / size if size else float("nan")


class Change(NamedTuple):
    """A head whose effect differs between two models on the same prompts. Negative difference: it helps more."""

    head: Head
    first: float
    second: float
    difference: float
    adjusted_p: float


def changed_heads(first: PerPrompt, second: PerPrompt, scenarios: Scenarios, minimum: float = 0.0) -> list[Change]:
    """Heads whose paired difference (second - first) is no chance, largest first.

    False discoveries are controlled at 5 % (Benjamini and Hochberg) among all heads that could have an effect
    in either model; differences below `minimum` are left out. A head that was not measured in both counts with p = 1.
    """
    difference = second - first
    either = _able(np.nan_to_num(first, nan=1.0)) | _able(np.nan_to_num(second, nan=1.0))
    p = np.nan_to_num(cluster_p_values(difference, scenarios, n_flips=1).p, nan=1.0)
    p = np.where(either, p, np.nan)
    adjusted = false_discovery_adjusted(p)
    size = difference.mean(-1)
    found = (np.nan_to_num(adjusted, nan=1.0) <= _ERROR_RATE) & (np.abs(size) >= max(minimum, 1e-300))
    changes = [
        Change(Head(int(i), int(j)), *(float(x[i, j]) for x in (first.mean(-1), second.mean(-1), size, adjusted)))
        for i, j in np.argwhere(found)
    ]
    return sorted(changes, key=lambda change: -abs(change.difference))
