"""Which heads of a group the circuit needs: the rules, given scores of circuits with heads removed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Head
from circuitdiff.errors import InputError


@dataclass(frozen=True)
class MinimalityRule:
    """How a head is tested, and what it takes to stay.

    `score`: what circuits are compared by, the answer's mean probability or the number of hits. A hundred prompts of
    hits see a cost of two points one time in eight.
    `fraction`: at most this share of a group is removed before one of its heads is tested.
    `held_out`: removal sets are chosen on half of the scenarios and costs measured on the others; without, both on all.
    `decision`: "credible" keeps a head whose cost is above `threshold` by its interval at `level`, and in a one-sided
    test at `error_rate`, false discoveries controlled over the whole circuit; "ratio" keeps it by `keep`.
    """

    score: Literal["probability", "hits"] = "probability"
    fraction: float = 0.3
    held_out: bool = True
    decision: Literal["credible", "ratio"] = "credible"
    threshold: float = 0.0
    error_rate: float = 0.05
    level: float = 0.95
    joint_removal_of_same_index: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise InputError(
                f"fraction is the share of a group that may be removed, above 0, up to 1; got {self.fraction}"
            )
        if not (0 < self.error_rate < 1 and 0 < self.level < 1):
            raise InputError(f"error_rate and level lie between 0 and 1; got {self.error_rate} and {self.level}")


# Prakash et al. 2024 (arXiv:2402.14811), as published: one lost hit of the same 100 prompts is enough to stay.
PUBLISHED = MinimalityRule(
    score="hits", held_out=False, decision="ratio", threshold=0.01, joint_removal_of_same_index=False
)


@dataclass(frozen=True)
class PairTable:
    """Scores of the full circuit without each pair of a group's heads; on the diagonal, without the one head.

    Hits (whole numbers) compare exactly; the published tables hold accuracies. nan: not measured.
    """

    heads: tuple[Head, ...]
    scores: Float[Tensor, "first second"]


class Ranked(NamedTuple):
    """Another head, and what removing the tested head costs once this one is gone."""

    head: Head
    drop: float


class Significance(NamedTuple):
    """Scores before and after a head leaves the circuit that has already lost its removal set."""

    head: Head
    before: float | int
    after: float | int


def pair_removal(first: Head, second: Head, *, joint_removal_of_same_index: bool = True) -> frozenset[Head]:
    """The heads to remove for one entry of the pair table.

    Differs from the published code, which removes only the first of two heads with the same index in different layers
    (it compares object identities); `joint_removal_of_same_index=False` does that.
    """
    if not joint_removal_of_same_index and first.index == second.index:
        return frozenset([first])
    return frozenset([first, second])


def ranking(table: PairTable, head: Head) -> list[Ranked]:
    """All of the group's measured heads, those that best stand in for `head` first: once they are gone, it is missed.

    Ties keep the table's order. `head` itself has a drop of 0.

    Source: Prakash et al. 2024 (arXiv:2402.14811), minimality; drop = D[b][b] - D[head][b].
    """
    drops = table.scores.diagonal() - table.scores[table.heads.index(head)]
    order = torch.argsort(drops, descending=True, stable=True).tolist()
    ranked = [Ranked(table.heads[i], drops[i].item()) for i in order]
    return [entry for entry in ranked if not math.isnan(entry.drop)]


def removal_set(table: PairTable, head: Head, fraction: float = 0.3) -> list[Head]:
    """The heads to take out before `head` is tested: those that hide its part, at most `fraction` of the group.

    The first ceil(fraction * group size) of the ranking, as far as the drop is above 0.
    """
    most = math.ceil(round(fraction * len(table.heads), 9))  # 0.07 * 100 is 7.000000000000001
    return [entry.head for entry in ranking(table, head)[:most] if entry.drop > 0]


def keep(before: float | int, after: float | int, threshold: float = 0.01) -> bool:
    """Does the circuit need a head that takes its score from `before` to `after`?

    before / after - 1 >= threshold. A score that falls to 0 is always needed (the published code divides by 0 there);
    one that was 0 has nothing to lose, and changes by 0.
    """
    if after == 0:
        return before > 0 or threshold <= 0
    return before / after - 1 >= threshold


def needed(significances: Iterable[Significance], threshold: float = 0.01) -> list[Head]:
    """The heads to keep, in the order given. One threshold for all models, or their circuits do not compare."""
    return [entry.head for entry in significances if keep(entry.before, entry.after, threshold)]
