"""Which question a source prompt asks, and how it is written.

The source points in three ways: its own *object* (the right answer to the source), the *position* asked for (the
base's object in that segment), and the *label* asked for (the base's object in the box of that label). These never
coincide. It is written as the task writes it, or with one thing about the text changed.

Source: the desiderata of Prakash et al. 2024 (arXiv:2402.14811). We differ where the published text could collide with
the prompt (inserted words are drawn from those that neither prompt has) or was ungrammatical (a changed last segment
still ends the sentence).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from circuitdiff.errors import InputError
from circuitdiff.tasks.scenarios import MOST_DRAWS, Context, Question, prompt_for
from circuitdiff.tasks.template import Piece, Prompt

Pairing = Callable[[Random, Question, Sequence[str], Sequence[str]], Question]  # base, objects, labels -> source


def unrelated(random: Random, base: Question, objects: Sequence[str], labels: Sequence[str]) -> Question:
    """Other objects, another segment, and a label that the base has in a third segment.

    Then base answer, object, position and label give four different answers. The source's other labels are not the
    base's.
    """
    segment, labelled = _segments(random, base, 2, taken=())
    return _source(random, base, objects, labels, segment, labelled, None)


def next_unrelated(random: Random, base: Question, objects: Sequence[str], labels: Sequence[str]) -> Question:
    """Likewise, and the segment after the source's gives a fifth answer."""
    n_boxes = len(base.context.labels)
    (segment,) = _segments(random, base, 1, taken=((base.queried - 1) % n_boxes,))
    (labelled,) = _segments(random, base, 1, taken=(segment, (segment + 1) % n_boxes))
    return _source(random, base, objects, labels, segment, labelled, None)


def conflicting(random: Random, base: Question, objects: Sequence[str], labels: Sequence[str]) -> Question:
    """Likewise, but the source's own object is one of the base's, too: all four answers are in the base's list."""
    segment, labelled, third = _segments(random, base, 3, taken=())
    return _source(random, base, objects, labels, segment, labelled, base.context.objects[third])


def _segments(random: Random, base: Question, n_wanted: int, taken: Sequence[int]) -> list[int]:
    """Different segments, none of them the base's or taken."""
    n_boxes = len(base.context.labels)
    free = [i for i in range(n_boxes) if i != base.queried and i not in taken]
    if len(free) < n_wanted:
        raise InputError(f"{n_boxes} boxes are too few for answers that all differ: use at least 4")
    return random.sample(free, n_wanted)


def _source(
    random: Random,
    base: Question,
    objects: Sequence[str],
    labels: Sequence[str],
    segment: int,
    labelled: int,
    answer: str | None,
) -> Question:
    """A question of the base's split that asks for `segment`, whose label is that of the base's segment `labelled`."""
    clean, n_boxes = base.context, len(base.context.labels)
    fresh_objects = [o for o in objects if o not in clean.objects]
    fresh_labels = [x for x in labels if x not in clean.labels]
    label = clean.labels[labelled]
    if len(fresh_objects) < n_boxes or len(fresh_labels) < n_boxes - 1:
        raise InputError(
            f"a source prompt needs {n_boxes} other objects and {n_boxes - 1} other labels than its base; "
            f"{len(fresh_objects)} and {len(fresh_labels)} are left: give the task more words or fewer boxes"
        )
    for _ in range(MOST_DRAWS):
        things = random.sample(fresh_objects, n_boxes)
        names = random.sample(fresh_labels, n_boxes - 1)
        things[segment] = things[segment] if answer is None else answer
        context = Context(tuple(things), (*names[:segment], label, *names[segment:]))
        if context.split == clean.split:
            other = (segment + random.randrange(1, n_boxes)) % n_boxes
            return replace(base, context=context, label=label, queried=segment, other=other)
    raise InputError(f"no source prompt is left in split {clean.split!r}: give the task more words or fewer boxes")


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
