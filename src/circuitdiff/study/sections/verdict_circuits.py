"""The numbers behind the verdict's claims on circuits: each alone in base and variant, and how alike they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from circuitdiff.circuit import Circuit, Head, beyond, joined
from circuitdiff.evaluation import By, Evaluation, moved
from circuitdiff.stats.intervals import normalised_ratio_interval, ratio_interval
from circuitdiff.study.common_units import circuit_answers, model_answers
from circuitdiff.study.estimates import Estimate, more_accurate_by, ratio, with_heads
from circuitdiff.study.evidence import (
    JUDGED,
    CircuitEvidence,
    GapEvidence,
    Judged,
    NeededHeads,
    Noted,
    RivalEvidence,
    SimilarityEvidence,
    StabilityEvidence,
    Thresholds,
    TransferEvidence,
)
from circuitdiff.study.section import Part, Sizes, StudyContext
from circuitdiff.study.sections.completeness import PartsRemoved
from circuitdiff.study.sections.discovery import FoundCircuit, circuits
from circuitdiff.study.sections.faithfulness import CircuitInModel
from circuitdiff.study.sections.minimality import PrunedCircuit
from circuitdiff.study.sections.overlap import VariantOverlap

_ALIKE = 0.8  # cosine of two profiles, above which they are called alike
_BYS: tuple[By, ...] = ("slot", "kind")
_IN_BASE, _IN_VARIANT, _WITHOUT_OWN = 3, 5, 2  # circuits alone; the last in a variant without a circuit of its own


class CircuitNumbers(NamedTuple):
    faithfulness: tuple[CircuitEvidence, ...] = ()
    transfers: tuple[TransferEvidence, ...] = ()


async def circuit_numbers(study: StudyContext, variant: str) -> CircuitNumbers:
    """By ablation: whether each own circuit does what its model does, and what either does in the other model.

    Means by kind take addresses out everywhere but where heads are kept, so keeping them at the queried segment alone
    would mark the answer: there the heads are kept at every segment. Nothing if the base has no circuit, and if the
    variant has none of its own only what the base's does in it.
    """
    known = await circuits(study)
    first, second = (with_heads(known[model]) if model in known else None for model in (study.base, variant))
    if first is None:
        return CircuitNumbers()
    found = await study.each(_BYS, lambda by: _under(study, variant, first, second, by))
    return CircuitNumbers(
        tuple(row for faithfulness, _ in found for row in faithfulness), tuple(transfer for _, transfer in found)
    )


async def _under(
    study: StudyContext, variant: str, first: Circuit, second: Circuit | None, by: By
) -> tuple[list[CircuitEvidence], TransferEvidence]:
    further = Circuit({}) if second is None else beyond(second, first)
    tested = [first] if second is None else [first, second, joined(first, second), further]
    if by == "kind":
        tested = [moved(each, study.task.every_segment) for each in tested]
    base, model = await model_answers(study, study.base), await model_answers(study, variant)
    theirs, *others, ablated = await _alone(study, variant, tested, by)
    compared = TransferEvidence(
        by=by,
        over_base=more_accurate_by(theirs, base),
        faithful=_normalised(model, theirs, ablated, "accuracy"),
    )
    if not others:
        return [], compared
    its_own, together, extras = others
    own, reverse, nothing = await _alone(study, study.base, tested[:2], by)
    gained = ~base.hits.numpy() & model.hits.numpy()
    rows = [
        CircuitEvidence(
            by=by,
            score=score,
            base_own=_normalised(base, own, nothing, score),
            variant_own=_normalised(model, its_own, ablated, score),
            transfer=transfer(model, theirs, its_own, ablated, score),
            transfer_where_only_variant_right=(
                transfer(model, theirs, its_own, ablated, score, gained) if score == "accuracy" else None
            ),
        )
        for score in JUDGED
    ]
    return rows, replace(
        compared,
        over_own=more_accurate_by(theirs, its_own),
        reverse=more_accurate_by(reverse, base),
        extras_add=more_accurate_by(together, theirs) if len(further) else None,
        extras_alone=more_accurate_by(extras, ablated) if len(further) else None,
    )


async def _alone(study: StudyContext, model: str, tested: Sequence[Circuit], by: By) -> list[Evaluation]:
    """The circuits alone and, last, nothing."""
    return await circuit_answers(study, model, f"own circuits in {model}, {by} means", [*tested, Circuit({})], by)


def _normalised(model: Evaluation, circuit: Evaluation, ablated: Evaluation, score: Judged) -> Noted:
    own, nothing, whole = (each.scored(score) for each in (circuit, ablated, model))
    return Noted(**vars(ratio(normalised_ratio_interval(own, nothing, whole, model.scenarios.numpy()))))


def transfer(
    model: Evaluation,
    base_circuit: Evaluation,
    own_circuit: Evaluation,
    ablated: Evaluation,
    score: Judged,
    among: ndarray | None = None,
) -> Noted:
    """Normalised faithfulness of the base's circuit less that of the variant's own, in the variant, on some prompts."""
    rows = np.ones(len(model.hits), dtype=bool) if among is None else among
    values = [each.scored(score)[rows] for each in (base_circuit, own_circuit, model, ablated)]
    base, own, whole, nothing = (each.astype(int) if each.dtype == bool else each for each in values)
    scenarios = model.scenarios.numpy()[rows]
    n = len(np.unique(scenarios))
    if n < 2:
        return Noted(None, None, None, f"there are {n} such scenarios", n)
    return Noted(**vars(ratio(ratio_interval(base - own, whole - nothing, scenarios))), n=n)


def gaps(found: Mapping[str, Mapping[str, PartsRemoved]], models: Sequence[str]) -> tuple[GapEvidence, ...]:
    """Of each model's own circuit, where the section ran and its quantity lies between 0 and 1."""
    rows = {model: found.get(model, {}).get(model) for model in models}
    return tuple(
        GapEvidence(model, group.group, group.difference)
        for model, parts in rows.items()
        if parts is not None and parts.quantity != "logit_difference"
        for group in parts.groups
    )


