"""What caused a gain? The better model's weights in the worse one, part by part."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from circuitdiff.circuit import Circuit, Group
from circuitdiff.config.settings import Count, Draws, Prompts
from circuitdiff.engine.by_token import BY_TOKEN
from circuitdiff.engine.weights import Projection
from circuitdiff.errors import InputError, naming
from circuitdiff.evaluation import Evaluation
from circuitdiff.evaluation.shapes import has_others, random_group
from circuitdiff.methods.graft import ALL_PROJECTIONS, KINDS, Graft, Grafting, graft_alone, graft_several, layer_ranges
from circuitdiff.methods.graft_by_role import OTHER_TOKENS, graft_by_role
from circuitdiff.readable import Readable
from circuitdiff.stats.shapley import needed_subsets
from circuitdiff.study.costs import PlannedMixtures
from circuitdiff.study.estimates import GroupHeads, HeadPlace, groups_of, places, with_heads
from circuitdiff.study.gains import (
    ControlResult,
    Direction,
    GainShares,
    GraftControl,
    RandomGroups,
    RunResult,
    control_result,
    direction_of,
    gain_shares,
    random_groups,
    run_result,
)
from circuitdiff.study.section import LoadedModel, Outlined, Part, PromptsOf, Section, Sizes, StudyContext
from circuitdiff.study.sections.discovery import discovered

_HELD_AGAINST_DONOR = 8  # prompts, of a whole graft and of the donor


@dataclass(frozen=True)
class GraftOptions:
    """Weight grafting of a circuit's groups and of the rest of the model by kind; and along other axes.

    Questions about one scenario share the run of what they have in common, so several cost little more than one.
    """

    prompts: Prompts = 200  # questions about the first evaluation scenarios
    queries_per_scenario: Count | None = None  # None: the study's; a verdict needs 50 scenarios
    projections: Annotated[tuple[Projection, ...], Field(min_length=1)] = ALL_PROJECTIONS
    heads: bool = False  # also the single heads of the group with the largest share
    layers: tuple[int, ...] | None = None  # also ranges of layers, beginning here; None: halves; (): none
    matrices: bool = True  # also by kind of matrix: q, k, v, o, into and out of the MLPs
    # Also the donor's weights at the tokens of these roles only, which takes longer; None: at the circuit's roles.
    roles: tuple[str, ...] | None = ()
    random_groups: Draws = 100  # fewer have no rank, so no part is called improved
    without_gain: Prompts = 100  # prompts for pairs of models of which none is better at 95 %


@dataclass(frozen=True)
class GraftedParts(GainShares):
    """One division of the weights into parts."""

    unchanged: tuple[str, ...]  # parts whose weights are the same in both models
    also_touched: dict[str, tuple[HeadPlace, ...]]  # query heads beyond a part's own that its keys and values serve
    whole_graft_error: float  # everything grafted against the donor itself, relative to the largest logit
    runs: tuple[RunResult, ...]


@dataclass(frozen=True)
class GraftedHeads(GraftedParts):
    group: str  # whose heads are the parts


@dataclass(frozen=True, repr=False)
class GraftResult(Readable, GraftedParts):
    """Of a variant: the groups of the base's circuit, and all else by kind."""

    groups: dict[str, GroupHeads]
    heads: GraftedHeads | None
    layers: GraftedParts | None  # by ranges of whole layers
    matrices: GraftedParts | None  # by kind of matrix, in all layers
    roles: GraftedParts | None  # all weights, at some tokens
    controls: dict[str, dict[GraftControl, RandomGroups | ControlResult]]  # of one group, if there is a gain


async def run(study: StudyContext, options: GraftOptions) -> dict[str, GraftResult]:
    """The better model's weights grafted onto the worse one; without a gain on fewer prompts, and without controls.

    Nothing if the base's circuit has no heads.
    """
    circuit = with_heads((await discovered(study, study.base)).circuit)

    async def grafted(variant: str) -> GraftResult:
        return await _Grafts(study, options, circuit, await direction_of(study, variant)).result()

    return await study.by_item(study.variants if circuit.roles else [], grafted)


