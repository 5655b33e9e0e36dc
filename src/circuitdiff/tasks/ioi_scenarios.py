"""Two people, one of whom gives something to the other: scenes, sentences, counterfactuals, and their words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from circuitdiff.errors import InputError
from circuitdiff.tasks.scenarios import MOST_DRAWS, generator, queried_segments, split_of

COUNTERFACTUALS = ("unrelated", "names_swapped", "repeated_name_swapped")

_EVALUATED = """
Mary John James Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony Andrew Paul
Kevin Brian George Edward Jason Ryan Jacob Eric Scott Benjamin Samuel Patrick Jack Adam Henry Peter Jennifer
Linda Elizabeth Barbara Susan Jessica Sarah Karen Lisa Nancy Emily Margaret Michelle Amanda Melissa Rebecca
Laura Helen Anna Nicole Catherine Rachel Emma Maria Julie Victoria Hannah Alice Julia Sophia Jane Kate Lucy
Simon Martin Oliver Harry Arthur Claire Charlotte Lucas Oscar Tom Bob Mike Steve Chris Sam
"""
_TRAINED = """
Steven Timothy Nicholas Jonathan Stephen Larry Justin Alexander Dennis Jerry Tyler Aaron Nathan Patricia Sandra
Betty Ashley Carol Deborah Stephanie Sharon Kathleen Amy Angela Ruth Katherine Christine Samantha Janet Diane
Joyce Kelly Christina Joan Judith Olivia Martha Andrea Ann Jean Teresa Sara Marie Philip Alan Roger Walter
Albert Howard Ralph Carl Keith Raymond Sean Gregory Kenneth Bruce Ellen Caroline Leo Luke Noah Ethan Felix
Victor Marcus Tony Jim Dave Dan Ben Joe Greg Jeff
"""
_PLACES = """
airport bakery bank beach bridge castle church factory farm garden gym harbor hospital hotel lake library mall
market museum office palace park pool port restaurant river school shop stadium station temple theater tower
village zoo
"""
_OBJECTS = """
ball basket blanket book bottle box cake camera card clock coat cup drink flower gift guitar hat key knife ladder
lamp letter map mirror notebook painting pen phone photo pillow ring sandwich shirt ticket toy watch
"""

NAMES = tuple(_EVALUATED.split())  # for finding and evaluating circuits
TRAIN_NAMES = tuple(_TRAINED.split())  # for fine-tuning only: no variant is evaluated on what it learned
PLACES = tuple(_PLACES.split())
OBJECTS = tuple(_OBJECTS.split())  # each goes with `a`

# Chosen among thirty for those after which a small model expects a name and not "the", on TRAIN_NAMES. None starts with
# a name, which would then lack the space that belongs to its token elsewhere.
TEMPLATES = (
    "When {first} and {second} went to the {place} together, {repeated} gave a {object} to",
    "While {first} and {second} sat together outside the {place}, {repeated} handed a {object} to",
    "Once {first} and {second} were inside the {place}, {repeated} quietly handed a {object} to",
    "Because {first} and {second} were both at the {place} that day, {repeated} offered a {object} to",
    "On Friday {first} and {second} ate lunch together at the {place}, and {repeated} handed a {object} to",
    "In the morning {first} and {second} worked at the {place}. Then {repeated} gave a {object} to",
    "After {first} and {second} had met at the {place} several times, {repeated} gave a {object} to",
    "Yesterday {first} and {second} met at the {place}, and {repeated} passed a {object} to",
)


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
