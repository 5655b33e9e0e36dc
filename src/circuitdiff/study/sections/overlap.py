"""Is a variant's circuit the base's? Heads in common, how alike effects are, edges, and what groups do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from circuitdiff.circuit import Circuit, circuit_overlap, total_overlap
from circuitdiff.circuit import Overlap as CommonHeads
from circuitdiff.config.settings import Name, Prompts
from circuitdiff.errors import InputError, choices
from circuitdiff.evaluation.roles import everywhere
from circuitdiff.methods.attention import attention_to_roles
from circuitdiff.methods.discovery import StageResult
from circuitdiff.methods.edges import Edge, edge_effects, possible_edges
from circuitdiff.methods.group_profile import effect_by_role
from circuitdiff.methods.path_patching import Via
from circuitdiff.prompts import Pairs
from circuitdiff.readable import Readable
from circuitdiff.stats.effect_maps import likeness, reliability, strongest_in_common
from circuitdiff.stats.intervals import cluster_p_values, false_discovery_adjusted, mean_interval
from circuitdiff.study.costs import edges_flop, group_work_flop
from circuitdiff.study.estimates import Estimate, HeadPlace, Number, Ratio, estimate, number, ratio, with_heads
from circuitdiff.study.preflight import check_scenarios
from circuitdiff.study.records import GroupWork
from circuitdiff.study.section import LoadedModel, Outlined, Part, PromptsOf, Section, Sizes, StudyContext
from circuitdiff.study.sections.discovery import Discovered, discovered, sweep_cost
from circuitdiff.study.sections.overlap_maps import MapOf, TwoMaps, maps_of, two_maps
from circuitdiff.study.sections.overlap_profiles import Profile, SameWork, profiles, same_work
from circuitdiff.tasks import Task

_KS = (5, 10, 20, 40)


@dataclass(frozen=True)
class OverlapOptions:
    """A variant's circuit against the base's.

    `same_again`: a variant that is the base trained again, with another seed. How like the base it is stands as the
    ceiling beside every other variant.
    """

    prompts: Prompts = 100  # of the evaluation prompts; for edges and for what groups do
    same_again: Name | None = None


@dataclass(frozen=True)
class GroupOverlap:
    """How many heads a group has in base and variant, and in common; shares are None where they would divide by 0."""

    group: str | None  # None: the whole circuits; a head is common if it is in any group at the same role
    base: int
    variant: int
    common: int
    precision: Number
    recall: Number
    jaccard: Number


@dataclass(frozen=True)
class StrongestInCommon:
    """Jaccard index of the k heads that help most on one half of the prompts with those on the other: means over random
    halvings, without an error. `between`: one half from each model. `base`, `variant`: both from one.
    """

    k: int
    between: Number
    base: Number
    variant: Number
    chance: Number  # of random sets of these sizes


@dataclass(frozen=True)
class ChangedHead:
    """A head whose effect differs between base and variant, in the metric's unit. Negative difference: helps more.

    Like the heads of a circuit it is chosen on the discovery prompts (`adjusted_p`, over the whole map) and reported on
    those of the replication, if the stage has them, where its interval must lie on the same side of 0.
    """

    head: HeadPlace
    base: Number
    variant: Number
    difference: Estimate
    adjusted_p: Number


@dataclass(frozen=True)
class StageOverlap:
    """Effects of every head in base and variant, into whatever receivers each model's own plan chose.

    `likeness`: the correlation of the two maps, corrected for the noise of both. `reliability`: what each map's own
    correlation with as many other prompts would be.
    """

    stage: str
    same_receivers: bool
    n_chosen: tuple[int, int]
    likeness: Ratio
    different: Ratio | None  # the largest likeness to the variant's map of another stage: a control
    ceiling: Ratio | None  # the likeness of the base to itself trained again
    base_reliability: Estimate
    variant_reliability: Estimate
    strongest: tuple[StrongestInCommon, ...]
    changed: tuple[ChangedHead, ...]
    smallest_change: float


@dataclass(frozen=True)
class EdgeOverlap:
    """Mean effect along an edge of the base's circuit in base and variant, in logits; negative where it helps.

    `adjusted_p`: of no difference, false discoveries controlled over all edges.
    """

    sender: str
    receiver: str | None  # None: the logits
    via: Via | None
    base: Estimate
    variant: Estimate
    difference: Estimate
    adjusted_p: Number


@dataclass(frozen=True, repr=False)
class VariantOverlap(Readable):
    """None where the plan was not run in the variant (the first three; `moved`), or a circuit has no heads."""

    groups: tuple[GroupOverlap, ...] | None = None
    stages: tuple[StageOverlap, ...] | None = None
    not_run: tuple[str, ...] | None = None  # stages of the base that the variant lacks
    edges: tuple[EdgeOverlap, ...] | None = None
    profiles: dict[str, Profile] | None = None
    n_scenarios: int | None = None  # of edges and profiles
    moved: tuple[SameWork, ...] | None = None


async def run(study: StudyContext, options: OverlapOptions) -> dict[str, VariantOverlap]:
    """By variant: its own circuit, where the main plan was run in it, and the base's edges and groups in every one."""
    results = await study.by_item(study.variants, lambda variant: _overlap(study, variant, options))
    compared = {variant: result for variant, result in results.items() if result is not None}
    again = options.same_again
    return {
        variant: result if again in (None, variant) else _with_ceiling(result, compared[again])
        for variant, result in compared.items()
    }


