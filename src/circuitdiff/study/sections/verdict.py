"""What may be said of a variant? The numbers behind each claim, gathered from the other sections, and the sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from circuitdiff.circuit import Circuit
from circuitdiff.evaluation import By, Evaluation, moved
from circuitdiff.readable import Readable
from circuitdiff.stats.intervals import normalised_ratio_interval, ratio_interval
from circuitdiff.study.common_units import circuit_answers, model_answers
from circuitdiff.study.estimates import Estimate, Number, ratio, with_heads
from circuitdiff.study.evidence import (
    CircuitEvidence,
    Evidence,
    FunctionEvidence,
    GraftEvidence,
    Measured,
    Noted,
    SimilarityEvidence,
    Thresholds,
)
from circuitdiff.study.gains import Direction, Gain, direction_of, gain_of
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.section import Part, Section, Sizes, StudyContext
from circuitdiff.study.sections import cross_model, functions, graft, overlap
from circuitdiff.study.sections.cross_model import CrossModel, CrossPatchResult
from circuitdiff.study.sections.discovery import circuits
from circuitdiff.study.sections.functions import MaskCell
from circuitdiff.study.sections.graft import GraftResult
from circuitdiff.study.sections.overlap import VariantOverlap
from circuitdiff.study.verdict import Sentence, sentences

_ALIKE = 0.8  # cosine of two profiles, above which they are called alike
_BYS: tuple[By, ...] = ("slot", "kind")
_ABLATIONS = "mean by slot and mean by kind with heads at every segment"

Cells = Mapping[str, Mapping[str, MaskCell]]  # by group and desideratum


@dataclass(frozen=True, repr=False)
class Verdict(Readable):
    """Sentences, the thresholds that they were held against, and evidence that no other section has."""

    sentences: tuple[Sentence, ...]
    thresholds: Thresholds
    gain: Gain
    circuits: dict[By, CircuitEvidence]
    similarity: tuple[SimilarityEvidence, ...]
    functions: tuple[FunctionEvidence, ...]


async def run(study: StudyContext, limits: Thresholds) -> dict[str, Verdict]:
    """Of each variant, once all other sections have their results: a failed check of any ends the study before."""
    return await study.by_item(study.variants, lambda variant: _verdict(study, variant, limits))


async def _verdict(study: StudyContext, variant: str, limits: Thresholds) -> Verdict:
    base, between = study.base, await direction_of(study, variant)
    gain = await gain_of(study, variant, base)
    sections = (cross_model.SECTION, graft.SECTION, overlap.SECTION)
    patched, grafted, overlaps = [(await study.part(section) or {}).get(variant) for section in sections]
    masks = (await study.part(functions.SECTION) or {}).get(base) or {}
    judged_patch = _judged_patch(patched, between, base)
    checks, task = study.checks, study.settings.task
    wording = ", ".join([task.name, *(f"{key} {value}" for key, value in task.options.items())])
    evidence = Evidence(
        base=base,
        variant=variant,
        donor=between.donor,
        scope=f"{variant} against {base}; {wording}",
        failed_checks=[check.name for check in checks if not check.passed] if checks else None,
        gain=gain,
        n_scenarios=gain.n_scenarios,
        circuits=await _circuit_evidence(study, variant),
        similarity=similarity_evidence(overlaps),
        moved=overlaps is not None and has_moved(overlaps, limits.alike),
        n_scenarios_moved=(overlaps.n_scenarios or 0) if overlaps is not None else 0,
        functions=functions_evidence(masks, base, variant),
        unknown=groups_without_function(masks.get(base) or {}),
        patched={} if judged_patch is None else judged_patch.scores["accuracy"].parts,
        graft=None if grafted is None else _graft_evidence(grafted),
        measured=await _measured(study, variant, gain, _cells(masks, base, variant), judged_patch, grafted),
    )
    of_circuits, similarity, of_functions = dict(evidence.circuits), tuple(evidence.similarity), evidence.functions
    return Verdict(sentences(evidence, limits), limits, gain, of_circuits, similarity, tuple(of_functions))


# Is the same circuit at work?


async def _circuit_evidence(study: StudyContext, variant: str) -> dict[By, CircuitEvidence]:
    """By ablation, whether each own circuit does what its model does, and whether the base's does it in the variant.

    Means by kind take addresses out everywhere but where heads are kept, so keeping them at the queried segment alone
    would mark the answer: there the heads are kept at every segment. Nothing if one of the two models has no circuit.
    """
    known = await circuits(study)
    mains = {model: with_heads(known[model]) for model in (study.base, variant) if model in known}
    if len(mains) < 2:
        return {}
    in_base, in_variant = await model_answers(study, study.base), await model_answers(study, variant)
    gained = ~in_base.hits.numpy() & in_variant.hits.numpy()
    evidence: dict[By, CircuitEvidence] = {}
    for by in _BYS:
        at_all = by == "kind"
        tested = {name: moved(each, study.task.every_segment) if at_all else each for name, each in mains.items()}
        own, nothing = await _alone(study, study.base, [tested[study.base]], by)
        theirs, its_own, ablated = await _alone(study, variant, list(tested.values()), by)
        evidence[by] = CircuitEvidence(
            base_own=_normalised(in_base, own, nothing),
            variant_own=_normalised(in_variant, its_own, ablated),
            transfer=transfer(in_variant, theirs, its_own, ablated),
            transfer_where_only_variant_right=transfer(in_variant, theirs, its_own, ablated, gained),
        )
    return evidence


async def _alone(study: StudyContext, model: str, tested: Sequence[Circuit], by: By) -> list[Evaluation]:
    """The circuits alone and, last, nothing."""
    return await circuit_answers(study, model, f"own circuits in {model}, {by} means", [*tested, Circuit({})], by)


def _normalised(model: Evaluation, circuit: Evaluation, ablated: Evaluation) -> Noted:
    own, nothing, whole = (each.hits.numpy() for each in (circuit, ablated, model))
    return Noted(**vars(ratio(normalised_ratio_interval(own, nothing, whole, model.scenarios.numpy()))))


def transfer(
    model: Evaluation,
    base_circuit: Evaluation,
    own_circuit: Evaluation,
    ablated: Evaluation,
    among: ndarray | None = None,
) -> Noted:
    """Normalised faithfulness of the base's circuit less that of the variant's own, in the variant, on some prompts."""
    rows = np.ones(len(model.hits), dtype=bool) if among is None else among
    hits = [each.hits.numpy()[rows].astype(int) for each in (base_circuit, own_circuit, model, ablated)]
    scenarios = model.scenarios.numpy()[rows]
    n = len(np.unique(scenarios))
    if n < 2:
        return Noted(None, None, None, f"there are {n} such scenarios", n)
    return Noted(**vars(ratio(ratio_interval(hits[0] - hits[1], hits[2] - hits[3], scenarios))), n=n)


def similarity_evidence(compared: VariantOverlap | None) -> list[SimilarityEvidence]:
    """How alike base and variant are, stage by stage, beside another stage's map.

    A stage that chose heads in neither model has nothing to be alike in; one that could not be run in the variant
    leaves its row open.
    """
    stages = [] if compared is None else [stage for stage in compared.stages or () if max(stage.n_chosen)]
    not_run = () if compared is None else compared.not_run or ()
    rows = [SimilarityEvidence(stage.stage, stage.likeness, stage.different) for stage in stages]
    return [*rows, *(SimilarityEvidence(name) for name in not_run)]


def has_moved(compared: VariantOverlap, alike: float) -> bool:
    """Whether other heads do the same work in the variant.

    They do if at some stage the effect maps are not alike, by interval, and each group of the base looks and acts like
    its namesake in the variant's own circuit, and more than like any other of it.
    """
    rows = compared.moved or ()
    groups = dict.fromkeys(row.base for row in rows)
    same_work = len(groups) > 1 and all(
        _like_its_namesake({row.variant: cosine(row) for row in rows if row.base == group}, group)
        for group in groups
        for cosine in (lambda row: row.attention, lambda row: row.effect)
    )
    stages = compared.stages or ()
    return same_work and any(stage.likeness.high is not None and stage.likeness.high < alike for stage in stages)


def _like_its_namesake(cosines: Mapping[str, Estimate], group: str) -> bool:
    others = [each.high for name, each in cosines.items() if name != group]
    return group in cosines and bool(others) and _above_all(cosines[group].low, _ALIKE, *others)


def _above_all(low: Number, *others: Number) -> bool:
    """Whether a lower bound is above all of these; what is undefined is above and below nothing."""
    return low is not None and all(other is not None and low > other for other in others)


# Has each group the same function?


def functions_evidence(masks: Mapping[str, Cells], base: str, variant: str) -> list[FunctionEvidence]:
    """By group of the base's circuit: its mask, of the desideratum that it carries best, unchanged in the variant.

    Further desiderata, which are asked in the base alone, say nothing of the variant; nothing does if none was asked.
    """
    rows = []
    for group, cells in (masks.get(base) or {}).items() if variant in masks else ():
        in_variant = masks[variant].get(group) or {}
        carried = [name for name, cell in cells.items() if cell.carries and name in in_variant]
        if carried:
            best = max(carried, key=lambda name: cells[name].above_floor.value or 0.0)
            mask, trained = in_variant[best].transferred, in_variant[best].controls.shuffled is not None
            difference, above = (None, None) if mask is None else (mask.above_own_mask, mask.above_floor)
            rows.append(FunctionEvidence(group, best, difference, above, trained))
    return rows


def groups_without_function(in_base: Cells) -> list[str]:
    """The groups of the base's circuit that carry nothing that was asked for."""
    return [group for group, cells in in_base.items() if not any(cell.carries for cell in cells.values())]


