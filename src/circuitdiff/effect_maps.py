"""Two models' effects of every head: how alike they are, between what chance gives and what one model repeats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from circuitdiff.errors import InputError
from circuitdiff.heads import Head
from circuitdiff.statistics import cluster_p_values, false_discovery_adjusted

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

    correlation: Likeness  # Pearson's, over all heads that could have an effect in both
    shared: dict[int, SharedHeads]  # by k


def compare_maps(
    first: PerPrompt,
    second: Float[ndarray, "other_layer other_head prompt"],
    scenarios: Int[ndarray, " prompt"],
    ks: Sequence[int],
    n_halvings: int = 100,
    seed: int = 0,
) -> Comparison:
    """How alike two models' effects are, each measured on half of the scenarios, over random halvings.

    Raises: InputError if the maps have other shapes or there are fewer than two scenarios.
    """
    if first.shape != second.shape:
        raise InputError(f"two maps of effects must have one shape; got {first.shape} and {second.shape}")
    live = (np.nan_to_num(first) != 0).any(-1) & (np.nan_to_num(second) != 0).any(-1)
    rows = [effects[live] for effects in (first, second)]
    halves = [_halved(rows, half) for half in _halvings(scenarios, n_halvings, seed)]
    return Comparison(
        correlation=Likeness(*_likeness([_each(pair, _correlation) for pair in halves]), 0.0),
        shared={k: _shared(halves, k, int(live.sum())) for k in ks},
    )


class _Halved(NamedTuple):
    """Mean effects of each live head, by model and half."""

    first_a: Float[ndarray, " head"]
    first_b: Float[ndarray, " head"]
    second_a: Float[ndarray, " head"]
    second_b: Float[ndarray, " head"]


def _halvings(scenarios: ndarray, n_halvings: int, seed: int) -> list[ndarray]:
    """Which prompts are in the first half; scenarios stay whole."""
    names = np.unique(scenarios)
    if len(names) < 2:
        raise InputError(f"a retest needs at least two scenarios; got {len(names)}")
    g = np.random.default_rng(seed)
    return [np.isin(scenarios, g.permutation(names)[: len(names) // 2]) for _ in range(n_halvings)]


def _halved(rows: Sequence[Float[ndarray, "head prompt"]], half: ndarray) -> _Halved:
    first, second = rows
    return _Halved(first[:, half].mean(1), first[:, ~half].mean(1), second[:, half].mean(1), second[:, ~half].mean(1))


def _each(halves: _Halved, alike: Callable[[ndarray, ndarray], float]) -> tuple[float, float, float]:
    """Between the models (both ways round), and within each."""
    between = (alike(halves.first_a, halves.second_b) + alike(halves.first_b, halves.second_a)) / 2
    return between, alike(halves.first_a, halves.first_b), alike(halves.second_a, halves.second_b)


def _likeness(values: Sequence[tuple[float, float, float]] | ndarray) -> tuple[Spread, Spread, Spread]:
    columns = np.array(values).T
    between, first, second = (Spread(float(c.mean()), *map(float, np.quantile(c, [0.025, 0.975]))) for c in columns)
    return between, first, second


def _correlation(one: ndarray, other: ndarray) -> float:
    if len(one) < 2 or one.std() == 0 or other.std() == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def _shared(halves: Sequence[_Halved], k: int, n_heads: int) -> SharedHeads:
    """Between the models both ways round, within each both ways round, and what random sets of these sizes share."""
    rows, floors = [], []
    for pair in halves:
        first_a, first_b, second_a, second_b = (_strongest(effects, k) for effects in pair)
        ways = [(first_a, second_b), (first_b, second_a)]
        selves = [[(one, other), (other, one)] for one, other in ((first_a, first_b), (second_a, second_b))]
        rows.append([np.mean([_shares(len(a & b), a, b) for a, b in each], axis=0) for each in (ways, *selves)])
        floors.append(np.mean([_shares(len(a) * len(b) / max(1, n_heads), a, b) for a, b in ways], axis=0))
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
    error_rate: float = 0.05,
    minimum: float = 0.0,
) -> list[Change]:
    """Heads whose paired difference (second - first) is no chance, largest first.

    False discoveries are controlled at `error_rate` (Benjamini and Hochberg) among all heads that could have an effect
    in either model; differences below `minimum` are left out.
    """
    difference = second - first
    live = (np.nan_to_num(first) != 0).any(-1) | (np.nan_to_num(second) != 0).any(-1)
    p = np.where(live, cluster_p_values(difference, scenarios, n_flips=1).p, np.nan)
    adjusted = false_discovery_adjusted(p)
    size = difference.mean(-1)
    found = (np.nan_to_num(adjusted, nan=1.0) <= error_rate) & (np.abs(size) >= max(minimum, 1e-300))
    changes = [
        Change(Head(int(i), int(j)), *(float(x[i, j]) for x in (first.mean(-1), second.mean(-1), size, adjusted)))
        for i, j in np.argwhere(found)
    ]
    return sorted(changes, key=lambda change: -abs(change.difference))