def _with_ceiling(result: VariantOverlap, again: VariantOverlap) -> VariantOverlap:
    """Stage by stage, the likeness of the base to itself trained again."""
    ceilings = {stage.stage: stage.likeness for stage in again.stages or ()}
    stages = result.stages and tuple(replace(stage, ceiling=ceilings.get(stage.stage)) for stage in result.stages)
    return replace(result, stages=stages)


async def _overlap(study: StudyContext, variant: str, options: OverlapOptions) -> VariantOverlap | None:
    base = await discovered(study, study.base)
    own = await discovered(study, variant) if variant in study.settings.searched else None
    parts: dict[str, Any] = {} if own is None else await _searched(study, base, own)
    if base.circuit.roles:
        work = [(study.base, base.circuit, True), (variant, base.circuit, True)]
        if own is not None and own.circuit.roles:
            work.append((variant, own.circuit, False))
        prompts = PromptsOf("evaluation", first=options.prompts)
        in_base, in_variant, *of_own = await study.each(work, lambda which: _measured(study, *which, prompts))
        pairs = await study.pairs(study.base, prompts)
        roles, scenarios = _roles(study.task, pairs), pairs.scenarios
        parts |= {
            "edges": edges_compared(in_base, in_variant, scenarios),
            "profiles": profiles(roles, in_base, in_variant, scenarios),
            "n_scenarios": len(scenarios.unique()),
        }
        if of_own:
            parts["moved"] = same_work(in_base, of_own[0], scenarios)
    return VariantOverlap(**parts) if parts else None


def _roles(task: Task, pairs: Pairs) -> tuple[str, ...]:
    """Of the task's, those that every clean and counterfactual prompt has; no segment's in particular."""
    return tuple(role for role in task.roles if "." not in role and everywhere(role, pairs))


async def _measured(
    study: StudyContext, model: str, circuit: Circuit, with_edges: bool, prompts: PromptsOf
) -> GroupWork:
    pairs, tested = await study.pairs(model, prompts), with_heads(circuit)
    edges = tuple(possible_edges(tested.groups, pairs)) if with_edges else ()
    title, roles = f"what groups do in {model}", _roles(study.task, pairs)
    return await study.value(title, group_work, model, prompts=prompts, circuit=tested, edges=edges, roles=roles)


def group_work(
    subject: LoadedModel, *, prompts: PromptsOf, circuit: Circuit, edges: tuple[Edge, ...], roles: tuple[str, ...]
) -> GroupWork:
    """Effects along edges between groups; where groups attend, and where what they write matters, by role."""
    model, groups, pairs, executor = subject.model, circuit.groups, subject.pairs(prompts), subject.executor
    along = edge_effects(model, groups, edges, pairs, executor, subject.memory_gb)
    attention = attention_to_roles(model, circuit, pairs, roles, memory_gb=subject.memory_gb)
    effects = effect_by_role(model, groups, pairs, roles, executor, subject.memory_gb)
    # nothing goes to roles that come after the query
    mean = {name: each.attention[..., :-1].nan_to_num().mean(0) for name, each in attention.items()}
    return GroupWork(dict(zip(edges, along, strict=True)), mean, effects)


async def _searched(study: StudyContext, base: Discovered, variant: Discovered) -> dict[str, Any]:
    """Where the plan was run in both models: heads in common, and effects stage by stage."""
    of_variant = maps_of(variant)
    in_variant = {each.result.stage: each for each in of_variant}
    stages = [each for each in maps_of(base) if each.result.stage in in_variant]
    of_groups = (_group(name, heads) for name, heads in circuit_overlap(base.circuit, variant.circuit).items())

    async def compared(each: MapOf) -> StageOverlap:
        return await _stage(study, each, in_variant[each.result.stage], of_variant)

    return {
        "groups": (*of_groups, _group(None, total_overlap(base.circuit, variant.circuit))),
        "stages": tuple(await study.each(stages, compared)),
        "not_run": tuple(result.stage.name for result in base.stages if result.stage not in in_variant),
    }


def _group(name: str | None, heads: CommonHeads) -> GroupOverlap:
    shares = (number(share) for share in (heads.precision, heads.recall, heads.jaccard))
    return GroupOverlap(name, *heads, *shares)


