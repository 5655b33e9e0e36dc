"""Where is what, in other words than the task's: drawers, bags and rooms, verbs other than "is in", no "Box"."""

from __future__ import annotations

import string
from random import Random

from transformers import PreTrainedTokenizerBase

from circuitdiff.tasks.vocabulary import one_token_words
from circuitdiff.training_data.example import TextExample
from circuitdiff.words import TRAIN_OBJECTS

_CONTAINERS = ("Crate", "Drawer", "Bag", "Room", "Shelf", "Basket", "Cabinet", "Locker", "Case", "Barrel")
_VERBS = ("lies in", "was put in", "sits in", "was left in", "can be found in", "belongs in", "was placed in")
_QUESTIONS = ("holds the", "has the", "now holds the", "stores the")
_LABELS = (tuple(string.ascii_uppercase), tuple(str(number) for number in range(1, 10)))
_FEWEST, _MOST = 5, 8


def related_tracking(tokenizer: PreTrainedTokenizerBase, n_examples: int, seed: int) -> list[TextExample]:
    """`The coal lies in Drawer K, ..., the net lies in Drawer B. Drawer K holds the` -> ` coal`.

    Each prompt keeps to one container, verb, question and kind of label (letters or numbers), and has 5 to 8
    containers. Its objects are those for training, which no circuit is found or evaluated on.
    """
    objects = tuple(one_token_words(tokenizer, TRAIN_OBJECTS, "Bag A holds the", [" lies"]).ids)
    random = Random(f"related tracking/{seed}")
    return [_example(random, objects) for _ in range(n_examples)]


def _example(random: Random, objects: tuple[str, ...]) -> TextExample:
    container, verb, question = (random.choice(words) for words in (_CONTAINERS, _VERBS, _QUESTIONS))
    n = random.randint(_FEWEST, _MOST)
    things, labels = random.sample(objects, n), random.sample(random.choice(_LABELS), n)
    facts = ", the ".join(f"{thing} {verb} {container} {label}" for thing, label in zip(things, labels, strict=True))
    asked = random.randrange(n)
    return TextExample(f"The {facts}. {container} {labels[asked]} {question}", f" {things[asked]}")
