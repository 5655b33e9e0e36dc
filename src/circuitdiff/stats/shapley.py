"""Whose is the gain? Scores of subsets of parts, turned into contributions and shares with intervals.

A *run* is the recipient with a subset of parts taken from the donor. Every contribution is a sum of runs with fixed
weights, prompt by prompt, whose mean has the interval of a mean, or of a paired difference where scores are hits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray

from circuitdiff.errors import InputError
from circuitdiff.readable import Readable, data_frame
from circuitdiff.stats.intervals import Interval, Scenarios, mean_interval, ratio_bounds
from circuitdiff.stats.proportions import paired_interval

Subset = frozenset[str]

ALONE, LEFT_OUT, SYMMETRIC, IN_ORDER = "alone", "left_out", "shapley", "in_order"


class Credit(NamedTuple):
    """What something adds to the score, in its unit, and as a share of the gain; shares are nan where `undefined`."""

    value: float
    low: float
    high: float
    share: float
    share_low: float
    share_high: float
    undefined: str | None = None


@dataclass(frozen=True, repr=False)
class Attribution(Readable):
    """The gain donor - recipient, taken apart."""

    gain: Interval
    parts: Mapping[str, Mapping[str, Credit]]  # part -> "alone", "left_out", "in_order" and, of all subsets, "shapley"
    together: Credit  # all parts
    unexplained: Credit  # what is left of the gain
    runs: Mapping[Subset, Credit]  # each run against the recipient

    def to_pandas(self) -> Any:
        """A row for each part and each way to ask. Raises: InputError if there is no pandas."""
        rows = ((part, how, *credit) for part, its in self.parts.items() for how, credit in its.items())
        return data_frame("part how " + " ".join(Credit._fields), rows)


def all_subsets(parts: Sequence[str]) -> list[Subset]:
    """Every subset, small ones first."""
    return [frozenset(chosen) for size in range(len(parts) + 1) for chosen in combinations(parts, size)]


def needed_subsets(parts: Sequence[str]) -> list[Subset]:
    """The runs behind "alone", "left out" and "in order": far fewer than all subsets. `parts` are in order."""
    whole = frozenset(parts)
    alone, without = ([frozenset([part]) for part in parts], [whole - {part} for part in parts])
    in_order = [frozenset(parts[: i + 1]) for i in range(len(parts))]
    return list(dict.fromkeys([frozenset(), *alone, *in_order, *without, whole]))


def shapley_weights(parts: Sequence[str], part: str) -> dict[Subset, float]:
    """The weight of each subset's score in the symmetric Shapley value of `part`.

    The mean, over all orders in which parts may enter, of what the part adds when it does.

    Source: Shapley 1953, A value for n-person games.
    """
    weights: dict[Subset, float] = {}
    for others in all_subsets([other for other in parts if other != part]):
        weight = 1 / (len(parts) * comb(len(parts) - 1, len(others)))
        weights[others | {part}], weights[others] = weight, -weight
    return weights


def attribute(
    scores: Mapping[Subset, Shaped[ndarray, " prompt"]],
    donor: Shaped[ndarray, " prompt"],
    scenarios: Scenarios,
    order: Sequence[str],
    *,
    incompatible: Iterable[Subset] = (),
) -> Attribution:
    """Shares of the gain, with 95 % intervals over scenarios.

    Those of contributions are `mean_interval`, of hits (booleans) `paired_interval`; those of shares `ratio_bounds`.
    `scores` needs the runs of `needed_subsets(order)`; Shapley values need all subsets. `order`: in which parts enter,
    causes first. A share is undefined where the gain's interval covers 0 (a ratio by it has no bounded interval), and
    where a run among `incompatible` enters.

    Source: Frye et al. 2020 (arXiv:1910.06358) for values of orders that respect causes; Fieller 1954
    (doi:10.1111/j.2517-6161.1954.tb00159.x) for when a ratio is defined.

    Raises: InputError if a run is missing.
    """
    missing = [subset for subset in needed_subsets(order) if subset not in scores]
    if missing:
        raise InputError(f"the run with {named(missing[0])} is missing; measure needed_subsets(order)")
    rows = np.stack([*scores.values(), donor])
    return _Accounts(tuple(scores), rows, scenarios, tuple(order), frozenset(incompatible)).attribution()


def named(subset: Subset) -> str:
    """A subset in words."""
    return " + ".join(sorted(subset)) or "nothing"


@dataclass(frozen=True)
class _Accounts:
    """Scores of the runs and, last, of the donor."""

    runs: tuple[Subset, ...]
    scores: Shaped[ndarray, "run prompt"]
    scenarios: Scenarios
    order: tuple[str, ...]
    incompatible: frozenset[Subset]

    def attribution(self) -> Attribution:
        nothing, whole = frozenset(), frozenset(self.order)
        return Attribution(
            gain=self._gain[1],
            parts={part: {how: self._credit(w) for how, w in self._weights(part)} for part in self.order},
            together=self._credit({whole: 1.0, nothing: -1.0}),
            unexplained=self._credit({whole: -1.0}, donor=1.0),
            runs={run: self._credit({run: 1.0, nothing: -1.0} if run else {}) for run in self.runs},
        )

    def _weights(self, part: str) -> Iterator[tuple[str, dict[Subset, float]]]:
        whole, before = frozenset(self.order), frozenset(self.order[: self.order.index(part)])
        yield ALONE, {frozenset([part]): 1.0, frozenset(): -1.0}
        yield LEFT_OUT, {whole: 1.0, whole - {part}: -1.0}
        yield IN_ORDER, {before | {part}: 1.0, before: -1.0}
        if len(self.runs) == 2 ** len(self.order):
            yield SYMMETRIC, shapley_weights(self.order, part)

    @cached_property
    def _gain(self) -> tuple[Float[ndarray, " prompt"], Interval]:
        gains = self._sum({frozenset(): -1.0}, donor=1.0)
        return gains, self._interval(gains)

    def _sum(self, weights: Mapping[Subset, float], donor: float = 0.0) -> Float[ndarray, " prompt"]:
        return np.array([*(weights.get(run, 0.0) for run in self.runs), donor]) @ self.scores

    def _interval(self, values: Float[ndarray, " prompt"]) -> Interval:
        interval = paired_interval if self.scores.dtype == np.bool_ else mean_interval
        return interval(values, self.scenarios)

    def _credit(self, weights: Mapping[Subset, float], donor: float = 0.0) -> Credit:
        values, (gains, gain) = self._sum(weights, donor), self._gain
        value, low, high = map(float, self._interval(values))
        why = self._why_undefined(weights)
        if why:
            return Credit(value, low, high, np.nan, np.nan, np.nan, why)
        hits = self.scores.dtype == np.bool_
        share = value / float(gain.value)
        return Credit(value, low, high, share, *ratio_bounds(values, gains, self.scenarios, hits=hits))

    def _why_undefined(self, weights: Mapping[Subset, float]) -> str | None:
        _, gain = self._gain
        if not (gain.low > 0 or gain.high < 0):
            bounds = f"{gain.value:.3f} [{gain.low:.3f}, {gain.high:.3f}]"
            return f"the gain is {bounds}: its interval covers 0, so there is nothing to share out"
        far = [run for run in weights if run in self.incompatible]
        return f"the run with {named(far[0])} lies far from clean activations" if far else None
