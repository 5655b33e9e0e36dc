"""What two circuits have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from circuitdiff.circuit import Circuit
from circuitdiff.heads import Head


class Overlap(NamedTuple):
    """Sizes of two sets of heads and of what they share. The shares are nan where they would divide by 0."""

    first: int
    second: int
    common: int

    @property
    def precision(self) -> float:
        """The share of the first that the second has, too."""
        return self.common / self.first if self.first else math.nan

    @property
    def recall(self) -> float:
        """The share of the second that the first has, too."""
        return self.common / self.second if self.second else math.nan

    @property
    def jaccard(self) -> float:
        """Shared heads among all: 0 = none in common, 1 = the same set."""
        either = self.first + self.second - self.common
        return self.common / either if either else math.nan


def overlap(first: Iterable[Head], second: Iterable[Head]) -> Overlap:
    """How many heads two groups have in common."""
    one, other = frozenset(first), frozenset(second)
    return Overlap(len(one), len(other), len(one & other))


def circuit_overlap(first: Circuit, second: Circuit) -> dict[str, Overlap]:
    """The overlap of each group, by name. A group that one circuit lacks is empty there."""
    names = dict.fromkeys([*first.groups, *second.groups])
    return {name: overlap(_heads(first, name), _heads(second, name)) for name in names}


def total(overlaps: Iterable[Overlap]) -> Overlap:
    """The sum over groups: a head that serves in two groups counts in each."""
    rows = list(overlaps)
    return Overlap(sum(row.first for row in rows), sum(row.second for row in rows), sum(row.common for row in rows))


def _heads(circuit: Circuit, name: str) -> tuple[Head, ...]:
    return circuit.groups[name].heads if name in circuit.groups else ()
