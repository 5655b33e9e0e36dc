"""What a study will cost, before it starts: work, memory and minutes on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from circuitdiff.engine.constant_tokens import ROWS
from circuitdiff.evaluation.constants import MOST_PROMPTS
from circuitdiff.methods.discovery import Plan
from circuitdiff.prompts import Pairs, buckets
from circuitdiff.stats.selection import TopK
from circuitdiff.study.facts import ModelFacts, Speed
from circuitdiff.study.prompts import PromptsOf, PromptSource
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
    """What loading and running the models will take on this machine, and the memory at most.

    What is cheap for most models is not counted: comparing weights, statistics, the page.
    """

    parts: tuple[Cost, ...]
    memory_gb: float
    loading: float = 0.0  # minutes

    @property
    def minutes(self) -> float:
        return self.loading + sum(part.minutes for part in self.parts)


@dataclass(frozen=True)
class Sizes:
    """What the cost of a section follows from. Circuits are not known yet: all senders count as live.

    `prompts`: in the base's tokens; `sample`: those for evaluation. `groups`: how many heads each group of
    a main circuit may have, as many as its rule takes, or ten; each layer that its receivers see is as likely as any.
    """

    settings: CommonSettings
    plans: Mapping[str, Plan]
    task: Task
    base: ModelFacts
    speed: Speed
    prompts: PromptSource

    @cached_property
    def sample(self) -> Pairs:
        return self.prompts.pairs(PromptsOf("evaluation"))

    @property
    def main(self) -> Plan:
        return next(iter(self.plans.values()))

    @property
    def groups(self) -> dict[str, int]:
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

    def places_from(self, role: str | None = None) -> int:
        """At how many places circuits are run that keep heads at the main circuit's roles: from this one on, or all."""
        at = [self.sample.positions[stage.at] for stage in self.main.stages] + [self.sample.lengths - 1]
        places = {float(positions.double().mean()) for positions in at}
        first = -1.0 if role is None else float(self.sample.positions[role].double().mean())
        return sum(place >= first for place in places)

    def layers_from(self, group: str, n_heads: int | None = None) -> float:
        """The share of the layers from the first of a group's heads on, on average; or of so many of its heads."""
        first = mean_first(self._n_below(group), n_heads or self.groups[group])
        return 1 - first / self.base.n_layers

    def layers_up_to(self, group: str) -> float:
        """The share of the layers up to the last of a group's heads, on average."""
        n_below = self._n_below(group)
        return (n_below - mean_first(n_below, self.groups[group])) / self.base.n_layers

    def _n_below(self, group: str) -> int:
        """In how many layers a group may have heads: all, or those below the last of its receivers."""
        receivers = next(stage.receivers_from for stage in self.main.stages if stage.name == group)
        if receivers is None:
            return self.base.n_layers
        return max(1, round(self.layers_up_to(receivers) * self.base.n_layers - 1))

    def constant_tokens(
        self, parts: Sequence[Pairs], known: Sequence[Pairs] = (), roles: Sequence[str] | None = None
    ) -> int:
        """How many lone tokens are run for circuits on these prompts, one part after the other, beside their roles'.

        A token at a place in a sequence of slots is run once, and not at all if it is `known`; `ROWS` are run at once.
        """
        roles, n_rows = [stage.at for stage in self.main.stages] if roles is None else list(roles), 0
        done = dict[bytes, set[tuple[int, int]]]()
        for i, pairs in enumerate([*known, *parts]):
            for bucket in buckets(pairs.clean_prompts, roles, MOST_PROMPTS, same_slots=True):
                free = [p for p in range(bucket.length - 1) if p not in bucket.positions.values()]
                tokens, first = pairs.clean[bucket.prompts][:, free], int(bucket.prompts[0])
                slots = pairs.clean_prompts.slots[first, : bucket.length].numpy().tobytes()
                here = {(place, token) for row in tokens.tolist() for place, token in zip(free, row, strict=True)}
                before = done.setdefault(slots, set())
                n_rows += ROWS * -(-len(here - before) // ROWS) if i >= len(known) else 0
                before |= here
        return n_rows

    def passes(self, n: float) -> float:
        """FLOP of whole prompts."""
        return self.runs(n, self.length)

    def runs(self, n: float, tokens: float, layers: float = 1.0) -> float:
        """FLOP of so many tokens of each prompt, through a share of the layers."""
        return n * (tokens * layers * self.base.n_layers * self.speed.flop_of_layer + self.speed.flop_of_head)

    def width(self, role: str) -> float:
        """How many tokens of a prompt a role can change."""
        return float((self.sample.lengths - self.sample.positions[role]).double().mean())


def mean_first(n_layers: int, n_heads: int) -> float:
    """The mean layer of the first of so many heads, each in any layer: the sum over all layers of P(first >= layer)."""
    return sum((above / n_layers) ** n_heads for above in range(1, n_layers))


def planned_cost(parts: Sequence[Part], sizes: Sizes, workers: int) -> PlannedCost:
    """The cost of these parts on this machine, shared out to so many processes.

    Memory: weights (with variants two models' at once; what adapters leave alone they share, which is not counted),
    means, a batch of rows at work, kept clean runs, and what Python and torch take.
    """
    per_minute = workers * sizes.speed.flop_per_second * 60
    costs = tuple(Cost(part.what, round(part.forwards), part.flop, part.flop / per_minute) for part in parts)
    settings, speed, base = sizes.settings, sizes.speed, sizes.base
    loading = sizes.n_models * speed.load_seconds / 60
    weights = speed.weights_gb * (2 if settings.variants else 1)
    slots = len(sizes.sample.clean_prompts.slot_names)
    means = slots * base.n_layers * base.n_heads * base.d_head * 8 * _SLOT_COPIES / 2**30
    prompts = settings.prompts
    n_kept = prompts.discovery + prompts.replication + prompts.evaluation + prompts.means
    clean = n_kept * (sizes.length * speed.kept_gb_per_token + speed.logits_gb)
    kept = max(min(settings.memory_gb, clean), *(part.kept_gb for part in parts))
    return PlannedCost(costs, workers * (weights + means + speed.run_gb + kept + _PYTHON_GB), loading)
