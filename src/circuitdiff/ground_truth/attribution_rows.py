"""A plain top-k on attribution scores, which is told how many heads there are, beside discovery, which is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from circuitdiff.compare import overlap
from circuitdiff.discovery import StageResult, circuit_of
from circuitdiff.ground_truth.subjects import PLAN, Subject
from circuitdiff.methods.attribution import attribution_scores
from circuitdiff.selection import lowest


@dataclass(frozen=True)
class Comparison:
    """Both methods at one role of one model. Precision: the share of the chosen heads that are planted there."""

    model: str
    role: str
    planted: int  # heads of the plan's groups at this role, and the k of the top-k
    attribution: float
    discovery: float  # nan where it found nothing
    discovery_recall: float

    def to_dict(self) -> dict[str, Any]:
        return {k: None if v != v else v for k, v in asdict(self).items()}


def compare_with_attribution(subject: Subject, results: Sequence[StageResult]) -> list[Comparison]:
    """At each role where the plan's groups have heads: the k lowest scores on the prompts of both splits' first."""
    found, name = circuit_of(results, PLAN.shared), subject.model.name
    rows = []
    for role in dict.fromkeys(stage.at for stage in PLAN.stages):
        groups = [stage.name for stage in PLAN.stages if stage.at == role]
        truth = {head for group in groups if group in subject.truth.circuit.groups for head in _heads(subject, group)}
        if not truth:
            continue
        scores = attribution_scores(subject.model, subject.prompts["discovery"], role).mean(-1)
        top, ours = overlap(lowest(scores, len(truth)), truth), overlap(found.heads_at(role), truth)
        rows.append(Comparison(name, role, len(truth), top.precision, ours.precision, ours.recall))
    return rows


def _heads(subject: Subject, group: str) -> tuple:
    return subject.truth.circuit.groups[group].heads
