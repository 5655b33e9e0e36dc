"""Claims about variants that compute the same: every difference from the base would be a false alarm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from circuitdiff.discovery import StageResult
from circuitdiff.evaluation import evaluate_model
from circuitdiff.ground_truth.rows import Row, at_most, exactly
from circuitdiff.ground_truth.subjects import Subject
from circuitdiff.heads import Head

NULLS = ("planted-permuted-heads", "planted-rotated-values")
_NOISE = 1e-3  # logits, between two float32 computations of the same effect


def null_rows(base: Subject, found: Sequence[StageResult], null: Subject, again: Sequence[StageResult]) -> list[Row]:
    """The null's answers, heads and effects are the base's, with the heads at their new places."""
    name, pairs = null.model.name, base.prompts["evaluation"]
    first, second = (evaluate_model(subject.model, pairs) for subject in (base, null))
    changed = int((first.predictions != second.predictions).sum())
    place = _places(base, null)
    other = [one.stage.name for one, two in zip(found, again, strict=True) if not _same_heads(one, two, place)]
    largest = max(_largest_change(one, two) for one, two in zip(found, again, strict=True))
    return [
        exactly(name, "null: answers that differ from the base's", changed, 0, f"of {len(pairs)} prompts"),
        exactly(name, "null: stages with other heads than the base's", len(other), 0, ", ".join(other)),
        at_most(name, "null: largest change of an effect", largest, _NOISE, "logits; all heads, all stages"),
    ]


def _places(base: Subject, null: Subject) -> Mapping[Head, Head]:
    """Where each head that plays a part is in the null."""
    parts = ((heads, null.truth.parts[part]) for part, heads in base.truth.parts.items())
    return {here: there for heads, moved in parts for here, there in zip(heads, moved, strict=True)}


def _same_heads(found: StageResult, again: StageResult, place: Mapping[Head, Head]) -> bool:
    """The same heads in the same order; of decoys, whose new places are not recorded, the layers."""

    def key(head: Head) -> Head | int:
        return place.get(head, head.layer)

    known = set(place.values())

    def own(head: Head) -> Head | int:
        return head if head in known else head.layer

    one, two = found.selection, again.selection
    helping = list(map(key, one.helping)) == list(map(own, two.helping))
    return helping and list(map(key, one.hurting)) == list(map(own, two.hurting))


def _largest_change(found: StageResult, again: StageResult) -> float:
    """Of the mean effects, sorted within each layer, so that heads which changed places meet again."""
    one, two = (result.found.effects.sort(dim=1).values for result in (found, again))
    return float((one - two).abs().max())
