"""How source prompts are written: as the task writes them, or with one thing about the text changed.

Source: the desiderata of Prakash et al. 2024 (arXiv:2402.14811). We differ where the published text could collide with
the prompt (inserted words are drawn from those that neither prompt has) or was ungrammatical (a changed last segment
still ends the sentence).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from circuitdiff.errors import InputError
from circuitdiff.tasks.boxes import prompt_for
from circuitdiff.tasks.scenarios import Question
from circuitdiff.tasks.template import Piece, Prompt


@dataclass(frozen=True)
class Source:
    """The question that a source prompt asks, and words that neither it nor its base prompt has."""

    question: Question
    spare_objects: tuple[str, ...]
    spare_labels: tuple[str, ...]


Wording = Callable[[Source], Prompt]


def as_asked(source: Source) -> Prompt:
    """The text of the task itself."""
    return prompt_for(source.question)


def text_before(source: Source) -> Prompt:
    """Some words before the first segment."""
    preamble = Piece("preamble", "There are a bunch of boxes containing objects,")
    return _edited(prompt_for(source.question), {"segment_0.article": (preamble, _LATER_ARTICLE)})


def text_after(source: Source) -> Prompt:
    """The same words after the last segment."""
    return _with_last_clause(source, Piece("postscript", " these are a bunch of boxes containing objects"))


def segment_before(source: Source) -> Prompt:
    """One more segment, with another object and label, before the first one."""
    extra = Piece("extra_segment", f"The {_extra_box(source)},")
    return _edited(prompt_for(source.question), {"segment_0.article": (extra, _LATER_ARTICLE)})


def segment_after(source: Source) -> Prompt:
    """One more segment, with another object and label, after the last one."""
    return _with_last_clause(source, Piece("extra_segment", f" the {_extra_box(source)}"))


def extra_boxes(source: Source) -> Prompt:
    """Three boxes without objects, before the segment asked for."""
    first, second, third = _spare(source.spare_labels, 3, "labels")
    clause = f"here are three additional boxes, Box {first}, Box {second} and Box {third},"
    at, queried = f"segment_{source.question.queried}.article", source.question.queried
    start = "T" if queried == 0 else " t"
    return _edited(prompt_for(source.question), {at: (Piece("extra_boxes", start + clause), Piece(at, " the"))})


def tokens_between(source: Source) -> Prompt:
    """`is contained in the Box F` for `is in Box F` in the segment asked for."""
    segment = f"segment_{source.question.queried}"
    changes = {
        f"{segment}.after_object": (
            Piece(f"{segment}.after_object", " is"),
            Piece(f"{segment}.contained", " contained"),
        ),
        f"{segment}.in": (Piece(f"{segment}.in", " in"), Piece(f"{segment}.in_the", " the")),
    }
    return _edited(prompt_for(source.question), changes)


def other_order(source: Source) -> Prompt:
    """`Box F contains the apple` for `the apple is in Box F` in the segment asked for."""
    question = source.question
    n, context = question.queried, question.context
    texts = {
        "box": "Box" if n == 0 else " Box",
        "label": f" {context.labels[n]}",
        "after_label": " contains",
        "article": " the",
        "object": f" {context.objects[n]}",
        "after_object": "." if n == len(context.labels) - 1 else ",",
    }
    whole = tuple(Piece(f"segment_{n}.{slot}", text) for slot, text in texts.items())
    emptied: dict[str, tuple[Piece, ...]] = {f"segment_{n}.{slot}": () for slot in (*texts, "in")}
    return _edited(prompt_for(question), emptied | {f"segment_{n}.article": whole})


def negated(source: Source) -> Prompt:
    """`is not in` for `is in` in the segment asked for."""
    segment = f"segment_{source.question.queried}"
    pieces = (Piece(f"{segment}.after_object", " is"), Piece(f"{segment}.not", " not"))
    return _edited(prompt_for(source.question), {f"{segment}.after_object": pieces})


def no_comma(source: Source) -> Prompt:
    """Without commas; what follows a label is then the next segment's article."""
    n_boxes = len(source.question.context.labels)
    gone: dict[str, tuple[Piece, ...]] = {f"segment_{i}.after_label": () for i in range(n_boxes - 1)}
    moved = {f"segment_{i}.after_label": f"segment_{i + 1}.article" for i in range(n_boxes - 1)}
    return _edited(prompt_for(source.question), gone, moved)


def comma(source: Source) -> Prompt:
    """A comma after each object."""
    changes = {
        f"segment_{i}.after_object": (Piece(f"segment_{i}.after_object", ","), Piece(f"segment_{i}.is", " is"))
        for i in range(len(source.question.context.labels))
    }
    return _edited(prompt_for(source.question), changes)


_LATER_ARTICLE = Piece("segment_0.article", " the")


def _extra_box(source: Source) -> str:
    (thing,), (label,) = _spare(source.spare_objects, 1, "objects"), _spare(source.spare_labels, 1, "labels")
    return f"{thing} is in Box {label}"


def _spare(words: tuple[str, ...], n_needed: int, what: str) -> tuple[str, ...]:
    if len(words) < n_needed:
        raise InputError(
            f"inserted text needs {n_needed} {what} that neither prompt has; {len(words)} are left: give the task more "
            f"{what} or fewer boxes"
        )
    return words[:n_needed]


def _with_last_clause(source: Source, clause: Piece) -> Prompt:
    """The last segment ends in a comma, and `clause` ends the sentence."""
    stop = f"segment_{len(source.question.context.labels) - 1}.after_label"
    return _edited(prompt_for(source.question), {stop: (Piece(stop, ","), clause, Piece("last_stop", "."))})


def _edited(prompt: Prompt, changes: Mapping[str, tuple[Piece, ...]], moved: Mapping[str, str] | None = None) -> Prompt:
    """The prompt with some slots written anew. `moved`: slots that are gone, each with the one that stands in."""
    moved = moved or {}
    pieces = tuple(new for piece in prompt.pieces for new in changes.get(piece.slot, (piece,)))
    roles = {role: moved.get(slot, slot) for role, slot in prompt.roles.items()}
    return Prompt(pieces, dict(moved) | roles)
