"""An automatic plan: which stages to run follows from what the stages before them found.

1. Heads straight into the logits, at the last token.
2. Of the groups found so far that were not looked into, that with the largest effect for the tokens that are computed
   anew when it receives, which are those from its role to the end: heads that feed its queries, at its role; and heads
   that feed its keys and values, at every role to which one of its heads attends and which comes before it in every
   prompt. All of these are one family of tests.
3. 2 again, until the circuit does enough of what all heads at all roles do, no group is left, or there are enough.

Source: done by hand in Wang et al. 2023 (arXiv:2211.00593) and Prakash et al. 2024 (arXiv:2402.14811).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Annotated, Literal

from pydantic import Field

from circuitdiff.circuit import Circuit, Group
from circuitdiff.config.settings import Count, Share
from circuitdiff.engine import Model
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB
from circuitdiff.errors import InputError
from circuitdiff.evaluation import Evaluation, Means, evaluate_circuits
from circuitdiff.evaluation.roles import LAST, roles_everywhere
from circuitdiff.evaluation.shapes import all_heads
from circuitdiff.methods.attention import AttentionToRoles, attention_to_roles
from circuitdiff.methods.discovery import Plan, Stage, StageResult, circuit_of, discover_family, measure_with
from circuitdiff.methods.path_patching import Via
from circuitdiff.methods.screening import Screen
from circuitdiff.prompts import Pairs
from circuitdiff.readable import Readable
from circuitdiff.stats.intervals import mean_interval
from circuitdiff.stats.metrics import MetricName
from circuitdiff.stats.selection import Discoveries

SWEEPS_OF_A_GROUP = 8  # that a search runs for each group that it finds, as costs have it


@dataclass(frozen=True, repr=False)
class AutoPlan(Readable):
    """A plan that names no roles: each stage follows from what was found before; see `find_circuit`.

    `attended`: the share of a head's attention, on average, from which on a role is looked at. `enough`: the share of
    what all heads at all roles do (logit difference, all else at kind means) at which the search ends; it may exceed 1.
    """

    select: Discoveries = field(default_factory=Discoveries)
    screen: Screen | Literal["auto"] | None = "auto"
    metric: MetricName = "logit_difference"
    attended: Share = 0.05
    enough: Annotated[float, Field(gt=0)] = 0.9
    most_groups: Count = 12
    n_receivers: Count | None = None  # how many of a group's strongest heads receive; None: all

    def expected(self, roles: Sequence[str]) -> Plan:
        """As many groups as a search may find, by which its cost is reckoned: all feed the heads at the last token."""
        [first] = self.stages(None, ())
        others = self.stages(first, [role for role in roles if "." not in role and role != LAST])
        return self.plan([first, *others][: self.most_groups])

    def stages(self, receivers: Stage | None, roles: Sequence[str], known: Collection[Stage] = ()) -> list[Stage]:
        """All that could feed a stage's heads, which attend to `roles`; or the logits. No two of all have one name."""
        if receivers is None:
            return [self._stage(f"{LAST}_to_logits", LAST)]
        names, found = {stage.name for stage in known}, list[Stage]()
        paths: list[tuple[str, Via]] = [(receivers.at, "q"), *((role, via) for role in roles for via in ("k", "v"))]
        for at, via in paths:
            name = f"{at}_to_{via}_of_{receivers.at}"
            numbered = (name if i == 1 else f"{name}_{i}" for i in count(1))
            where = {"receivers_from": receivers.name, "receivers_at": None if via == "q" else receivers.at}
            found.append(self._stage(next(each for each in numbered if each not in names), at, via=via, **where))
        return found

    def plan(self, stages: Sequence[Stage]) -> Plan:
        """Of these stages, as discovery runs it."""
        return Plan(tuple(stages), self.metric, shared_heads="earlier", adjusted_over="receivers")

    def _stage(self, name: str, at: str, **more: object) -> Stage:
        return Stage(name, at, self.select, screen=self.screen, n_receivers=self.n_receivers, **more)  # pyright: ignore


class Search:
    """What an automatic plan has found so far, and where it looks next. `windows`: see `windows_of`."""

    def __init__(self, rule: AutoPlan, windows: Mapping[str, float]) -> None:
        self._rule, self._windows = rule, windows
        self.results: list[StageResult] = []  # of all stages that were run, in order
        self._looked_into: list[Stage | None] = []

    @property
    def circuit(self) -> Circuit:
        """Groups that have heads of their own."""
        groups = circuit_of(self.results, "earlier").groups
        return Circuit({name: group for name, group in groups.items() if group.heads})

    @property
    def plan(self) -> Plan:
        """Every stage that was run, so that as many heads are tested when it is run again."""
        return self._rule.plan([each.stage for each in self.results])

    @property
    def empty(self) -> list[Stage]:
        """Stages that added no group: no heads, only such as were found before, or no room."""
        return [each.stage for each in self.results if each.stage.name not in self.circuit.groups]

    def receivers(self) -> StageResult | None:
        """The group to be looked into next; None once nothing is left or there are enough groups."""
        groups = self.circuit.groups
        left = [each for each in self.results if each.stage.name in groups and each.stage not in self._looked_into]
        if not left or len(groups) >= self._rule.most_groups:
            return None
        return max(left, key=lambda each: _strength(each, groups[each.stage.name]) / self._windows[each.stage.at])

    def look_into(self, receivers: StageResult | None, roles: Sequence[str]) -> list[Stage]:
        """What feeds these heads, which attend to `roles`; or the logits."""
        stage = None if receivers is None else receivers.stage
        self._looked_into.append(stage)
        return self._rule.stages(stage, roles, [each.stage for each in self.results])

    def add(self, family: Sequence[StageResult]) -> None:
        """As long as there is room for a group; of too many the strongest."""
        before = len(self.circuit.groups)
        self.results += family
        groups = self.circuit.groups
        new = [each for each in family if each.stage.name in groups]
        ranked = sorted(new, key=lambda each: _strength(each, groups[each.stage.name]), reverse=True)
        no_room = [each.stage for each in ranked[max(0, self._rule.most_groups - before) :]]
        self.results = [
            replace(each, stage=replace(each.stage, in_circuit=False)) if each.stage in no_room else each
            for each in self.results
        ]


