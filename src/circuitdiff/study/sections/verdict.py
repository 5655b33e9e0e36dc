"""What may be said of a variant? The numbers behind each claim, gathered from the other sections, and the sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from circuitdiff.readable import Readable
from circuitdiff.stats.intervals import mean_interval
from circuitdiff.study.claims_on_parts import PartVerdict, judged_parts
from circuitdiff.study.common_units import model_answers
from circuitdiff.study.estimates import estimate, result_of
from circuitdiff.study.evidence import (
    JUDGED,
    Behaviour,
    CircuitEvidence,
    Evidence,
    FunctionEvidence,
    Measured,
    PartsEvidence,
    SimilarityEvidence,
    Thresholds,
    TransferEvidence,
)
from circuitdiff.study.gains import Direction, Gain, GainShares, direction_of, gain_of
from circuitdiff.study.section import PromptsOf, Section, StudyContext
from circuitdiff.study.sections import (
    completeness,
    cross_model,
    discovery,
    faithfulness,
    functions,
    graft,
    minimality,
    overlap,
    verdict_circuits,
)
from circuitdiff.study.sections.accuracy import ability_of
from circuitdiff.study.sections.cross_model import CrossModel, CrossPatchResult
from circuitdiff.study.sections.functions import MaskCell, main_function
from circuitdiff.study.sections.graft import GraftResult
from circuitdiff.study.verdict import Sentence, sentences

_ABLATIONS = "mean by slot and mean by kind with heads at every segment"
_SOURCES = [
    each.SECTION for each in (cross_model, graft, overlap, functions, completeness, minimality, discovery, faithfulness)
]

Cells = Mapping[str, Mapping[str, MaskCell]]  # by group and desideratum


@dataclass(frozen=True, repr=False)
class Verdict(Readable):
    """Sentences, the thresholds that they were held against, and evidence that no other section has.

    `parts`: of grafts, and of grafts by layers, what is established of each part.
    """

    _shown = ("claims",)

    sentences: tuple[Sentence, ...]
    thresholds: Thresholds
    behaviour: Behaviour
    circuits: tuple[CircuitEvidence, ...]
    transfers: tuple[TransferEvidence, ...]
    similarity: tuple[SimilarityEvidence, ...]
    functions: tuple[FunctionEvidence, ...]
    parts: dict[str, tuple[PartVerdict, ...]]

    @property
    def claims(self) -> dict[str, str]:
        """The text of each sentence, by its claim."""
        return {each.claim: each.text for each in self.sentences}


async def run(study: StudyContext, limits: Thresholds) -> dict[str, Verdict]:
    """Of each variant, once all other sections have their results: a failed check of any ends the study before."""
    return await study.by_item(study.variants, lambda variant: _verdict(study, variant, limits))


async def _verdict(study: StudyContext, variant: str, limits: Thresholds) -> Verdict:
    evidence = await _evidence(study, variant, limits)
    divisions = {"graft": evidence.graft, "layers": evidence.layers}
    parts = {name: judged_parts(found, limits) for name, found in divisions.items() if found is not None}
    return result_of(Verdict, evidence, sentences=sentences(evidence, limits), thresholds=limits, parts=parts)


async def _evidence(study: StudyContext, variant: str, limits: Thresholds) -> Evidence:
    base, between = study.base, await direction_of(study, variant)
    gain = await gain_of(study, variant, base)
    parts = [await study.part(section) or {} for section in _SOURCES]
    patched, grafted, overlaps = (each.get(variant) for each in parts[:3])
    masks, removed, pruned, found, held_against = parts[3].get(base) or {}, *parts[4:]
    patch = _judged_patch(patched, between, base)
    checks, task = study.checks, study.settings.task
    options = {each.name: getattr(study.settings, each.name, None) for each in _SOURCES}
    off = [name for name, each in options.items() if each is False]
    if getattr(options["graft"], "layers", None) == ():
        off.append("graft.layers")
    wording = ", ".join([task.name, *(f"{key} {value}" for key, value in task.options.items())])
    of_circuits = await verdict_circuits.circuit_numbers(study, variant)
    return Evidence(
        base=base,
        variant=variant,
        donor=between.donor,
        scope=f"{variant} against {base}; {wording}",
        failed_checks=[check.name for check in checks if not check.passed] if checks else None,
        behaviour=await _behaviour(study, variant, gain),
        n_scenarios=gain.n_scenarios,
        switched_off=frozenset(off),
        searched=[model for model in (base, variant) if model in study.settings.searched],
        circuits=of_circuits.faithfulness,
        transfers=of_circuits.transfers,
        gaps=verdict_circuits.gaps(removed, (base, variant)),
        rivals=verdict_circuits.rivals(held_against, (base, variant)),
        stability=verdict_circuits.stability(found, (base, variant)),
        needed=verdict_circuits.needed_heads(pruned, base, variant),
        similarity=verdict_circuits.similarity_evidence(overlaps),
        moved=overlaps is not None and verdict_circuits.has_moved(overlaps, limits.alike),
        n_scenarios_moved=(overlaps.n_scenarios or 0) if overlaps is not None else 0,
        functions=functions_evidence(masks, base, variant),
        unknown=groups_without_function(masks.get(base) or {}),
        patched=None if patch is None else _parts(patch),
        graft=None if grafted is None else _graft_evidence(grafted),
        layers=None if grafted is None or grafted.layers is None else _parts(grafted.layers, grafted.layers.unchanged),
        measured=await _measured(study, variant, gain, _cells(masks, base, variant), patch, grafted),
    )


async def _behaviour(study: StudyContext, variant: str, gain: Gain) -> Behaviour:
    first, second = await model_answers(study, study.base), await model_answers(study, variant)
    change = (second.logit_differences.double() - first.logit_differences.double()).numpy()
    return Behaviour(
        base=await ability_of(study, study.base),
        variant=await ability_of(study, variant),
        accuracy=gain,
        logit_difference=estimate(mean_interval(change, first.scenarios.numpy())),
    )


# Has each group the same function?


def functions_evidence(masks: Mapping[str, Cells], base: str, variant: str) -> tuple[FunctionEvidence, ...]:
    """By group of the base's circuit: its mask, of the desideratum that it carries best, unchanged in the variant.

    Further desiderata, which are asked in the base alone, say nothing of the variant; nothing does if none was asked.
    """
    rows = []
    for group, cells in (masks.get(base) or {}).items() if variant in masks else ():
        in_variant = masks[variant].get(group) or {}
        best = main_function({name: cell for name, cell in cells.items() if name in in_variant})
        if best is not None:
            mask, trained = in_variant[best].transferred, in_variant[best].controls.shuffled is not None
            difference, above = (None, None) if mask is None else (mask.above_own_mask, mask.above_floor)
            rows.append(FunctionEvidence(group, best, difference, above, trained))
    return tuple(rows)


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


def _parts(found: GainShares, unchanged: Sequence[str] = ()) -> PartsEvidence:
    return PartsEvidence({score: found.scores[score].parts for score in JUDGED}, unchanged)


def _graft_evidence(grafted: GraftResult) -> PartsEvidence:
    touched = {part: len(heads) for part, heads in grafted.also_touched.items()}
    return replace(_parts(grafted, grafted.unchanged), controls=grafted.controls, also_touched=touched)


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
    all_prompts = gain.n_prompts, gain.n_scenarios
    of_circuits = _on(*all_prompts, "accuracy of circuits", by)
    fewest = min(gain.n_scenarios, len(maps.scenarios.unique()))
    measured = {"accuracy": _on(*all_prompts, "accuracy"), "circuits": of_circuits._replace(n_scenarios=fewest)}
    if cells:
        cell = min(cells, key=lambda cell: cell.n_scenarios)
        measured["functions"] = _on(cell.n_test, cell.n_scenarios, "accuracy of the target", "; attention heads only")
    if patched is not None:
        what = f"accuracy with patched {patched.what}"
        measured["cross_model"] = _on(patched.n_prompts, patched.n_scenarios, what, "; attention heads only")
    if grafted is not None:
        on_weights = _on(grafted.n_prompts, grafted.n_scenarios, "accuracy", "; all weights")
        measured["layers"] = measured["graft"] = on_weights
    return measured


def _on(n_prompts: int, n_scenarios: int, what: str, more: str = "") -> Measured:
    return Measured(f"{what} on {n_prompts} held-out prompts of {n_scenarios} scenarios{more}", n_scenarios)


SECTION = Section("verdict", Thresholds, dict[str, Verdict], run, verdict_circuits.cost)
