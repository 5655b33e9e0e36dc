"""What minimality found, and the circuit that is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.methods.minimality.rules import MinimalityRule, PairTable
from circuitdiff.stats.intervals import Interval


@dataclass(frozen=True)
class HeadCost:
    """What the circuit loses with a head, once the heads that stand in for it are gone. Positive = it helps."""

    head: Head
    removed_with: tuple[Head, ...]  # gone before and after
    before: float  # score without them: mean probability, or number of hits
    after: float  # score without them and the head
    cost: Interval  # in probability, or as a share of prompts where the score is hits
    cost_in_hits: Interval  # share of prompts
    adjusted_p: float  # one-sided, of a cost above the threshold; over the whole circuit
    kept: bool


@dataclass(frozen=True)
class GroupMinimality:
    """One group's pair table and its heads' costs, in the group's order."""

    at: str
    table: PairTable
    costs: tuple[HeadCost, ...]
    per_prompt: Float[Tensor, "head prompt"]  # the costs, in the rule's score

    @property
    def kept(self) -> tuple[Head, ...]:
        return tuple(entry.head for entry in self.costs if entry.kept)


@dataclass(frozen=True)
class MinimalityResult:
    """All groups, on the same prompts."""

    groups: Mapping[str, GroupMinimality]
    rule: MinimalityRule
    scenarios: Int[Tensor, " prompt"]  # of the prompts on which costs were measured
    n_choosing: int  # prompts on which removal sets were chosen

    @property
    def pruned(self) -> Circuit:
        """The heads that stay. Its faithfulness is to be measured on scenarios that had no part in this."""
        return Circuit({name: Group(group.at, group.kept) for name, group in self.groups.items()})