def _strength(result: StageResult, group: Group) -> float:
    """Of the heads that are the group's own."""
    return sum(-float(result.found.effects[head.layer, head.index]) for head in group.heads)


@dataclass(frozen=True, repr=False)
class FoundPlan(Readable):
    """What an automatic plan found: the circuit, the plan with all stages that were run, and what each measured.

    `reached`: the circuit's logit difference as a share of that of all heads at all roles, both less that of no head,
    on the prompts that chose the heads; nan where all heads do not surely more than none.
    """

    plan: Plan
    circuit: Circuit
    stages: tuple[StageResult, ...]
    reached: float


def find_circuit(
    model: Model,
    splits: Mapping[str, Pairs],
    means: Means,
    rule: AutoPlan | None = None,
    *,
    memory_gb: float = DEFAULT_MEMORY_GB,
) -> FoundPlan:
    """Finds a circuit without being told at which roles to look.

    `splits`: prompts for "discovery" and, unless the rule is `Discoveries(replicated=False)`, for "replication".
    `means`: of every head, which stand in for the heads outside the circuit where it is asked whether that does enough.
    Best by kind (`mean_activations(..., by="kind")`): means by slot say which slot it is, and so do the work of heads
    that write that, which the search would then end without.

    Raises: InputError if there are no prompts for discovery, or as `discover` and `evaluate_circuits` do.
    """
    rule = rule or AutoPlan()
    if "discovery" not in splits:
        raise InputError(f"expected prompts for 'discovery'; got splits {', '.join(splits) or 'none'}")
    pairs, roles = splits["discovery"], roles_everywhere(*splits.values())
    rule.expected(roles).check()
    measure, search = measure_with(model, splits, metric=rule.metric, roles=roles), Search(rule, windows_of(pairs))
    receivers, attended = None, ()
    while True:
        known = {each.stage.name: each for each in search.results}
        search.add(discover_family(search.look_into(receivers, attended), measure, known))
        circuits = [Circuit({}), search.circuit, all_heads(model.n_layers, model.n_heads, roles)]
        reached = share_reached(evaluate_circuits(model, circuits, pairs, means, memory_gb=memory_gb))
        receivers = None if reached >= rule.enough else search.receivers()
        if receivers is None:
            return FoundPlan(search.plan, search.circuit, tuple(search.results), reached)
        before = roles_before(receivers.stage.at, roles, splits.values())
        looking = attention_to_roles(model, as_circuit(receivers), pairs, before, memory_gb=memory_gb)
        attended = attended_roles(looking["receivers"], rule.attended)


def roles_before(at: str, roles: Sequence[str], splits: Iterable[Pairs]) -> list[str]:
    """Those which what is at `at` could read in every prompt; a role that comes later in some is not looked at."""
    every = list(splits)
    return [role for role in roles if all(bool((p.positions[role] <= p.positions[at]).all()) for p in every)]


def windows_of(pairs: Pairs) -> dict[str, float]:
    """How many tokens there are from a role to the end, on average, by role."""
    ends = pairs.positions[LAST] + 1
    return {role: float((ends - at).double().mean()) for role, at in pairs.positions.items()}


def as_circuit(receivers: StageResult) -> Circuit:
    return Circuit({"receivers": Group(receivers.stage.at, receivers.as_receivers)})


def attended_roles(attention: AttentionToRoles, share: float) -> tuple[str, ...]:
    """The roles to which some head gives that share of its attention."""
    most = attention.attention[..., :-1].double().nanmean(1).nan_to_num(0.0).amax(0).tolist()
    return tuple(role for role, given in zip(attention.roles, most, strict=True) if given >= share)


def share_reached(answers: Sequence[Evaluation]) -> float:
    """Of no head, the circuit, and everything: where the circuit lies between the others; see `FoundPlan`."""
    nothing, circuit, ceiling = (each.logit_differences.double().numpy() for each in answers)
    if not mean_interval(ceiling - nothing, answers[0].scenarios.numpy()).low > 0:
        return float("nan")
    return float((circuit - nothing).mean() / (ceiling - nothing).mean())