@dataclass(frozen=True)
class _Grafts:
    """Of the circuit's groups, from the donor into the recipient."""

    study: StudyContext
    options: GraftOptions
    circuit: Circuit
    between: Direction

    async def result(self) -> GraftResult:
        options = self.options
        axes = {"layers": options.layers, "matrices": options.matrices}
        by_group, *others = await self._ran("", grafts, parts=self.circuit, projections=options.projections, **axes)
        result, asked = self._parts(by_group), [axis for axis, wanted in axes.items() if wanted not in ((), False)]
        by_axis = {axis: self._parts(each) for axis, each in zip(asked, others, strict=True)}
        scenarios = by_group.recipient.scenarios
        chooses = torch.isin(scenarios, scenarios.unique()[::2])  # every other scenario; the rest tests the choice
        choosing, testing = (prompts.nonzero()[:, 0] for prompts in (chooses, ~chooses))
        best = max(self.circuit.groups, key=lambda name: int(by_group.runs[frozenset([name])].hits[choosing].sum()))
        at_once: list[Callable[[], Awaitable[Any]]] = [
            lambda: self._heads(best),
            lambda: self._controls(best, by_group, testing),
            self._roles,
        ]
        heads, controls, roles = await self.study.each(at_once, lambda work: work())
        return GraftResult(
            **vars(result),
            groups=groups_of(self.circuit),
            heads=heads,
            layers=by_axis.get("layers"),
            matrices=by_axis.get("matrices"),
            roles=roles,
            controls=controls,
        )

    async def _heads(self, group: str) -> GraftedHeads | None:
        if not self.options.heads:
            return None
        axes, projections = {"layers": (), "matrices": False}, self.options.projections
        [by_head] = await self._ran(
            ", heads", grafts, parts=self.circuit.groups[group], projections=projections, **axes
        )
        return GraftedHeads(**vars(self._parts(by_head)), group=group)

    async def _roles(self) -> GraftedParts | None:
        roles = self.options.roles
        if roles == ():
            return None
        roles = self.circuit.roles if roles is None else roles
        return self._parts(await self._ran(", by role", grafted_by_role, roles=tuple(roles)))

    async def _ran(self, more: str, unit: Callable[..., Any], **arguments: Any) -> Any:
        """What the unit returns; `more`: to its title."""
        options, donor, recipient = self.options, self.between.donor, self.between.recipient
        first = options.prompts if self.between.gains else min(options.without_gain, options.prompts)
        prompts = PromptsOf("evaluation", first=first, queries_per_scenario=options.queries_per_scenario)
        arguments |= {"prompts": prompts}
        title = f"weights of {donor} in {recipient}{more}"
        return await self.study.value(title, unit, recipient, donor, **arguments)

    async def _controls(
        self, best: str, graft: Graft, testing: Int[Tensor, " half"]
    ) -> dict[str, dict[GraftControl, RandomGroups | ControlResult]]:
        """Random heads of the same layers, and those that share the group's keys and values.

        Each is grafted in the stead of the group that brings most (`best`), which is chosen on other prompts than those
        of the comparison (`testing`). `graft`: of the group itself.
        """
        if not (self.options.random_groups and self.between.gains):
            return {}
        facts, g = await self.study.facts(self.between.recipient), torch.Generator()
        g.manual_seed(self.study.settings.seed)
        group, touched = self.circuit.groups[best], graft.parts[best].also_touched
        chosen: dict[GraftControl, tuple[Group, ...]] = {}
        if has_others(group.heads, facts.n_layers, facts.n_heads):
            # heads that read the group's own keys and values would not be a control
            sizes = (facts.n_layers, facts.n_heads, g)
            drawn = (random_group(group, *sizes, besides=touched) for _ in range(self.options.random_groups))
            chosen["same_layers"] = tuple(drawn)
        if touched:
            chosen["shared_kv"] = (Group(group.at, touched),)

        async def ran(name: GraftControl) -> RandomGroups | ControlResult:
            more = f", {'random heads' if name == 'same_layers' else 'other readers'} for {best}"
            projections = self.options.projections
            answers = await self._ran(more, grafted_groups, groups=chosen[name], projections=projections)
            donor, nothing, own, *controls = (
                each.select(testing) for each in (graft.donor, graft.recipient, graft.runs[frozenset([best])], *answers)
            )
            if name == "shared_kv":
                return control_result(donor, nothing, controls[0])
            return random_groups(donor, nothing, own, controls)

        return {best: await self.study.by_item(chosen, ran)}

    def _parts(self, graft: Graft) -> GraftedParts:
        touched = {name: part.also_touched for name, part in graft.parts.items() if part.also_touched}
        return GraftedParts(
            **vars(gain_shares(self.between, graft.donor, graft.order, graft.attribution)),
            unchanged=graft.unchanged,
            also_touched={name: places(heads) for name, heads in touched.items()},
            whole_graft_error=graft.whole_graft_error,
            runs=tuple(run_result(subset, answers, graft.order) for subset, answers in graft.runs.items()),
        )


