"""Where is a variant's gain visible? Its activations in the base, and the base's in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.config.settings import Draws, Prompts
from circuitdiff.errors import InputError
from circuitdiff.evaluation import Evaluation
from circuitdiff.methods.cross_model.activations import Carrier
from circuitdiff.methods.cross_model.hybrids import Ran
from circuitdiff.methods.cross_model.patching import MOST_GROUPS, Controls, CrossPatch, Limits
from circuitdiff.models.checks import log_prob_tolerance
from circuitdiff.prompts import Pairs
from circuitdiff.readable import Readable
from circuitdiff.stats.shapley import IN_ORDER, all_subsets, needed_subsets
from circuitdiff.study.checks import FEW
from circuitdiff.study.context import checked
from circuitdiff.study.estimates import GroupHeads, Number, Share, accuracy, groups_of, number, with_heads
from circuitdiff.study.gains import (
    ControlResult,
    Direction,
    GainShares,
    RandomGroups,
    RunResult,
    control_result,
    direction_of,
    gain_shares,
    largest_part,
    random_groups,
    run_result,
)
from circuitdiff.study.preflight import check_known
from circuitdiff.study.section import Outlined, Part, PromptsOf, Section, Sizes, StudyContext
from circuitdiff.study.sections.cross_model_units import (
    executors_on_mlps,
    executors_on_patches,
    patched_controls,
    patches,
)
from circuitdiff.study.sections.discovery import discovered
from circuitdiff.study.sections.functions import SECTION as FUNCTIONS
from circuitdiff.study.sections.functions import main_masks
from circuitdiff.study.sections.functions_options import FunctionsOptions

T = TypeVar("T")


@dataclass(frozen=True)
class CrossModelOptions(Limits):
    """Cross-model activation patching of every subset of a circuit's groups."""

    prompts: Prompts = 200  # of the evaluation prompts
    what: Annotated[tuple[Carrier, ...], Field(min_length=1)] = ("z", "contribution")
    both_directions: bool = True
    heads: bool = True  # also the single heads of the group with the largest share, if there is a gain
    mask_heads: bool = True  # also only the heads of each group's mask for its main function, if there is a gain
    mlps: bool = False  # also the MLPs of all layers at each of the circuit's roles as parts, if there is a gain
    random_groups: Draws = 100  # 0: no controls; fewer have no rank
    without_gain: Prompts = 100  # prompts for pairs of models of which none is better at 95 %
    null_donors: tuple[str, ...] = ()  # variants that did not improve


@dataclass(frozen=True)
class PatchRun(RunResult):
    distance: Number  # mean over prompts of how far it ends from clean runs; 1 = as far as another prompt's run
    incompatible: str | None  # why the recipient could not have run so itself, and there is no share


@dataclass(frozen=True)
class BasisSimilarity:
    """How alike a group's values are in donor and recipient, from -1 to 1: as they are, and in the best basis."""

    as_it_is: Number
    turned: Number


@dataclass(frozen=True)
class CrossPatchResult(GainShares):
    """One donor in one recipient, by one kind of activation."""

    what: Carrier
    noise_floor: float  # largest change of a log probability when the recipient is given its own activations
    bases: dict[str, BasisSimilarity]
    limits: Limits
    runs: tuple[PatchRun, ...]


@dataclass(frozen=True)
class PatchedHeads(CrossPatchResult):
    group: str  # whose heads are the parts


@dataclass(frozen=True)
class PatchedMaskHeads(CrossPatchResult):
    """Of each group the heads of its mask, learned in the base; all heads of a group without a main function."""

    functions: dict[str, str]  # by group, its main function
    groups: dict[str, GroupHeads]  # what is patched


@dataclass(frozen=True)
class PatchControl(ControlResult):
    accuracy: Share
    distance: Number
    incompatible: bool  # it ends far from clean runs, and has no share


@dataclass(frozen=True)
class PatchControls:
    """What is patched in a group's stead, beside the group itself."""

    what: Carrier
    n_prompts: int
    other_role: str | None
    group: PatchControl
    elsewhere: PatchControl | None  # the same heads at the other role
    noise: PatchControl | None  # the recipient's own values, moved as far in a random direction
    scaled: PatchControl | None  # the recipient's own values, made as large
    same_layers: RandomGroups  # as many random heads in each layer


