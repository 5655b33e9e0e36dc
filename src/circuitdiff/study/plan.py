"""What a study will cost, before it starts: work, memory and minutes on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from circuitdiff.methods.discovery import Plan
from circuitdiff.prompts import Pairs
from circuitdiff.stats.selection import TopK
from circuitdiff.study.facts import ModelFacts, Speed
from circuitdiff.study.settings import CommonSettings
from circuitdiff.tasks import Task

DISTINCT = 0.25  # of the tokens of ablated prompts: the others are the same token at the same slot, and computed once
_HEADS = 10  # of a group whose rule does not say
_PYTHON_GB = 0.6  # what Python and torch take
_SLOT_COPIES = 3  # of means, in float64


class Part(NamedTuple):
    """What one part of a study takes on any machine."""

    what: str
    forwards: float  # whole forward passes that the plain method would run
    flop: float  # what we run
    kept_gb: float = 0.0  # of clean runs, beyond the study's own


@dataclass(frozen=True)
class Cost:
    """What one part of a study takes on this machine."""

    what: str
    forwards: int
    flop: float
    minutes: float


@dataclass(frozen=True)
class PlannedCost:
    """What the study will do on this machine, and the memory it takes at most."""

    parts: tuple[Cost, ...]
    memory_gb: float

    @property
    def minutes(self) -> float:
        return sum(part.minutes for part in self.parts)


@dataclass(frozen=True)
class Sizes:
    """What the cost of a section follows from. Circuits are not known yet: all senders count as live.

    `sample`: the evaluation prompts in the base's tokens.
    """

    settings: CommonSettings
    plans: Mapping[str, Plan]
    task: Task
    base: ModelFacts
    speed: Speed
    sample: Pairs

    @property
    def main(self) -> Plan:
        return next(iter(self.plans.values()))

    @property
    def groups(self) -> dict[str, int]:
        """How many heads each group of a main circuit may have: as many as its rule takes, or ten."""
        rules = {stage.name: stage.select for stage in self.main.stages}
        return {name: rule.top if isinstance(rule, TopK) else _HEADS for name, rule in rules.items()}

    @property
    def n_models(self) -> int:
        return len(self.settings.models)

    @property
    def n_searched(self) -> int:
        """In how many models the main plan is run."""
        return len(self.settings.searched)

    @property
    def n_roles(self) -> int:
        """At how many roles the main circuit has heads."""
        return len({stage.at for stage in self.main.stages})

    @cached_property
    def length(self) -> float:
        """Tokens of a prompt, on average."""
        return float(self.sample.lengths.double().mean())

    @property
    def roles(self) -> list[str]:
        """Those that every prompt has."""
        return [role for role, at in self.sample.positions.items() if bool((at >= 0).all())]

    def passes(self, n: float) -> float:
        """FLOP of whole prompts."""
        return self.runs(n, self.length)

    def runs(self, n: float, tokens: float, layers: float = 1.0) -> float:
        """FLOP of so many tokens of each prompt, through a share of the layers."""
        return n * (tokens * layers * self.base.n_layers * self.speed.flop_of_layer + self.speed.flop_of_head)

    def width(self, role: str) -> float:
        """How many tokens of a prompt a role can change."""
        return float((self.sample.lengths - self.sample.positions[role]).double().mean())


def planned_cost(parts: Sequence[Part], sizes: Sizes, workers: int) -> PlannedCost:
    """The cost of these parts on this machine, shared out to so many processes.

    Memory: weights (with variants two models' at once; what adapters leave alone they share, which is not counted),
    means, a batch of rows at work, kept clean runs, and what Python and torch take.
    """
    per_minute = workers * sizes.speed.flop_per_second * 60
    costs = tuple(Cost(part.what, round(part.forwards), part.flop, part.flop / per_minute) for part in parts)
    settings, speed, base = sizes.settings, sizes.speed, sizes.base
    weights = speed.weights_gb * (2 if settings.variants else 1)
    slots = len(sizes.sample.clean_prompts.slot_names)
    means = slots * base.n_layers * base.n_heads * base.d_head * 8 * _SLOT_COPIES / 2**30
    prompts = settings.prompts
    n_kept = prompts.discovery + prompts.replication + prompts.evaluation + prompts.means
    clean = n_kept * (sizes.length * speed.kept_gb_per_token + speed.logits_gb)
    kept = max(min(settings.memory_gb, clean), *(part.kept_gb for part in parts))
    return PlannedCost(costs, workers * (weights + means + speed.run_gb + kept + _PYTHON_GB))
