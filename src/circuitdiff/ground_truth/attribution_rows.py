"""A plain top-k on attribution scores, which is told how many heads there are, beside discovery, which is not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from circuitdiff.compare import overlap
from circuitdiff.discovery import StageResult, circuit_of
from circuitdiff.ground_truth.subjects import PLAN, Subject
from circuitdiff.heads import Head
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

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        values: dict[str, Any] = {k: math.nan if v is None else v for k, v in data.items()}
        return cls(**values)


def compare_with_attribution(subject: Subject, results: Sequence[StageResult]) -> list[Comparison]:
    """At each role where the plan's groups have heads: the k lowest scores on the prompts of both splits' first."""
    found, name = circuit_of(results, PLAN.shared), subject.model.name
    planted = {
        role: truth for role in dict.fromkeys(stage.at for stage in PLAN.stages) if (truth := _at(subject, role))
    }
    scores = attribution_scores(subject.model, subject.prompts["discovery"], list(planted))
    rows = []
    for role, truth in planted.items():
        top = overlap(lowest(scores[role].mean(-1), len(truth)), truth)
        ours = overlap(found.heads_at(role), truth)
        rows.append(Comparison(name, role, len(truth), top.precision, ours.precision, ours.recall))
    return rows


def _at(subject: Subject, role: str) -> set[Head]:
    """The heads of the plan's groups at a role."""
    groups = subject.truth.circuit.groups
    return {
        head for stage in PLAN.stages if stage.at == role and stage.name in groups for head in groups[stage.name].heads
    }