def _cells(masks: Mapping[str, Cells], base: str, variant: str) -> list[MaskCell]:
    """Every mask of the base's circuit in base and variant."""
    groups = [cells for model in (base, variant) for cells in (masks.get(model) or {}).values()]
    return [cell for cells in groups for cell in cells.values()]


# Which part got better?


def _judged_patch(patched: CrossModel | None, between: Direction, base: str) -> CrossPatchResult | None:
    """Contributions, where they were patched: z misses what the donor's output projection changed."""
    if patched is None:
        return None
    by_what = (patched.to_base if between.recipient == base else patched.to_variant) or {}
    return by_what.get("contribution") or next(iter(by_what.values()), None)


def _graft_evidence(grafted: GraftResult) -> GraftEvidence:
    layers = {} if grafted.layers is None else grafted.layers.scores["accuracy"].parts
    touched = {part: len(heads) for part, heads in grafted.also_touched.items()}
    return GraftEvidence(grafted.scores["accuracy"].parts, grafted.controls, touched, layers)


async def _measured(
    study: StudyContext,
    variant: str,
    gain: Gain,
    cells: Sequence[MaskCell],
    patched: CrossPatchResult | None,
    grafted: GraftResult | None,
) -> dict[str, Measured]:
    """By table, on what and how many prompts its numbers were taken."""
    maps = await study.pairs(variant, PromptsOf("discovery"))
    by = f"; {_ABLATIONS}; effects on {len(maps)} other prompts; attention heads only"
    of_circuits = _on(gain, "accuracy of circuits", by)
    fewest = min(of_circuits.n_scenarios, len(maps.scenarios.unique()))
    measured = {"accuracy": _on(gain, "accuracy"), "circuits": Measured(of_circuits.scope, fewest)}
    if cells:
        cell = min(cells, key=lambda cell: cell.n_scenarios)
        what = "accuracy of the target"
        measured["functions"] = _measured_on(cell.n_test, cell.n_scenarios, what, "; attention heads only")
    if patched is not None:
        measured["cross_model"] = _on(patched, f"accuracy with patched {patched.what}", "; attention heads only")
    if grafted is not None:
        measured["layers"] = measured["graft"] = _on(grafted, "accuracy", "; all weights")
        if grafted.controls:
            n = min(each.n_scenarios for part in grafted.controls.values() for each in part.values())
            scope, n_grafted = measured["graft"]
            measured["graft"] = Measured(f"{scope}; controls on {n} scenarios", min(n, n_grafted))
    return measured


def _on(numbers: Gain | CrossPatchResult | GraftResult, what: str, more: str = "") -> Measured:
    return _measured_on(numbers.n_prompts, numbers.n_scenarios, what, more)


def _measured_on(n_prompts: int, n_scenarios: int, what: str, more: str = "") -> Measured:
    return Measured(f"{what} on {n_prompts} held-out prompts of {n_scenarios} scenarios{more}", n_scenarios)


def cost(sizes: Sizes, limits: Thresholds) -> Iterator[Part]:
    """Nothing beyond circuits alone, which are among those of every circuit in every model."""
    return iter(())


SECTION = Section("verdict", Thresholds, dict[str, Verdict], run, cost)
