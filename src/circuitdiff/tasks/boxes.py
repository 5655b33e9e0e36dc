"""How a question about boxes is written: `The apple is in Box F, the book is in Box K. Box F contains the`."""

from __future__ import annotations

from circuitdiff.tasks.scenarios import Question
from circuitdiff.tasks.template import Piece, Prompt

SEGMENT_SLOTS = ("article", "object", "after_object", "in", "box", "label", "after_label")
QUERY_SLOTS = ("query_box", "query_label", "after_query_label", "last")
QUERIED = {
    "previous_query_label": "label",
    "after_previous_query_label": "after_label",
    "correct_object": "object",
    "after_correct_object": "after_object",
}
OTHER = {
    "other_label": "label",
    "after_other_label": "after_label",
    "other_object": "object",
    "after_other_object": "after_object",
}


def prompt_for(question: Question) -> Prompt:
    """The question as text up to where the answer goes, with its slots and roles."""
    context, n_boxes = question.context, len(question.context.labels)
    pieces = []
    for i, (thing, label) in enumerate(zip(context.objects, context.labels, strict=True)):
        article, stop = "The" if i == 0 else " the", "." if i == n_boxes - 1 else ","
        texts = (article, f" {thing}", " is", " in", " Box", f" {label}", stop)
        pieces += [Piece(f"segment_{i}.{slot}", text) for slot, text in zip(SEGMENT_SLOTS, texts, strict=True)]
    asked = (" Box", f" {question.label}", " contains", " the")
    pieces += [Piece(slot, text) for slot, text in zip(QUERY_SLOTS, asked, strict=True)]
    queried = {role: f"segment_{question.queried}.{slot}" for role, slot in QUERIED.items()}
    other = {role: f"segment_{question.other}.{slot}" for role, slot in OTHER.items()}
    return Prompt(tuple(pieces), queried | other)
