"""Two models' effects of every head: how alike they are, between what chance gives and what one model repeats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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


@dataclass(frozen=True)
class Comparison:
    """Two models' effects on the same path and prompts."""

    correlation: Likeness  # Pearson's, over all heads that could have an effect in both
    jaccard: dict[int, Likeness]  # of the k strongest helping heads, by k


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
    by_k = {k: _likeness([_each(pair, partial(_jaccard, k=k)) for pair in halves]) for k in ks}
    floors = {k: _chance_jaccard(k, int(live.sum())) for k in ks}
    return Comparison(
        correlation=Likeness(*_likeness([_each(pair, _correlation) for pair in halves]), 0.0),
        jaccard={k: Likeness(*by_k[k], floors[k]) for k in ks},
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


def _likeness(values: Sequence[tuple[float, float, float]]) -> tuple[Spread, Spread, Spread]:
    columns = np.array(values).T
    between, first, second = (Spread(float(c.mean()), *map(float, np.quantile(c, [0.025, 0.975]))) for c in columns)
    return between, first, second


def _correlation(one: ndarray, other: ndarray) -> float:
    if len(one) < 2 or one.std() == 0 or other.std() == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def _jaccard(one: ndarray, other: ndarray, k: int) -> float:
    first, second = (set(np.argsort(effects, kind="stable")[:k][np.sort(effects)[:k] < 0]) for effects in (one, other))
    either = first | second
    return len(first & second) / len(either) if either else float("nan")


def _chance_jaccard(k: int, n_heads: int) -> float:
    """Expected size of the overlap of two random sets of k, turned into a Jaccard index."""
    if n_heads == 0:
        return float("nan")
    k = min(k, n_heads)
    common = k * k / n_heads
    return common / (2 * k - common)


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

    False discoveries among all heads are controlled at `error_rate` (Benjamini and Hochberg); differences below
    `minimum` are left out.
    """
    difference = second - first
    adjusted = false_discovery_adjusted(cluster_p_values(difference, scenarios).p)
    size = difference.mean(-1)
    found = (np.nan_to_num(adjusted, nan=1.0) <= error_rate) & (np.abs(size) >= max(minimum, 1e-300))
    changes = [
        Change(Head(int(i), int(j)), *(float(x[i, j]) for x in (first.mean(-1), second.mean(-1), size, adjusted)))
        for i, j in np.argwhere(found)
    ]
    return sorted(changes, key=lambda change: -abs(change.difference))
