"""Things in labelled boxes: contexts, questions about them, their counterfactuals, and how they are written.

`The apple is in Box F, the book is in Box K. Box F contains the`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from circuitdiff.errors import InputError, choices
from circuitdiff.tasks.template import Piece, Prompt

SPLITS = ("train", "discovery", "replication", "mask", "evaluation")
COUNTERFACTUALS = ("unrelated", "other_query", "objects_swapped", "labels_swapped")
_MOST_PROMPTS = 1_000_000  # hours to draw; more is a slip of the pen
MOST_DRAWS = 2000  # one in five hits its split; 0.8 ** 2000 is nothing, so failing means that none is left
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


@dataclass(frozen=True)
class Context:
    """Which object is in the box of which label, segment by segment."""

    objects: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def split(self) -> str:
        """The one split to which this combination of objects and labels belongs, in whatever order."""
        return split_of([*sorted(self.objects), *sorted(self.labels)])


@dataclass(frozen=True)
class Question:
    """A context, and the label asked for."""

    context: Context
    label: str
    queried: int  # the segment of that label; where the context lacks it, the segment that stands in
    other: int  # a wrong segment, for controls

    @property
    def answer(self) -> str | None:
        """The object in the box asked for, if there is such a box."""
        there_is = self.context.labels[self.queried] == self.label
        return self.context.objects[self.queried] if there_is else None


def split_of(words: Sequence[str]) -> str:
    """The one split to which these words in this order belong; each gets about a fifth of all combinations."""
    digest = hashlib.sha256(",".join(words).encode()).digest()
    return SPLITS[int.from_bytes(digest[:8], "big") % len(SPLITS)]


def check_options(
    n_prompts: int, split: str, n_queries: int, most_queries: int, counterfactual: str, kinds: Sequence[str]
) -> None:
    """Raises: InputError if what a task's `sample` is asked for does not exist."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}{choices(split, SPLITS)}")
    if counterfactual not in kinds:
        raise InputError(f"unknown counterfactual {counterfactual!r}{choices(counterfactual, kinds)}")
    if not 1 <= n_prompts <= _MOST_PROMPTS:
        raise InputError(f"n_prompts must be from 1 to {_MOST_PROMPTS:,}; got {n_prompts}")
    if not 1 <= n_queries <= most_queries:
        raise InputError(f"queries_per_scenario must be from 1 to {most_queries}; got {n_queries}")


def generator(*key: object) -> Random:
    """A random generator of its own for `key`: the same in every process, unlike Python's `hash`."""
    return Random("/".join(map(str, key)))


def draw_context(random: Random, split: str, objects: Sequence[str], labels: Sequence[str], n_boxes: int) -> Context:
    """A context of `split`, all such contexts equally likely.

    Raises: InputError if the objects and labels are too few to have one.
    """
    for _ in range(MOST_DRAWS):
        context = Context(tuple(random.sample(objects, n_boxes)), tuple(random.sample(labels, n_boxes)))
        if context.split == split:
            return context
    raise InputError(
        f"{len(objects)} objects and {len(labels)} labels leave no combination of {n_boxes} boxes "
        f"to split {split!r}: use more objects or fewer boxes"
    )


def distinct_contexts(
    random: Random, split: str, objects: Sequence[str], labels: Sequence[str], n_boxes: int
) -> Iterator[Context]:
    """Contexts of `split`, none of them twice."""
    seen: set[Context] = set()
    while True:
        fresh = (draw_context(random, split, objects, labels, n_boxes) for _ in range(MOST_DRAWS))
        context = next((c for c in fresh if c not in seen), None)
        if context is None:
            raise InputError(f"split {split!r} has only some {len(seen)} scenarios: ask for fewer prompts")
        seen.add(context)
        yield context


def queried_segments(random: Random, n_boxes: int, n_queries: int) -> Iterator[tuple[int, ...]]:
    """For each scenario the segments to ask about, distinct; each segment once in every block of `n_boxes`."""
    waiting: list[int] = []
    while True:
        chosen = waiting[:n_queries]
        if len(chosen) < n_queries:
            refill = random.sample(range(n_boxes), n_boxes)
            waiting = chosen + sorted(refill, key=lambda segment: segment in chosen)
            chosen = waiting[:n_queries]
        waiting = waiting[n_queries:]
        yield tuple(chosen)


def draw_questions(
    key: Sequence[object],
    split: str,
    vocabulary: tuple[Sequence[str], Sequence[str]],
    n_boxes: int,
    n_queries: int,
) -> Iterator[list[Question]]:
    """The questions of one scenario after another, without end. `vocabulary`: objects and labels."""
    contexts = distinct_contexts(generator(*key, "contexts"), split, *vocabulary, n_boxes)
    segments = queried_segments(generator(*key, "queries"), n_boxes, n_queries)
    others = generator(*key, "others")
    for context, queried in zip(contexts, segments, strict=False):
        yield [Question(context, context.labels[q], q, _other_segment(others, q, n_boxes)) for q in queried]


def draw_counterfactual(
    random: Random, kind: str, question: Question, objects: Sequence[str], labels: Sequence[str]
) -> Question:
    """The question's counterfactual, in the same split.

    `unrelated`: other objects, other labels, and a label asked for that neither context has, so no answer.
    The roles that follow the query then sit as if another segment than the clean one were asked for, the
    same for all of them. The others change one thing and have an answer of their own. `other_query`: another
    box is asked for. `objects_swapped`: the object in the box asked for changes places with another one.
    `labels_swapped`: the label asked for changes places with another one, and the roles go with it.

    Differs from the published code, which let the label asked for occur in the counterfactual's context, and
    drew the stand-in segment afresh for every sender.
    """
    clean, here = question.context, question.queried
    n_boxes = len(clean.labels)
    free = [i for i in range(n_boxes) if i not in (here, question.other)]
    there = random.choice(free or [question.other])  # of two boxes, the control's is the only other one
    moved = replace(question, queried=there, other=(there + question.other - here) % n_boxes)
    if kind == "other_query":
        return replace(moved, label=clean.labels[there])
    if kind == "objects_swapped":
        return replace(question, context=replace(clean, objects=_swapped(clean.objects, here, there)))
    if kind == "labels_swapped":
        return replace(moved, context=replace(clean, labels=_swapped(clean.labels, here, there)))
    fresh_objects = [o for o in objects if o not in clean.objects]
    fresh_labels = [x for x in labels if x not in clean.labels]
    context = draw_context(random, clean.split, fresh_objects, fresh_labels, n_boxes)
    label = random.choice([x for x in fresh_labels if x not in context.labels])
    return replace(moved, context=context, label=label)


def _other_segment(random: Random, segment: int, n_boxes: int) -> int:
    return (segment + random.randrange(1, n_boxes)) % n_boxes


def _swapped(items: tuple[str, ...], i: int, j: int) -> tuple[str, ...]:
    order = {i: j, j: i}
    return tuple(items[order.get(k, k)] for k in range(len(items)))


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