def rivals(found: Mapping[str, Mapping[str, CircuitInModel]], models: Sequence[str]) -> tuple[RivalEvidence, ...]:
    """Of each model's own circuit, where the section ran."""
    cells = {model: found[model][model] for model in models if model in found and model in found[model]}
    return tuple(
        RivalEvidence(model, Noted(None, None, None, each.note) if each.difference is None else noted(each.difference))
        for model, cell in cells.items()
        for each in cell.controls
        if each.kind == "rival"
    )


def stability(found: Mapping[str, FoundCircuit], models: Sequence[str]) -> tuple[StabilityEvidence, ...]:
    """Of the stages that chose heads; not known where a screen measured none of those that it left out."""
    return tuple(
        StabilityEvidence(model, stage.name, stage.stability)
        for model in models
        if model in found
        for stage in found[model].stages
        if stage.selected
    )


def noted(estimate: Estimate) -> Noted:
    return Noted(estimate.value, estimate.low, estimate.high)


def needed_heads(found: Mapping[str, PrunedCircuit], base: str, variant: str) -> NeededHeads | None:
    """Of each own circuit; None unless both were tested. A head stands for itself in a group."""
    if base not in found or variant not in found:
        return None
    outcomes = [
        {
            f"{Head(*each.head)} ({group})": each.outcome
            for group, heads in found[model].groups.items()
            for each in heads
        }
        for model in (base, variant)
    ]
    first, second = ({head for head, outcome in each.items() if outcome == "needed"} for each in outcomes)
    opposed = [head for head in outcomes[0] if {each.get(head) for each in outcomes} == {"needed", "not_needed"}]
    return NeededHeads(len(first), len(second), tuple(opposed))


def similarity_evidence(compared: VariantOverlap | None) -> tuple[SimilarityEvidence, ...]:
    """How alike base and variant are, stage by stage, beside another stage's map.

    A stage that chose heads in neither model has nothing to be alike in; one that could not be run in the variant
    leaves its row open.
    """
    stages = [] if compared is None else [stage for stage in compared.stages or () if max(stage.n_chosen)]
    not_run = () if compared is None else compared.not_run or ()
    rows = [SimilarityEvidence(stage.stage, stage.likeness, stage.different) for stage in stages]
    return (*rows, *map(SimilarityEvidence, not_run))


def cost(sizes: Sizes, _: Thresholds) -> Iterator[Part]:
    """In base and variant, by slot and by kind."""
    with_own = sizes.n_searched - 1
    runs = with_own * (_IN_BASE + _IN_VARIANT) + (sizes.n_models - 1 - with_own) * _WITHOUT_OWN
    rows = len(_BYS) * runs * sizes.settings.prompts.evaluation
    if rows:
        yield Part("circuits of base and variants, for the verdict", rows, sizes.runs(rows, sizes.n_roles))


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
    """Surely alike, and more than any other; what is undefined is above and below nothing."""
    others = [each.high for name, each in cosines.items() if name != group]
    low = cosines[group].low if group in cosines and others else None
    return low is not None and all(other is not None and low > other for other in (_ALIKE, *others))
