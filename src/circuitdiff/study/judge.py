"""A three-valued judge: intervals meet a requirement, refute it, or leave it open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from circuitdiff.study.estimates import Estimate

Answer = Literal["yes", "no", "not established"]


@dataclass(frozen=True)
class Requirement:
    """What a claim needs. `met` is True; or False, which refutes the claim; or None: open. `reason` says what it is."""

    met: bool | None
    reason: str

    def never_refuting(self) -> Requirement:
        """The same, but that it says nothing against the claim."""
        return self if self.met else replace(self, met=None)


def judged(gate: Sequence[Requirement], requirements: Sequence[Requirement]) -> tuple[Answer, tuple[str, ...]]:
    """The answer, and what closes the gate, refutes the claim, or leaves it open.

    Nothing is said, for or against, unless all of the gate is met.
    """
    closed = tuple(each.reason for each in gate if not each.met)
    refuted = tuple(each.reason for each in requirements if each.met is False)
    unsure = tuple(each.reason for each in requirements if each.met is None)
    if closed:
        return "not established", closed
    return ("no", refuted) if refuted else ("not established", unsure) if unsure else ("yes", ())


def above(estimate: Estimate | None, least: float = 0.0, lost_below: float = 0.0) -> bool | None:
    """Whether the interval excludes `least` from above; refuted if it lies at or below `lost_below`."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return None
    return True if estimate.low > least else False if estimate.high <= lost_below else None


def within(estimate: Estimate | None, least: float, most: float = float("inf")) -> bool | None:
    """Whether the interval lies within these bounds; refuted if it lies outside."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return None
    low, high = estimate.low, estimate.high
    return True if least <= low and high <= most else False if high < least or low > most else None
