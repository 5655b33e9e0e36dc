"""Which question the source prompt asks, so that what it points to never coincides.

The source points in three ways: its own *object* (the right answer to the source), the *position* asked for (the
base's object in that segment), and the *label* asked for (the base's object in the box of that label).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from circuitdiff.errors import InputError
from circuitdiff.tasks.scenarios import Context, Question

_MOST_DRAWS = 2000  # one in five hits its split


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
    for _ in range(_MOST_DRAWS):
        things = random.sample(fresh_objects, n_boxes)
        names = random.sample(fresh_labels, n_boxes - 1)
        things[segment] = things[segment] if answer is None else answer
        context = Context(tuple(things), (*names[:segment], label, *names[segment:]))
        if context.split == clean.split:
            other = (segment + random.randrange(1, n_boxes)) % n_boxes
            return replace(base, context=context, label=label, queried=segment, other=other)
    raise InputError(f"no source prompt is left in split {clean.split!r}: give the task more words or fewer boxes")
