"""Which heads do it? The circuits that the plans find in the models, and those that the user gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import numpy as np

from circuitdiff.circuit import Circuit, Head
from circuitdiff.circuit_files import read_circuit
from circuitdiff.config.names import file_name
from circuitdiff.errors import naming
from circuitdiff.evaluation import check_groups
from circuitdiff.evaluation.roles import roles_everywhere
from circuitdiff.methods.auto_plan import SWEEPS_OF_A_GROUP
from circuitdiff.methods.discovery import Plan, Split, Stage, StageResult, circuit_of, gaps
from circuitdiff.readable import Readable
from circuitdiff.stats.selection import STABLE
from circuitdiff.study.common_units import EVALUATION
from circuitdiff.study.estimates import (
    Estimate,
    GroupHeads,
    HeadPlace,
    Number,
    estimate,
    groups_of,
    number,
    places,
    result_of,
    with_heads,
)
from circuitdiff.study.section import Part, Section, Sizes, StudyContext
from circuitdiff.study.sections.discovery_screen import Screening, screening_of
from circuitdiff.study.sections.discovery_units import family_results, searched
from circuitdiff.study.settings import plan_file, plans_of

NOTHING = Estimate(None, None, None)


@dataclass(frozen=True)
class DiscoveryOptions:
    """What is looked for is set by `plans` and `discover_in`. `false`: nothing, for sections that need no circuit."""


@dataclass(frozen=True, repr=False)
class Sweep(Readable):
    """One stage: every head's effect [layer, head], in the metric's unit, negative where it helps; and the choice.

    Effects and intervals are of the prompts of `split`: with "replication" they took no part in the choice but to
    confirm it; with "discovery" they are those that chose, and effects of chosen heads are too large. `adjusted_p`:
    over its family of tests, on the prompts that chose. `not_replicated`: heads that these chose, and others did not
    confirm.
    """

    name: str
    at: str
    via: Literal["q", "k", "v"] | None
    receivers: tuple[HeadPlace, ...]
    receivers_from: str | None
    receivers_at: str | None
    metric: str
    split: Split
    n_prompts: int  # of the split
    n_choosing: int  # of the split that chose
    noise_floor: float
    effects: tuple[tuple[Number, ...], ...]
    low: tuple[tuple[Number, ...], ...]
    high: tuple[tuple[Number, ...], ...]
    adjusted_p: tuple[tuple[Number, ...], ...]
    selected: tuple[HeadPlace, ...]
    hurting: tuple[HeadPlace, ...]
    not_replicated: tuple[HeadPlace, ...]
    rule: str
    stability: Estimate = NOTHING  # Jaccard with what resampled scenarios choose; see `Stability`
    screening: Screening | None = None  # None: every head was measured

    def __post_init__(self) -> None:
        tables = (self.effects, self.low, self.high, self.adjusted_p)
        if len({tuple(map(len, table)) for table in tables}) > 1:
            raise ValueError("expected effects, low, high and adjusted_p of one shape, layers x heads")


@dataclass(frozen=True, repr=False)
class FoundCircuit(Readable):
    """A circuit, and the stages that it was found in; one that the user gave has no plan, and counts as the base's.

    `gaps`: a line for each stage that chose no heads, or was not run for want of receivers; of an automatic plan one
    for all. `automatic`: by a search without roles, or by the plan that it wrote. `reached`: how far the search came:
    the circuit's logit difference as a share of that of all heads at all roles, both less that of no head, on the
    prompts that chose.
    """

    model: str
    plan: str | None
    metric: str | None
    groups: dict[str, GroupHeads]
    stages: tuple[Sweep, ...]
    gaps: tuple[str, ...] = ()
    automatic: Literal["search", "plan"] | None = None
    reached: Number = None

    @property
    def scores(self) -> dict[Head, float]:
        """Of each head with a reported effect the most negative one over the stages, in the metric's unit."""
        scores: dict[Head, float] = {}
        for stage in self.stages:
            for layer, row in enumerate(stage.effects):
                for head, effect in ((Head(layer, i), effect) for i, effect in enumerate(row) if effect is not None):
                    scores[head] = min(effect, scores.get(head, effect))
        return scores


class Discovered(NamedTuple):
    """A circuit as further sections use it."""

    model: str
    plan: str | None
    circuit: Circuit
    stages: Sequence[StageResult]
    steps: Plan | None = None  # of an automatic plan: all stages that its search in the base ran
    reached: float | None = None  # in that search, see `methods.auto_plan`
    roles: tuple[str, ...] = ()  # at which its sweeps share clean and counterfactual runs