@dataclass(frozen=True, repr=False)
class CrossModel(Readable):
    """Of a variant. Heads, those of masks, MLPs and controls are of the worse model as `recipient`, if the other gains.

    `mask_heads`: None, too, if no mask leaves a head of its group out, or what groups encode was not asked.
    `with_mlps`: the groups, and last in order what all MLPs at a role add to the residual stream there.
    """

    groups: dict[str, GroupHeads]  # of the base's circuit
    recipient: str
    to_base: dict[Carrier, CrossPatchResult]  # empty unless asked for
    to_variant: dict[Carrier, CrossPatchResult]
    heads: PatchedHeads | None
    controls: dict[str, PatchControls]  # by group
    null_donors: dict[str, CrossPatchResult]
    mask_heads: PatchedMaskHeads | None = None
    with_mlps: CrossPatchResult | None = None


async def run(study: StudyContext, options: CrossModelOptions) -> dict[str, CrossModel]:
    """Every subset of the groups of the base's circuit, patched from each variant into the base, and back.

    From the better model into the worse one, where there is a gain to share out, also the single heads of the group
    that shows most, the heads that masks found for each group's main function (the paper patches no others), and
    controls of each group; into the base also donors that did not improve. Without a gain fewer prompts are run.
    Nothing if the circuit has no heads.
    """
    circuit = with_heads((await discovered(study, study.base)).circuit)

    async def compared(variant: str) -> CrossModel:
        return await _Patches(study, options, circuit, await direction_of(study, variant)).compared()

    return await study.by_item(study.variants if circuit.roles else [], compared)


