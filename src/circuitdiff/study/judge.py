"""A three-valued judge: intervals meet a requirement, refute it, or leave it open; many tests are adjusted for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from scipy import stats

from circuitdiff.study.estimates import Estimate

Answer = Literal["yes", "no", "not established", "not asked", "better", "kept", "worse", "lost"]
LEVEL = 0.025  # one-sided, that of a 95 % interval
_Z = float(stats.norm.isf(LEVEL))


class Test(NamedTuple):
    """Whether an interval meets a bound; None: neither. `p_met`, `p_refuted`: one-sided, of these two at the bound."""

    met: bool | None
    p_met: float = 1.0
    p_refuted: float = 1.0


class Said(NamedTuple):
    """An answer, what it is the answer to, and what is against it or leaves it open."""

    answer: Answer
    statement: str
    reasons: tuple[str, ...] = ()


UNKNOWN = Test(None)


class Posed(NamedTuple):
    """A claim, what it needs, and what a "no" says instead of it."""

    statement: str
    requirements: Sequence[Requirement]
    contrary: str | None = None


@dataclass(frozen=True)
class Requirement:
    """What a claim needs. If not met it refutes the claim, unless by chance (`p`); None: open. `reason`: its words."""

    met: bool | None
    reason: str
    p: float | None = None  # one-sided, of its being refuted though it is just met; None: it cannot refute by chance

    def never_refuting(self) -> Requirement:
        """The same, but that it says nothing against the claim."""
        return replace(self, met=self.met or None, p=None)


def judged(gate: Sequence[Requirement], requirements: Sequence[Requirement]) -> tuple[Answer, tuple[str, ...]]:
    """The answer, and what closes the gate, refutes the claim, or leaves it open.

    Nothing is said, for or against, unless all of the gate is met. A yes needs all requirements, at 2.5 % each. A no
    needs one refuted among all that could be, so their p are adjusted by Holm's rule.

    Source: Holm 1979 (Scandinavian Journal of Statistics 6, 65).
    """
    if closed := tuple(each.reason for each in gate if not each.met):
        return "not established", closed
    adjusted = holm({i: each.p for i, each in enumerate(requirements) if each.p is not None})
    refuted = tuple(e.reason for i, e in enumerate(requirements) if e.met is False and adjusted.get(i, 0) <= LEVEL)
    unsure = tuple(each.reason for each in requirements if not each.met)
    return ("no", refuted) if refuted else ("not established", unsure) if unsure else ("yes", ())


def holm(p: Mapping[int, float]) -> dict[int, float]:
    """Each p adjusted so that the chance of any false one among all is bounded."""
    order, largest, adjusted = sorted(p, key=lambda i: p[i]), 0.0, dict[int, float]()
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def above(estimate: Estimate | None, least: float = 0.0, lost_below: float | None = None) -> Test:
    """Whether the interval excludes `least` from above; refuted if it lies at or below that, or `lost_below`."""
    if not (known := _known(estimate)):
        return UNKNOWN
    _, low, high = known
    bound = least if lost_below is None else lost_below
    met = True if low > least else False if high <= bound else None
    return Test(met, _p_above(known, least), _p_below(known, bound))


def within(estimate: Estimate | None, least: float, most: float = math.inf) -> Test:
    """Whether the interval lies within these bounds; refuted if it lies outside."""
    if not (known := _known(estimate)):
        return UNKNOWN
    _, low, high = known
    met = True if least <= low and high <= most else False if high < least or low > most else None
    inside, outside = (_p_above(known, least), _p_below(known, most)), (_p_below(known, least), _p_above(known, most))
    return Test(met, max(inside), min(outside))


def leaves_room(estimate: Estimate | None, margin: float) -> bool:
    """Whether something surely lies so far above 0 that losing the margin is less than half of all it has."""
    return bool(known := _known(estimate)) and known[1] > 2 * margin


def _known(estimate: Estimate | None) -> tuple[float, float, float] | None:
    if estimate is None or estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    return estimate.value, estimate.low, estimate.high


def _p_above(known: tuple[float, float, float], bound: float) -> float:
    """One-sided, of an estimate so far above a bound if the truth is there."""
    value, low, _ = known
    return _tail(value - bound, value - low)


def _p_below(known: tuple[float, float, float], bound: float) -> float:
    value, _, high = known
    return _tail(bound - value, high - value)


def _tail(distance: float, margin: float) -> float:
    """2.5 % at a distance of the interval's own margin, and as the normal distribution has it at others."""
    if math.isinf(distance) or margin == 0:
        return 0.0 if distance > 0 else 1.0
    return 0.5 * math.erfc(_Z * distance / margin / math.sqrt(2))  # scipy takes 340 times as long