def grafts(
    recipient: LoadedModel,
    donor: LoadedModel,
    *,
    prompts: PromptsOf,
    parts: Circuit | Group,
    layers: tuple[int, ...] | None,
    matrices: bool,
    projections: tuple[Projection, ...],
) -> list[Graft]:
    """By a circuit's groups, or a group's single heads; by ranges of layers; by matrices. Runs share what they can."""
    divisions, pairs = [Grafting(parts, projections, per_head=isinstance(parts, Group))], recipient.pairs(prompts)
    if layers != ():
        divisions.append(Grafting(layer_ranges(recipient.model.n_layers, layers), projections))
    if matrices:
        divisions.append(Grafting("matrices", projections))
    several = graft_several(donor.model, recipient.model, divisions, pairs, progress=recipient.progress)
    without_slices = ({name: replace(part, slices=()) for name, part in each.parts.items()} for each in several)
    return [replace(each, parts=parts) for each, parts in zip(several, without_slices, strict=True)]


def grafted_by_role(recipient: LoadedModel, donor: LoadedModel, *, prompts: PromptsOf, roles: tuple[str, ...]) -> Graft:
    return graft_by_role(donor.model, recipient.model, roles, recipient.pairs(prompts), progress=recipient.progress)


def grafted_groups(
    recipient: LoadedModel,
    donor: LoadedModel,
    *,
    prompts: PromptsOf,
    groups: tuple[Group, ...],
    projections: tuple[Projection, ...],
) -> list[Evaluation]:
    """One group at a time."""
    pairs, progress = recipient.pairs(prompts), recipient.progress
    return graft_alone(donor.model, recipient.model, groups, pairs, projections=projections, progress=progress)


def cost(sizes: Sizes, options: GraftOptions) -> Iterator[Part]:
    """As if every variant gained: grafts by groups and layers, by head, and controls of the largest group."""
    per_scenario = options.queries_per_scenario
    prompts = sizes.prompts.pairs(PromptsOf("evaluation", options.prompts, queries_per_scenario=per_scenario))
    best, shared_kv = max(sizes.groups.values()), sizes.base.n_kv_heads < sizes.base.n_heads
    runs, flop = 0.0, 0.0
    for variant in sizes.settings.variants.values():
        mixed = PlannedMixtures.of(sizes.base, variant)
        ranges = {} if options.layers == () else layer_ranges(sizes.base.n_layers, options.layers)
        units = [mixed.grafts(sizes.groups, ranges, matrices=options.matrices)]
        if options.heads:
            units.append(mixed.grafts({str(i): 1 for i in range(best)}, {}))
        if options.random_groups:
            units.append(mixed.alone(best, options.random_groups))
            units += [mixed.alone(best, 1)] if shared_kv and {"k", "v"} & set(options.projections) else []
        for mixtures in units:
            runs += len(mixtures) * len(prompts)
            flop += mixed.flop(mixtures, sizes, prompts) + sizes.passes(_HELD_AGAINST_DONOR)
        if options.roles != ():
            roles = dict.fromkeys(options.roles or (stage.at for stage in sizes.main.stages))
            by_role = len(needed_subsets([*roles, OTHER_TOKENS])) * len(prompts)
            runs += by_role
            flop += sizes.passes(round(BY_TOKEN * (by_role + _HELD_AGAINST_DONOR / 2)) + _HELD_AGAINST_DONOR / 2)
    yield Part("grafts", runs, flop)


def check(study: Outlined, options: GraftOptions) -> None:
    """The main plan's stages are parts that are grafted. Raises: InputError."""
    layer_ranges(study.base.shape.n_layers, options.layers)
    for role in options.roles or ():
        study.task.check_role(role)
    n_queries = options.queries_per_scenario or 1
    with naming("graft"):
        study.task.sample(study.base.outline.tokenizer, n_queries, study.settings.seed, "evaluation", n_queries)
    if not study.settings.variants:
        return
    if clash := sorted({stage.name for stage in study.main.stages} & set(KINDS)):
        raise InputError(f"{clash[0]!r} is the name of what the groups leave in a graft; call the stage otherwise")
    if len(set(options.projections)) < len(options.projections):
        raise InputError(f"graft.projections are some of q, k, v, o, each once; got {options.projections}")


SECTION = Section("graft", GraftOptions, dict[str, GraftResult], run, cost, check=check, mixes_models=True)