async def run(study: StudyContext, _: DiscoveryOptions) -> dict[str, FoundCircuit]:
    """All plans in the base, the main one in its variants. A model's main circuit goes by the model's name.

    Each is also written to a file of its own in the run folder.
    """
    results = {}
    for name, each in (await _all_discovered(study)).items():
        plan = each.steps
        automatic = _automatic(study, each)
        if not each.circuit.roles:
            study.warn(f"circuit {name} has no heads, so it was not evaluated")
        missing = () if plan is None else tuple(gaps(plan, each.stages))
        if automatic:
            without = [result.stage.name for result in each.stages if result.stage.name not in each.circuit.groups]
            missing = (f"no group of their own: {', '.join(without) or 'none'}",)
        for gap in () if automatic else missing:
            study.warn(f"circuit {name}: {gap}")
        stages = tuple(map(sweep_of, each.stages))
        if shaky := [f"{x.name} {x.stability.value:.2f}" for x in stages if (x.stability.value or 1.0) < STABLE]:
            study.warn(
                f"circuit {name}: other prompts of the same kind would choose other heads (Jaccard over resampled "
                f"scenarios, where {STABLE} is called stable: {', '.join(shaky)})"
            )
        metric = None if plan is None else plan.metric
        if plan is not None and automatic == "search":
            study.store.write(f"plan-{file_name(str(each.plan))}.yaml", plan_file(str(each.plan), plan))
        how = missing, automatic, None if each.reached is None else number(each.reached)
        results[name] = FoundCircuit(each.model, each.plan, metric, groups_of(each.circuit), stages, *how)
        if plan is not None:
            of_variant = "" if each.model == study.base else f"@{file_name(each.model)}"
            study.store.write_json(f"circuit-{file_name(str(each.plan))}{of_variant}.json", each.circuit.to_dict())
    return results


def _automatic(study: StudyContext, found: Discovered) -> Literal["search", "plan"] | None:
    if found.plan is None or isinstance(study.plans[found.plan], Plan):
        return None
    return "search" if found.model == study.base else "plan"


def circuit_names(study: StudyContext) -> list[str]:
    """Every circuit of the study: what the plans look for, model by model, then those that the user gave."""
    _, *others = study.plans
    of_base = [study.base, *(f"{study.base} ({plan})" for plan in others)]
    return [*of_base, *study.settings.searched[1:], *study.settings.circuits]


async def circuits(study: StudyContext) -> dict[str, Circuit]:
    """Those that have heads."""
    return {name: each.circuit for name, each in (await _all_discovered(study)).items() if each.circuit.roles}


async def _all_discovered(study: StudyContext) -> dict[str, Discovered]:
    return await study.by_item(circuit_names(study), lambda name: discovered(study, name))


async def main_circuits(study: StudyContext) -> dict[str, Discovered]:
    """Each searched model's own main circuit, and those that the user gave: where they have heads, and only groups
    that have some.
    """
    names = [*study.settings.searched, *study.settings.circuits]
    results = await study.by_item(names, lambda name: discovered(study, name))
    return {
        name: each._replace(circuit=with_heads(each.circuit)) for name, each in results.items() if each.circuit.roles
    }


async def discovered(study: StudyContext, name: str) -> Discovered:
    return await study.once(_discovered, name, rank=(-1, circuit_names(study).index(name)))


async def _discovered(study: StudyContext, name: str) -> Discovered:
    if name in study.settings.circuits:
        return Discovered(study.base, None, await _given(study, name), ())
    main, *others = study.plans
    plan_name = next((plan for plan in others if name == f"{study.base} ({plan})"), main)
    model, rule = study.base if plan_name != main else name, study.plans[plan_name]
    if isinstance(rule, Plan):
        return await _by_plan(study, model, plan_name, rule)
    if model == study.base:
        search, reached, roles = await searched(study, model, rule)
        return Discovered(model, plan_name, search.circuit, tuple(search.results), search.plan, reached, roles)
    in_base = await discovered(study, study.base)
    assert in_base.steps is not None, "what a plan found has steps"
    found = await _by_plan(study, model, plan_name, in_base.steps)
    return found._replace(circuit=with_heads(found.circuit))


async def _by_plan(study: StudyContext, model: str, name: str, plan: Plan) -> Discovered:
    results = dict[str, StageResult]()
    for family in plan.families:
        found = await family_results(study, model, family, results, plan.metric, plan.roles)
        results |= {each.stage.name: each for each in found}
    stages = list(results.values())
    circuit = circuit_of(stages, plan.shared_heads)
    return Discovered(model, name, circuit, stages, plan, roles=tuple(plan.roles))


