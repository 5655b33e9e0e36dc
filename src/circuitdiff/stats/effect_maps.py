"""Two models' effects of every head: how alike they are, between what chance gives and what one model repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from circuitdiff.circuit import Head
from circuitdiff.errors import InputError
from circuitdiff.stats.intervals import cluster_p_values, false_discovery_adjusted

_HALVINGS = 100
_ERROR_RATE = 0.05  # of the heads that are called changed, how many may be so by chance
PerPrompt = Float[ndarray, "layer head prompt"]


class Spread(NamedTuple):
    """A mean over random halvings of the prompts, with the 2.5 % and 97.5 % quantiles over them."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Likeness:
    """Agreement of effects measured on one half of the prompts with effects measured on the other half.

    `between` takes one half from each model, `first` and `second` both from one model: the retest, above which
    `between` cannot be expected. `floor` is chance.
    """

    between: Spread
    first: Spread
    second: Spread
    floor: float


class SharedHeads(NamedTuple):
    """What two models' k strongest helping heads have in common."""

    precision: Likeness  # the share of the first model's that the second has, too
    recall: Likeness  # the share of the second model's that the first has, too
    jaccard: Likeness  # shared heads among all


@dataclass(frozen=True)
class Comparison:
    """Two models' effects on the same path and prompts."""

    correlation: Likeness  # Pearson's, over all heads that could have an effect in either
    shared: dict[int, SharedHeads]  # by k


def compare_maps(
    first: PerPrompt,
    second: Float[ndarray, "other_layer other_head prompt"],
    scenarios: Int[ndarray, " prompt"],
    ks: Sequence[int],
) -> Comparison:
    """How alike two models' effects are, each measured on half of the scenarios, over 100 random halvings.

    Raises: InputError if the maps have other shapes or there are fewer than two scenarios.
    """
    if first.shape != second.shape:
        raise InputError(f"two maps of effects must have one shape; got {first.shape} and {second.shape}")
    known = [np.nan_to_num(effects) for effects in (first, second)]
    able = [_able(effects) for effects in known]
    either = able[0] | able[1]
    halves = [_halved([each[either] for each in known], half) for half in _halvings(scenarios)]
    own = [each[either] for each in able]
    return Comparison(
        correlation=Likeness(*_likeness([_each(pair, own) for pair in halves]), 0.0),
        shared={k: _shared(halves, k, own) for k in ks},
    )


def _able(effects: Float[ndarray, "*layers_and_heads prompt"]) -> Bool[ndarray, " *layers_and_heads"]:
    """Heads that could have an effect: those after the last receiver have exactly none."""
    return (effects != 0).any(-1)


class _Halved(NamedTuple):
    """Mean effects of each head that could have one in either model, by model and half."""

    first_a: Float[ndarray, " head"]
    first_b: Float[ndarray, " head"]
    second_a: Float[ndarray, " head"]
    second_b: Float[ndarray, " head"]


def _halvings(scenarios: ndarray) -> list[ndarray]:
    """Which prompts are in the first half; scenarios stay whole."""
    names = np.unique(scenarios)
    if len(names) < 2:
        raise InputError(f"a retest needs at least two scenarios; got {len(names)}")
    g = np.random.default_rng(0)
    return [np.isin(scenarios, g.permutation(names)[: len(names) // 2]) for _ in range(_HALVINGS)]


def _halved(rows: Sequence[Float[ndarray, "head prompt"]], half: ndarray) -> _Halved:
    first, second = rows
    return _Halved(first[:, half].mean(1), first[:, ~half].mean(1), second[:, half].mean(1), second[:, ~half].mean(1))


def _each(halves: _Halved, able: Sequence[ndarray]) -> tuple[float, float, float]:
    """Correlations between the models (both ways round), and within each, over the heads that it could use."""
    between = _correlation(halves.first_a, halves.second_b) + _correlation(halves.first_b, halves.second_a)
    one, other = able
    within = _correlation(halves.first_a[one], halves.first_b[one])
    return between / 2, within, _correlation(halves.second_a[other], halves.second_b[other])


def _likeness(values: Sequence[tuple[float, float, float]] | ndarray) -> tuple[Spread, Spread, Spread]:
    columns = np.array(values).T
    between, first, second = (Spread(float(c.mean()), *map(float, np.quantile(c, [0.025, 0.975]))) for c in columns)
    return between, first, second


def _correlation(one: ndarray, other: ndarray) -> float:
    if len(one) < 2 or one.std() == 0 or other.std() == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def _shared(halves: Sequence[_Halved], k: int, able: Sequence[ndarray]) -> SharedHeads:
    """Between the models both ways round, within each both ways round, and what random sets of these sizes share."""
    rows, floors = [], []
    n_pairs, n_common = max(1, int(able[0].sum()) * int(able[1].sum())), int((able[0] & able[1]).sum())
    for pair in halves:
        first_a, first_b, second_a, second_b = (_strongest(effects, k) for effects in pair)
        ways = [(first_a, second_b), (first_b, second_a)]
        selves = [[(one, other), (other, one)] for one, other in ((first_a, first_b), (second_a, second_b))]
        rows.append([np.mean([_shares(len(a & b), a, b) for a, b in each], axis=0) for each in (ways, *selves)])
        floors.append(np.mean([_shares(len(a) * len(b) * n_common / n_pairs, a, b) for a, b in ways], axis=0))
    values, chance = np.array(rows), np.array(floors).mean(0)
    return SharedHeads(*(Likeness(*_likeness(values[:, :, i]), float(chance[i])) for i in range(3)))


def _strongest(effects: ndarray, k: int) -> frozenset[int]:
    """The k heads that help most; fewer if fewer help."""
    order = np.argsort(effects, kind="stable")[:k]
    return frozenset(order[effects[order] < 0].tolist())


def _shares(common: float, first: frozenset[int], second: frozenset[int]) -> tuple[float, float, float]:
    """Precision, recall and Jaccard index; nan where they would divide by 0."""
    sizes = (len(first), len(second), len(first) + len(second) - common)
    precision, recall, jaccard = (common / size if size else float("nan") for size in sizes)
    return precision, recall, jaccard


class Change(NamedTuple):
    """A head whose effect differs between two models on the same prompts. Negative difference: it helps more."""

    head: Head
    first: float
    second: float
    difference: float
    adjusted_p: float


def changed_heads(
    first: PerPrompt,
    second: PerPrompt,
    scenarios: Int[ndarray, " prompt"],
    minimum: float = 0.0,
) -> list[Change]:
    """Heads whose paired difference (second - first) is no chance, largest first.

    False discoveries are controlled at 5 % (Benjamini and Hochberg) among all heads that could have an effect
    in either model; differences below `minimum` are left out.
    """
    difference = second - first
    either = _able(np.nan_to_num(first)) | _able(np.nan_to_num(second))
    p = np.where(either, cluster_p_values(difference, scenarios, n_flips=1).p, np.nan)
    adjusted = false_discovery_adjusted(p)
    size = difference.mean(-1)
    found = (np.nan_to_num(adjusted, nan=1.0) <= _ERROR_RATE) & (np.abs(size) >= max(minimum, 1e-300))
    changes = [
        Change(Head(int(i), int(j)), *(float(x[i, j]) for x in (first.mean(-1), second.mean(-1), size, adjusted)))
        for i, j in np.argwhere(found)
    ]
    return sorted(changes, key=lambda change: -abs(change.difference))
