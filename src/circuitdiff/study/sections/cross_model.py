"""Where is a variant's gain visible? Its activations in the base, and the base's in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from circuitdiff.circuit import Circuit
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
from circuitdiff.study.context import StudyContext, checked
from circuitdiff.study.estimates import GroupHeads, Number, Share, groups_of, number, share, with_heads
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
from circuitdiff.study.preflight import Outlined, check_known
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.section import Part, Section, Sizes
from circuitdiff.study.sections.cross_model_units import executors_on_patches, patched_controls, patches
from circuitdiff.study.sections.discovery import discovered
from circuitdiff.study.units import Unit


@dataclass(frozen=True)
class CrossModelOptions(Limits):
    """Cross-model activation patching of every subset of a circuit's groups."""

    prompts: Prompts = 200  # of the evaluation prompts
    what: Annotated[tuple[Carrier, ...], Field(min_length=1)] = ("z", "contribution")
    both_directions: bool = True
    heads: bool = True  # also the single heads of the group with the largest share, if there is a gain
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
    """Of a variant. Heads and controls are of the worse of the two models as `recipient`, if the other gains on it."""

    groups: dict[str, GroupHeads]  # of the base's circuit
    recipient: str
    to_base: dict[Carrier, CrossPatchResult]  # empty unless asked for
    to_variant: dict[Carrier, CrossPatchResult]
    heads: PatchedHeads | None
    controls: dict[str, PatchControls]  # by group
    null_donors: dict[str, CrossPatchResult]


async def run(study: StudyContext, options: CrossModelOptions) -> dict[str, CrossModel]:
    """Every subset of the groups of the base's circuit, patched from each variant into the base, and back.

    From the better model into the worse one, where there is a gain to share out, also the single heads of the group
    that shows most, and controls of each group; into the base also donors that did not improve. Without a gain fewer
    prompts are run. Nothing if the circuit has no heads.
    """
    circuit = with_heads((await discovered(study, study.base)).circuit)
    variants = study.variants if circuit.roles else []
    return await study.by_item(variants, lambda variant: _compared(study, variant, circuit, options))


async def _compared(study: StudyContext, variant: str, circuit: Circuit, options: CrossModelOptions) -> CrossModel:
    between, base = await direction_of(study, variant), study.base
    other = Direction(between.recipient, between.donor, between.gains)
    null = [Direction(name, base, gains=False) for name in options.null_donors if between.recipient == base]

    async def forward() -> tuple[dict[Carrier, CrossPatchResult], PatchedHeads | None]:
        patched = await _patched(study, between, circuit, options, options.what)
        return patched, await _heads(study, between, circuit, options, patched)

    at_once: list[Callable[[], Awaitable[Any]]] = [
        forward,
        lambda: _patched(study, other, circuit, options, options.what if options.both_directions else ()),
        lambda: _controls(study, between, circuit, options),
        lambda: study.each(null, lambda each: _patched(study, each, circuit, options, options.what[:1])),
    ]
    (patched, heads), back, controls, nulls = await study.each(at_once, lambda work: work())
    to_base, to_variant = (patched, back) if between.recipient == base else (back, patched)
    first = options.what[0]
    null_donors = {each.donor: results[first] for each, results in zip(null, nulls, strict=True)}
    return CrossModel(groups_of(circuit), between.recipient, to_base, to_variant, heads, controls, null_donors)


async def _patched(
    study: StudyContext,
    between: Direction,
    circuit: Circuit,
    options: CrossModelOptions,
    what: tuple[Carrier, ...],
) -> dict[Carrier, CrossPatchResult]:
    """By kind of activation, after check 3; all kinds run together."""
    if not what:
        return {}
    models, of = (between.recipient, between.donor), f"of {between.donor} in {between.recipient}"
    n_runs = len(all_subsets(list(circuit.groups)))
    for kind in what:
        arguments = {"prompts": PromptsOf("evaluation", first=FEW), "circuit": circuit, "what": kind}
        detail = f"{kind} {of}: {n_runs} runs x {FEW} prompts, relative log probability"
        unit = Unit(f"check of {kind} {of}", executors_on_patches, models, arguments)
        await study.check("window executor vs full executor", unit, detail)
    arguments = {"prompts": _prompts(between, options), "circuit": circuit, "read": options.what, "what": what}
    by_kind = await study.value(Unit(f"{', '.join(what)} {of}", patches, models, arguments))
    return {kind: await _result(study, between, f"{kind} {of}", patch, options) for kind, patch in by_kind.items()}