@dataclass(frozen=True)
class _Patches:
    """Of the circuit's groups, from the donor into the recipient."""

    study: StudyContext
    options: CrossModelOptions
    circuit: Circuit
    between: Direction

    @property
    def _prompts(self) -> PromptsOf:
        options = self.options
        first = options.prompts if self.between.gains else min(options.without_gain, options.prompts)
        return PromptsOf("evaluation", first=first)

    @property
    def _title(self) -> str:
        return f"{self.between.donor} in {self.between.recipient}"

    async def _ran(self, title: str, run: Callable[..., T], **arguments: Any) -> T:
        models = self.between.recipient, self.between.donor
        return await self.study.value(title, run, *models, prompts=self._prompts, circuit=self.circuit, **arguments)

    async def compared(self) -> CrossModel:
        """Both directions, heads, those of masks, MLPs, controls and other donors, at the same time."""
        between, base, what = self.between, self.study.base, self.options.what
        back = replace(self, between=Direction(between.recipient, between.donor, between.gains))
        donors = self.options.null_donors if between.recipient == base else ()
        null = {name: replace(self, between=Direction(name, base, gains=False)) for name in donors}

        async def forward() -> tuple[dict[Carrier, CrossPatchResult], PatchedHeads | None]:
            patched = await self._patched(what)
            return patched, await self._heads(patched)

        at_once: list[Callable[[], Awaitable[Any]]] = [
            forward,
            lambda: back._patched(what if self.options.both_directions else ()),
            self._mask_heads,
            self._with_mlps,
            self._controls,
            lambda: self.study.by_item(null, lambda name: null[name]._patched(what[:1])),
        ]
        results = await self.study.each(at_once, lambda work: work())
        (there, heads), other, mask_heads, with_mlps, controls, nulls = results
        to_base, to_variant = (there, other) if between.recipient == base else (other, there)
        null_donors = {name: by_kind[what[0]] for name, by_kind in nulls.items()}
        groups = groups_of(self.circuit)
        more = {"mask_heads": mask_heads, "with_mlps": with_mlps}
        return CrossModel(groups, between.recipient, to_base, to_variant, heads, controls, null_donors, **more)

    async def _patched(self, what: tuple[Carrier, ...]) -> dict[Carrier, CrossPatchResult]:
        """By kind of activation, after check 3; all kinds run together."""
        if not what:
            return {}
        n_runs = len(all_subsets(list(self.circuit.groups)))
        few = {"prompts": PromptsOf("evaluation", first=FEW), "circuit": self.circuit}
        models = self.between.recipient, self.between.donor
        for kind in what:
            title = f"{kind} of {self._title}"
            detail = f"{title}: {n_runs} runs x {FEW} prompts, relative log probability"
            await self.study.check_executors(title, detail, executors_on_patches, *models, **few, what=kind)
        title = f"{', '.join(what)} of {self._title}"
        by_kind = await self._ran(title, patches, read=self.options.what, what=what, parts=self.circuit)
        return {kind: await self._result(f"{kind} of {self._title}", patch) for kind, patch in by_kind.items()}

    async def _heads(self, patched: Mapping[Carrier, CrossPatchResult]) -> PatchedHeads | None:
        """The single heads of the group that shows most, by the first kind; None unless there is a gain."""
        if not (self.options.heads and self.between.gains):
            return None
        best = largest_part(patched[self.options.what[0]].scores["accuracy"].parts, IN_ORDER)
        result = await self._patched_once(", heads", self.circuit.groups[best])
        return PatchedHeads(**vars(result), group=best)

    async def _mask_heads(self) -> PatchedMaskHeads | None:
        """Of each group the heads of its mask; None unless there is a gain and a mask that leaves heads out."""
        if not (self.options.mask_heads and self.between.gains):
            return None
        masks = await main_masks(self.study, self.study.base)
        found = {name: {Head(*place) for place in cell.heads} for name, (_, cell) in masks.items()}
        chosen = Circuit(
            {
                name: Group(group.at, tuple(head for head in group.heads if head in found.get(name, group.heads)))
                for name, group in self.circuit.groups.items()
            }
        )
        if chosen == self.circuit:
            return None
        result = await self._patched_once(", heads of masks", chosen)
        functions = {name: function for name, (function, _) in masks.items()}
        return PatchedMaskHeads(**vars(result), functions=functions, groups=groups_of(chosen))

    async def _with_mlps(self) -> CrossPatchResult | None:
        """The groups and the MLPs at each of their roles, after check 3; None unless there is a gain."""
        if not (self.options.mlps and self.between.gains):
            return None
        what, roles = self.options.what[0], self.circuit.roles
        title = f"{what} of {self._title}, with MLPs"
        detail = f"{title}: {FEW} prompts, relative log probability"
        few = {"prompts": PromptsOf("evaluation", first=FEW), "circuit": self.circuit}
        models = self.between.recipient, self.between.donor
        await self.study.check_executors(title, detail, executors_on_mlps, *models, **few, what=what, roles=roles)
        return await self._patched_once(", with MLPs", self.circuit, mlps_at=roles)

    async def _patched_once(self, more: str, parts: Circuit | Group, **also: Any) -> CrossPatchResult:
        """By the first kind of activation; `more`: to the title."""
        what = self.options.what[0]
        title = f"{what} of {self._title}{more}"
        patch = await self._ran(title, patches, read=self.options.what, what=(what,), parts=parts, **also)
        return await self._result(title, patch[what])

    async def _result(self, title: str, patch: CrossPatch) -> CrossPatchResult:
        """After check 7: given its own activations, the recipient answers as it does anyway. Raises: CheckError."""
        allowed = log_prob_tolerance((await self.study.facts(self.between.recipient)).dtype)
        changed = patch.noise_floor / max(1.0, float(patch.recipient.log_probs.abs().max()))
        name = "a recipient given its own activations"
        self.study.add_checks([checked(name, self.between.recipient, changed, allowed, title)])
        limits = Limits(self.options.distance, self.options.turned)
        far = patch.incompatible(limits)
        shares = gain_shares(self.between, patch.donor, patch.order, lambda score: patch.attribution(score, limits))
        runs = (
            PatchRun(
                **vars(run_result(subset, ran.answers, patch.order)),
                distance=number(ran.distance.mean()),
                incompatible=far.get(subset),
            )
            for subset, ran in patch.runs.items()
        )
        bases = {name: BasisSimilarity(*map(number, basis)) for name, basis in patch.bases.items()}
        more = {"what": patch.what, "noise_floor": patch.noise_floor, "bases": bases, "limits": limits}
        return CrossPatchResult(**vars(shares), **more, runs=tuple(runs))

    async def _controls(self) -> dict[str, PatchControls]:
        """Every group's controls, on the same prompts, by the first kind of activation; none unless there is a gain."""
        if not (self.options.random_groups and self.between.gains):
            return {}
        pairs, what = await self.study.pairs(self.between.recipient, self._prompts), self.options.what[0]
        roles = {name: _other_role(self.study, pairs, group.at) for name, group in self.circuit.groups.items()}
        sizes = {"n_random": self.options.random_groups, "seed": self.study.settings.seed}

        async def of_group(name: str) -> PatchControls:
            title = f"controls of {name}, {self._title}"
            more = {"name": name, "what": what, "other_roles": roles}
            donor, controls = await self._ran(title, patched_controls, **more, **sizes)
            return _controls_result(donor, controls, what, roles[name], self.options)

        return await self.study.by_item(roles, of_group)


