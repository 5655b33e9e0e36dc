"""Two people, one of whom gives something to the other: scenes, sentences about them, and their counterfactuals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from circuitdiff.errors import InputError
from circuitdiff.tasks.scenarios import MOST_DRAWS, generator, queried_segments, split_of

COUNTERFACTUALS = ("unrelated", "names_swapped", "repeated_name_swapped")


@dataclass(frozen=True)
class Scene:
    """The two people in the order in which a template lists them, where they are, and what is given."""

    template: int
    names: tuple[str, str]
    place: str
    object: str

    @property
    def split(self) -> str:
        """The one split to which this pair of people belongs, in whatever order."""
        return split_of(sorted(self.names))


@dataclass(frozen=True)
class Sentence:
    """A scene and the name that comes again."""

    scene: Scene
    repeated: str
    io: int  # where the indirect object is listed, 0 or 1; where neither name comes again, where it would be

    @property
    def answer(self) -> str | None:
        """The listed name that does not come again; None where neither does."""
        return self.scene.names[self.io] if self.repeated == self.scene.names[1 - self.io] else None


@dataclass(frozen=True)
class Vocabulary:
    """The words to draw from."""

    names: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]


def draw_sentences(
    key: Sequence[object], split: str, words: Vocabulary, n_templates: int, n_queries: int
) -> Iterator[list[Sentence]]:
    """The sentences of one scenario after another, without end: `n_queries` of the two that a scene allows.

    In every block of `n_templates` scenarios each template occurs once; of every two sentences in turn, one has the
    indirect object listed first and one second.
    """
    scenes = _distinct_scenes(generator(*key, "scenes"), split, words, n_templates)
    orders = queried_segments(generator(*key, "queries"), 2, n_queries)
    for scene, order in zip(scenes, orders, strict=False):
        yield [Sentence(scene, scene.names[1 - io], io) for io in order]


def draw_counterfactual(random: Random, kind: str, sentence: Sentence, names: Sequence[str]) -> Sentence:
    """The sentence's counterfactual: the same template, place and object, other names or another order of them.

    `unrelated`: three other names, none of which comes again, so no answer; the listed two are a pair of the same
    split. The others have the other listed name as their answer. `names_swapped`: the two names change places
    everywhere. `repeated_name_swapped`: the indirect object comes again instead of the subject, and the roles go with
    it.

    Source: Wang et al. 2022 (arXiv:2211.00593) for `unrelated`, its ABC distribution.
    """
    scene, io = sentence.scene, sentence.io
    if kind == "names_swapped":
        first, second = scene.names
        return Sentence(replace(scene, names=(second, first)), scene.names[io], io)
    if kind == "repeated_name_swapped":
        return Sentence(scene, scene.names[io], 1 - io)
    fresh = [name for name in names if name not in scene.names]
    pair = _draw_pair(random, scene.split, fresh)
    third = random.choice([name for name in fresh if name not in pair])
    return Sentence(replace(scene, names=pair), third, io)


def _distinct_scenes(random: Random, split: str, words: Vocabulary, n_templates: int) -> Iterator[Scene]:
    """Scenes of `split`, none of them twice, not even with the names in the other order.

    Raises: InputError if there are no more.
    """
    seen: set[Scene] = set()
    for (template,) in queried_segments(random, n_templates, 1):
        fresh = (_draw_scene(random, template, split, words) for _ in range(MOST_DRAWS))
        scene = next((s for s in fresh if s not in seen), None)
        if scene is None:
            raise InputError(f"split {split!r} has only some {len(seen) // 2} scenarios: ask for fewer prompts")
        seen |= {scene, replace(scene, names=(scene.names[1], scene.names[0]))}
        yield scene


def _draw_scene(random: Random, template: int, split: str, words: Vocabulary) -> Scene:
    names = _draw_pair(random, split, words.names)
    return Scene(template, names, random.choice(words.places), random.choice(words.objects))


def _draw_pair(random: Random, split: str, names: Sequence[str]) -> tuple[str, str]:
    """Two names of `split`, in either order, all such pairs equally likely.

    Raises: InputError if there is no such pair.
    """
    for _ in range(MOST_DRAWS):
        first, second = random.sample(names, 2)
        if split_of(sorted((first, second))) == split:
            return first, second
    raise InputError(f"{len(names)} names leave no pair to split {split!r}: use more names")