async def _heads(
    study: StudyContext,
    between: Direction,
    circuit: Circuit,
    options: CrossModelOptions,
    patched: Mapping[Carrier, CrossPatchResult],
) -> PatchedHeads | None:
    """The single heads of the group that shows most, by the first kind; None unless there is a gain."""
    if not (options.heads and between.gains):
        return None
    what = options.what[0]
    best = largest_part(patched[what].scores["accuracy"].parts, IN_ORDER)
    arguments = {"prompts": _prompts(between, options), "circuit": circuit, "read": options.what, "what": (what,)}
    title = f"{what} of {between.donor} in {between.recipient}, heads"
    unit = Unit(title, patches, (between.recipient, between.donor), arguments | {"heads_of": best})
    patch = await study.value(unit)[what]
    return PatchedHeads(**vars(await _result(study, between, title, patch, options)), group=best)


def _prompts(between: Direction, options: CrossModelOptions) -> PromptsOf:
    n_prompts = options.prompts if between.gains else min(options.without_gain, options.prompts)
    return PromptsOf("evaluation", first=n_prompts)


async def _result(
    study: StudyContext, between: Direction, title: str, patch: CrossPatch, options: CrossModelOptions
) -> CrossPatchResult:
    """After check 7: given its own activations, the recipient answers as it does anyway. Raises: CheckError."""
    allowed = log_prob_tolerance((await study.facts(between.recipient)).dtype)
    changed = patch.noise_floor / max(1.0, float(patch.recipient.log_probs.abs().max()))
    name = "a recipient given its own activations"
    study.add_checks([checked(name, between.recipient, changed, allowed, title)])
    limits = Limits(options.distance, options.turned)
    far = patch.incompatible(limits)
    shares = gain_shares(
        (between.donor, between.recipient), patch.donor, patch.order, lambda score: patch.attribution(score, limits)
    )
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


async def _controls(
    study: StudyContext, between: Direction, circuit: Circuit, options: CrossModelOptions
) -> dict[str, PatchControls]:
    """Every group's controls, on the same prompts, by the first kind of activation; none unless there is a gain."""
    if not (options.random_groups and between.gains):
        return {}
    prompts, what = _prompts(between, options), options.what[0]
    pairs = await study.pairs(between.recipient, prompts)
    roles = {name: _other_role(study, pairs, group.at) for name, group in circuit.groups.items()}
    arguments = {
        "prompts": prompts,
        "circuit": circuit,
        "what": what,
        "other_roles": roles,
        "n_random": options.random_groups,
        "seed": study.settings.seed,
    }

    async def of_group(name: str) -> PatchControls:
        title = f"controls of {name}, {between.donor} in {between.recipient}"
        models = (between.recipient, between.donor)
        unit = Unit(title, patched_controls, models, arguments | {"name": name})
        donor, controls = await study.value(unit)
        return _controls_result(donor, controls, what, roles[name], options)

    return await study.by_item(roles, of_group)


def _other_role(study: StudyContext, pairs: Pairs, role: str) -> str | None:
    """The same kind of role where it does not belong; for the last token, the one before it."""
    other = study.task.wrong_segment(role)
    if other != role:
        return other
    before = [name for name, at in pairs.positions.items() if bool((at == pairs.positions[role] - 1).all())]
    return before[0] if before else None


def _controls_result(
    donor: Evaluation, controls: Controls, what: Carrier, other_role: str | None, limits: Limits
) -> PatchControls:
    nothing = controls.nothing.answers

    def control(ran: Ran | None) -> PatchControl | None:
        if ran is None:
            return None
        far = float(ran.distance.mean())
        result = control_result(donor, nothing, ran.answers, compatible=far <= limits.distance)
        accuracy = share(ran.answers.hits, ran.answers.scenarios)
        return PatchControl(**vars(result), accuracy=accuracy, distance=number(far), incompatible=far > limits.distance)

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
    asked = len(options.what) * directions
    subsets = asked * len(all_subsets(names))
    heads = len(needed_subsets([str(i) for i in range(max(sizes.groups.values()))])) if options.heads else 0
    widths = [sizes.width(stage.at) for stage in sizes.main.stages]
    rows = options.prompts * (asked * sum(widths) + subsets + heads)  # subsets build on each other
    rows += options.prompts * options.random_groups * sum(widths)
    n = variants * options.prompts
    passes = n * (directions + 1 + bool(heads)) + options.prompts  # clean runs; both models are read once
    flop = sizes.passes(passes) + sizes.runs(variants * rows, 1)
    n_controls = n * options.random_groups * len(names)
    yield Part("cross-model patching", n * (subsets + heads) + n_controls, flop)


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
