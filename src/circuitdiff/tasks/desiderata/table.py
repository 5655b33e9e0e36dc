"""The desiderata of entity tracking, as data.

Source: Davies et al. 2023 (arXiv:2307.03637) for the idea; Prakash et al. 2024 (arXiv:2402.14811) for these. We differ
in what makes a test: the unpatched answer and the answers that object, position and label point to are always four
different ones (the published sources kept the base's answer in one of seven), the label's target is the object's token
(theirs could not be written), inserted words are in neither prompt, and next_segment never wants the unpatched answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from circuitdiff.errors import InputError, choices
from circuitdiff.tasks.desiderata.source_prompts import (
    Pairing,
    Wording,
    as_asked,
    comma,
    conflicting,
    extra_boxes,
    negated,
    next_unrelated,
    no_comma,
    other_order,
    segment_after,
    segment_before,
    text_after,
    text_before,
    tokens_between,
    unrelated,
)
from circuitdiff.tasks.scenarios import Question

Target = Callable[[Question, Question], str | None]  # base, source -> the object pointed to, if there is one


@dataclass(frozen=True)
class Desideratum:
    """From a question to its source prompt and the answer that patching should bring about. Yours can be added."""

    name: str
    about: str
    target: Target
    wording: Wording = as_asked
    pairing: Pairing = unrelated


def source_object(base: Question, source: Question) -> str:
    """The right answer to the source."""
    return source.context.objects[source.queried]


def at_position(base: Question, source: Question) -> str:
    """The base's object in the segment that the source asks for."""
    return base.context.objects[source.queried]


def at_label(base: Question, source: Question) -> str | None:
    """The base's object in the box whose label the source asks for; None if the base has no such box."""
    labels = base.context.labels
    return base.context.objects[labels.index(source.label)] if source.label in labels else None


def at_next_position(base: Question, source: Question) -> str:
    """The base's object in the segment after the one that the source asks for; after the last comes the first."""
    return base.context.objects[(source.queried + 1) % len(base.context.objects)]


POINTERS: Mapping[str, Target] = MappingProxyType({"object": source_object, "position": at_position, "label": at_label})

MAIN = (
    Desideratum("object", "which object", source_object),
    Desideratum("position", "which position in the list", at_position),
    Desideratum("label", "which label", at_label),
)
REWORDED = (
    Desideratum("text_before", "position, with words before the list", at_position, text_before),
    Desideratum("text_after", "position, with words after the list", at_position, text_after),
    Desideratum("tokens_between", "position, object and label further apart", at_position, tokens_between),
    Desideratum("segment_before", "position, not counting an inserted one", at_position, segment_before),
    Desideratum("segment_after", "position, with one more at the end", at_position, segment_after),
    Desideratum("extra_boxes", "position, with empty boxes before it", at_position, extra_boxes),
    Desideratum("next_segment", "the position after it", at_next_position, pairing=next_unrelated),
    Desideratum("order", "position, label before object", at_position, other_order),
    Desideratum("association", "position, object said not to be in the box", at_position, negated),
    Desideratum("no_comma", "position, without commas", at_position, no_comma),
    Desideratum("comma", "position, a comma after each object", at_position, comma),
)
CONFLICTS = (
    Desideratum("conflict_object", "object, all answers listed", source_object, pairing=conflicting),
    Desideratum("conflict_position", "position, all answers listed", at_position, pairing=conflicting),
    Desideratum("conflict_label", "label, all answers listed", at_label, pairing=conflicting),
)
DESIDERATA: Mapping[str, Desideratum] = MappingProxyType({each.name: each for each in (*MAIN, *REWORDED, *CONFLICTS)})


def desideratum_named(name: str) -> Desideratum:
    """Raises: InputError naming the desiderata there are."""
    if name not in DESIDERATA:
        raise InputError(f"there is no desideratum {name!r}{choices(name, DESIDERATA)}")
    return DESIDERATA[name]