def _other_role(study: StudyContext, pairs: Pairs, role: str) -> str | None:
    """The same kind of role where it does not belong; for the last token, the one before it."""
    other = study.task.wrong_segment(role)
    if other != role:
        return other
    before = (name for name, at in pairs.positions.items() if bool((at == pairs.positions[role] - 1).all()))
    return next(before, None)


def _controls_result(
    donor: Evaluation, controls: Controls, what: Carrier, other_role: str | None, limits: Limits
) -> PatchControls:
    nothing = controls.nothing.answers

    def control(ran: Ran | None) -> PatchControl | None:
        if ran is None:
            return None
        distance = float(ran.distance.mean())
        far = distance > limits.distance
        result = control_result(donor, nothing, ran.answers, compatible=not far)
        return PatchControl(**vars(result), accuracy=accuracy(ran.answers), distance=number(distance), incompatible=far)

    drawn = [ran.answers for ran in controls.same_layers]
    far = [i for i, ran in enumerate(controls.same_layers) if float(ran.distance.mean()) > limits.distance]
    named = {name: control(getattr(controls, name)) for name in ("group", "elsewhere", "noise", "scaled")}
    return PatchControls(
        what=what,
        n_prompts=len(donor.hits),
        other_role=other_role,
        **named,  # pyright: ignore[reportArgumentType]
        same_layers=random_groups(donor, nothing, controls.group.answers, drawn, far),
    )


def cost(sizes: Sizes, options: CrossModelOptions) -> Iterator[Part]:
    variants, names = len(sizes.settings.variants), [stage.name for stage in sizes.main.stages]
    directions = 2 if options.both_directions else 1
    functions: FunctionsOptions | Literal[False] = getattr(sizes.settings, FUNCTIONS.name)
    masked = bool(options.mask_heads and functions and functions.main_desiderata(sizes.task))
    asked = len(options.what) * directions + masked
    subsets = asked * len(all_subsets(names))
    heads = len(needed_subsets([str(i) for i in range(max(sizes.groups.values()))])) if options.heads else 0
    roles = {stage.at for stage in sizes.main.stages}
    with_mlps = len(needed_subsets([*names, *roles])) if options.mlps else 0
    widths = [sizes.width(stage.at) for stage in sizes.main.stages]
    rows = options.prompts * (asked * sum(widths) + subsets + heads)  # subsets build on each other
    rows += options.prompts * (options.random_groups * sum(widths) + with_mlps * max(widths))
    n = variants * options.prompts
    # clean runs; both models are read once, and for MLPs again, these in a run of their own
    passes = n * (directions + 1 + bool(heads) + masked + 5 * options.mlps) + options.prompts
    flop = sizes.passes(passes) + sizes.runs(variants * rows, 1)
    n_controls = n * options.random_groups * len(names)
    yield Part("cross-model patching", n * (subsets + heads + with_mlps) + n_controls, flop)


def check(study: Outlined, options: CrossModelOptions) -> None:
    """The main plan's stages are the parts that are patched. Raises: InputError."""
    check_known("cross_model.null_donors", options.null_donors, study.settings.variants)
    if not study.settings.variants:
        return
    if len(study.main.stages) > MOST_GROUPS:
        raise InputError(
            f"cross_model patches every subset of at most {MOST_GROUPS} groups, and the main plan has "
            f"{len(study.main.stages)} stages: join some, or set cross_model: false"
        )
    if study.main.shared_heads == "both" and "contribution" in options.what:
        raise InputError(
            "shared_heads: both leaves a head in two groups, whose contribution would be patched twice; choose "
            "later or earlier, or set cross_model.what to [z]"
        )


SECTION = Section("cross_model", CrossModelOptions, dict[str, CrossModel], run, cost, check=check, mixes_models=True)