async def _stage(study: StudyContext, base: MapOf, variant: MapOf, all_of_variant: Sequence[MapOf]) -> StageOverlap:
    maps = await two_maps(study, base, variant)
    first, second = (each.per_prompt.double().numpy() for each in maps.found)
    scenarios = maps.found[0].scenarios.numpy()
    sizes = {len(each.result.selection.helping) for each in (base, variant)} - {0}
    common = strongest_in_common(first, second, scenarios, sorted({*_KS, *sizes}))
    reliabilities = (estimate(reliability(each, scenarios, maps.weights)) for each in (first, second))
    return StageOverlap(
        stage=base.result.stage.name,
        same_receivers=set(base.result.receivers) == set(variant.result.receivers),
        n_chosen=(len(base.result.selection.helping), len(variant.result.selection.helping)),
        likeness=ratio(likeness(first, second, scenarios, maps.weights)),
        different=_different(base.result, [each.result for each in all_of_variant]),
        ceiling=None,
        base_reliability=next(reliabilities),
        variant_reliability=next(reliabilities),
        strongest=tuple(StrongestInCommon(k, *map(number, shares)) for k, shares in common.items()),
        changed=tuple(_changed(maps)),
        smallest_change=maps.smallest_change,
    )


def _changed(maps: TwoMaps) -> Iterator[ChangedHead]:
    """Of the heads that were chosen as changed, those whose change shows again where effects are reported."""
    base, variant = (each.per_prompt.double().numpy() for each in maps.reported)
    differences = mean_interval(variant - base, maps.reported[0].scenarios.numpy())
    for change in maps.changes:
        place = change.head.layer, change.head.index
        value, low, high = (float(np.asarray(bound)[place]) for bound in differences)
        if (high < 0) if change.difference < 0 else (low > 0):
            in_base, in_variant = (number(effects[place].mean()) for effects in (base, variant))
            yield ChangedHead(place, in_base, in_variant, Estimate(value, low, high), change.adjusted_p)


def _different(first: StageResult, others: Sequence[StageResult]) -> Ratio | None:
    """The largest likeness to another stage's map, which is another circuit's; None if none is defined.

    Heads that a screen left out count as without an effect, since one map's heads are not the other's.
    """
    effects, scenarios = (first.found.per_prompt.double().nan_to_num().numpy(), first.found.scenarios.numpy())
    maps = [other.found.per_prompt.double().nan_to_num().numpy() for other in others if other.stage != first.stage]
    compared = [likeness(effects, other, scenarios) for other in maps]
    defined = [each for each in compared if each.undefined is None]
    return ratio(max(defined, key=lambda each: each.value)) if defined else None


def edges_compared(in_base: GroupWork, in_variant: GroupWork, scenarios: Tensor) -> tuple[EdgeOverlap, ...]:
    """Effects along each edge of the base's circuit, on the same prompts."""
    if not in_base.edges:
        return ()
    clusters = scenarios.numpy()
    base, variant = (
        np.stack([work.edges[edge].double().numpy() for edge in in_base.edges]) for work in (in_base, in_variant)
    )
    adjusted = false_discovery_adjusted(cluster_p_values(variant - base, clusters, n_flips=1).p)
    return tuple(
        EdgeOverlap(
            *edge,
            base=estimate(mean_interval(first, clusters)),
            variant=estimate(mean_interval(second, clusters)),
            difference=estimate(mean_interval(second - first, clusters)),
            adjusted_p=number(p),
        )
        for edge, first, second, p in zip(in_base.edges, base, variant, adjusted, strict=True)
    )


def cost(sizes: Sizes, options: OverlapOptions) -> Iterator[Part]:
    """What groups do: the base's in every model, along edges, too, and a searched variant's own.

    Of screened stages a tenth of the heads is measured for the other model's map, in both models of a pair.
    """
    if not sizes.settings.variants:
        return
    pairs = sizes.prompts.pairs(PromptsOf("evaluation", first=options.prompts))
    with_edges, work = sizes.n_models, sizes.n_models + sizes.n_searched - 1
    flop = work * group_work_flop(sizes, pairs, _roles(sizes.task, pairs)) + with_edges * edges_flop(sizes, pairs)
    yield Part("overlap", work * len(pairs) * len(sizes.groups) * len(_roles(sizes.task, pairs)), flop)
    n_heads, searched = sizes.base.n_layers * sizes.base.n_heads, sizes.n_searched - 1
    for stage in sizes.main.stages if searched else ():
        if stage.screened_by is not None:
            more = sweep_cost(sizes, stage, 2 * searched * 0.1 * n_heads * sizes.settings.prompts.discovery)
            yield more._replace(what=f"overlap, {more.what}")


def check(outlined: Outlined, options: OverlapOptions) -> None:
    """Maps of effects need scenarios to repeat themselves in, and the ceiling a variant that has a map."""
    settings, again = outlined.settings, options.same_again
    searched = settings.searched[1:]
    if again is not None and again not in searched:
        what = f"overlap.same_again names {again!r}, no variant of this study whose own circuit is looked for"
        raise InputError(f"{what}{choices(again, searched)}")
    if settings.variants:
        check_scenarios("prompts.discovery", settings.prompts.discovery, settings.prompts.queries_per_scenario, 3)


SECTION = Section("overlap", OverlapOptions, dict[str, VariantOverlap], run, cost, check)