async def _given(study: StudyContext, name: str) -> Circuit:
    """Raises: InputError naming the file if it is no circuit, or names a head or a role that there is not."""
    path, base = study.settings.circuits[name], await study.facts(study.base)
    pairs = await study.pairs(study.base, EVALUATION)
    circuit = read_circuit(path, roles_everywhere(pairs))
    with naming(path):
        check_groups(circuit, base.n_layers, base.n_heads, pairs)
    return circuit


def sweep_of(result: StageResult) -> Sweep:
    stage, effects, selection = result.stage, result.reported, result.selection
    _, low, high = effects.intervals()
    rule = f"{type(selection.rule).__name__} " + ", ".join(f"{k}={v}" for k, v in asdict(selection.rule).items())
    return result_of(
        Sweep,
        stage,
        receivers=places(result.receivers),
        metric=effects.metric,
        split=result.split,
        n_prompts=len(effects.scenarios),
        n_choosing=len(result.found.scenarios),
        noise_floor=effects.noise_floor,
        effects=_table(effects.effects),
        low=_table(low),
        high=_table(high),
        adjusted_p=_table(selection.adjusted_p),
        selected=places(selection.helping),
        hurting=places(selection.hurting),
        not_replicated=places(selection.not_replicated),
        rule=rule,
        stability=estimate(result.stability()),
        screening=screening_of(result),
    )


def _table(values: object) -> tuple[tuple[Number, ...], ...]:
    """[layer, head]; None where a head was not measured."""
    rows = np.asarray(values, dtype=float).tolist()
    return tuple(tuple(None if value != value else value for value in row) for row in rows)


def cost(sizes: Sizes, _: DiscoveryOptions) -> Iterator[Part]:
    """Sweeps that plans share run once, and all share their clean and counterfactual runs."""
    prompts = sizes.settings.prompts
    splits = {split for plan in sizes.plans.values() for stage in plan.stages for split in stage.splits}
    n_runs = 2 * sizes.n_searched * sum(getattr(prompts, split) for split in splits)
    yield Part("runs that sweeps share", n_runs, sizes.passes(n_runs))
    parts, done = dict[str, Part](), set[tuple[Split, object]]()
    for name, plan in sizes.plans.items():
        n_more = 0 if isinstance(plans_of(sizes.settings)[name], Plan) else SWEEPS_OF_A_GROUP - 1  # in the base
        for stage in plan.stages:
            sweeps = {(split, _identity(plan, stage)) for split in stage.splits} - done
            n_prompts = sum(getattr(prompts, split) for split, _ in sweeps)
            runs = n_prompts * (n_more + (sizes.n_searched if plan is sizes.main else 1))
            part = sweep_cost(sizes, stage, runs * _heads_measured(sizes, stage))
            before = parts.get(part.what, Part(part.what, 0, 0))
            parts[part.what] = Part(part.what, before.forwards + part.forwards, before.flop + part.flop)
            done |= sweeps
    yield from parts.values()


def _identity(plan: Plan, stage: Stage) -> tuple[object, ...]:
    """What the effects of a stage follow from: its path, and how the receivers were chosen."""
    sender = next((each for each in plan.stages if each.name == stage.receivers_from), None)
    receivers = None if sender is None else (sender.select, sender.n_receivers, _identity(plan, sender))
    return stage.at, stage.via, stage.receivers_at, plan.metric, stage.screened_by, receivers


def _heads_measured(sizes: Sizes, stage: Stage) -> float:
    """A screen measures what it keeps and the sample, and again a tenth; of `auto` nobody knows: a quarter of all."""
    n_heads, screen = sizes.base.n_layers * sizes.base.n_heads, stage.screened_by
    if screen is None:
        return n_heads
    kept = n_heads / 4 if screen.keep is None else screen.keep
    return min(n_heads, kept + screen.sample + 0.1 * n_heads) / len(stage.splits)


def sweep_cost(sizes: Sizes, stage: Stage, runs: float) -> Part:
    """A sender in layer l costs one token in the layers above, then the second run's window."""
    width = 0.0 if stage.via is None else sizes.width(stage.receivers_at or stage.at)
    what = f"{stage.name} (at {stage.at}{'' if stage.via is None else f', via {stage.via}'})"
    return Part(what, runs * (1 if stage.via is None else 2), sizes.runs(runs, 1 + width, layers=0.5))


SECTION = Section("discovery", DiscoveryOptions, dict[str, FoundCircuit], run, cost)
