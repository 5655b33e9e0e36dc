"""The numbers of results: estimates with 95 % intervals over scenarios. What is undefined is None."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.evaluation import Evaluation
from circuitdiff.stats.intervals import Interval, RatioInterval, mean_interval, ratio_interval
from circuitdiff.stats.proportions import accuracy_interval, difference_interval

DRAWS_FOR_A_RANK = 100  # a rank among 100 random draws is known to 1 %

T = TypeVar("T")
Number = float | None
HeadPlace = tuple[int, int]  # layer and index


@dataclass(frozen=True)
class Estimate:
    value: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class Share(Estimate):
    """Of prompts, `hits` of `n`."""

    hits: int
    n: int


@dataclass(frozen=True)
class Ratio(Estimate):
    note: str | None  # why it is undefined


@dataclass(frozen=True)
class GroupHeads:
    """The heads of a group, at the role `at`."""

    at: str
    heads: tuple[HeadPlace, ...]


def printed(estimate: Estimate) -> str:
    """Value and bounds, with two decimals."""
    numbers = (estimate.value, estimate.low, estimate.high)
    value, low, high = (math.nan if each is None else each for each in numbers)
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def number(value: Any) -> Number:
    """A finite float, or None."""
    value = math.nan if value is None else float(value)
    return value if math.isfinite(value) else None


def estimate(interval: Interval | RatioInterval | Any, row: int | tuple[int, ...] | None = None) -> Estimate:
    """An interval's value and bounds; `row`: of one of many."""
    bounds = (interval.value, interval.low, interval.high)
    return Estimate(*(number(np.asarray(bound) if row is None else np.asarray(bound)[row]) for bound in bounds))


def ratio(interval: RatioInterval) -> Ratio:
    return Ratio(**vars(estimate(interval)), note=interval.undefined)


def share(hits: torch.Tensor, scenarios: torch.Tensor) -> Share:
    """A share of prompts with its interval and the counts behind it."""
    interval = estimate(accuracy_interval(hits.numpy(), scenarios.numpy()))
    return Share(**vars(interval), hits=int(hits.sum()), n=len(hits))


def accuracy(answers: Evaluation) -> Share:
    return share(answers.hits, answers.scenarios)


def more_accurate_by(first: Evaluation, second: Evaluation) -> Estimate:
    """Accuracy of the first less that of the second, on the same prompts."""
    return estimate(difference_interval(first.hits.numpy(), second.hits.numpy(), first.scenarios.numpy()))


def faithfulness(circuit: Evaluation, model: Evaluation) -> Ratio:
    """Accuracy of the circuit alone over that of the model, on the same prompts."""
    return ratio(ratio_interval(circuit.hits.numpy(), model.hits.numpy(), model.scenarios.numpy()))


def result_of(kind: type[T], source: Any, /, **others: Any) -> T:
    """A class of results with the fields of `source` that have its fields' names, and with `others`."""
    names = [each.name for each in fields(kind) if each.name not in others]  # pyright: ignore[reportArgumentType]
    return kind(**{name: _plain(getattr(source, name)) for name in names}, **others)


def _plain(value: Any) -> Any:
    if isinstance(value, RatioInterval):
        return ratio(value)
    if hasattr(value, "low"):
        return estimate(value)
    if isinstance(value, Head):
        return value.layer, value.index
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return number(value) if isinstance(value, float) else value


def mean_logit_difference(evaluation: Evaluation) -> Estimate:
    return estimate(mean_interval(evaluation.logit_differences.double().numpy(), evaluation.scenarios.numpy()))


def rank_p(value: float, drawn: np.ndarray) -> Number:
    """(1 + how many of the random draws are at least as good) / (1 + how many there are); None of fewer than 100.

    If the value were one of the draws, it would be so small or smaller with this probability.

    Source: Phipson & Smyth 2010 (doi:10.2202/1544-6115.1585).
    """
    if len(drawn) < DRAWS_FOR_A_RANK:
        return None
    return (1 + int((drawn >= value).sum())) / (1 + len(drawn))


def places(heads: Iterable[Head]) -> tuple[HeadPlace, ...]:
    return tuple((head.layer, head.index) for head in heads)


def groups_of(circuit: Circuit) -> dict[str, GroupHeads]:
    return {name: GroupHeads(group.at, places(group.heads)) for name, group in circuit.groups.items()}


def circuit_from(groups: dict[str, GroupHeads]) -> Circuit:
    return Circuit({name: Group(each.at, tuple(Head(*place) for place in each.heads)) for name, each in groups.items()})


def with_heads(circuit: Circuit) -> Circuit:
    """The circuit without groups in which nothing was found."""
    return Circuit({name: group for name, group in circuit.groups.items() if group.heads})
