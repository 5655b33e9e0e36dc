"""Built-in data for fine-tuning: prompts with answers, as text."""

from __future__ import annotations

import inspect
import operator
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from random import Random
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError, choices
from circuitdiff.tasks import entity_tracking
from circuitdiff.tasks.scenarios import draw_questions
from circuitdiff.tasks.tokens import one_token_words
from circuitdiff.vocabulary import TRAIN_OBJECTS


class TextExample(NamedTuple):
    """The answer follows the prompt as both are written: a space between them belongs to the answer."""

    prompt: str
    answer: str


_CONTAINERS = ("Crate", "Drawer", "Bag", "Room", "Shelf", "Basket", "Cabinet", "Locker", "Case", "Barrel")
_VERBS = ("lies in", "was put in", "sits in", "was left in", "can be found in", "belongs in", "was placed in")
_QUESTIONS = ("holds the", "has the", "now holds the", "stores the")
_LABELS = (tuple(string.ascii_uppercase), tuple(str(number) for number in range(1, 10)))
_FEWEST, _MOST = 5, 8


def related_tracking(tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[TextExample]:
    """`The coal lies in Drawer K, ..., the net lies in Drawer B. Drawer K holds the` -> ` coal`.

    Each prompt keeps to one container, verb, question and kind of label (letters or numbers), and has 5 to 8
    containers. Its objects are those for training, which no circuit is found or evaluated on.
    """
    objects = tuple(one_token_words(tokenizer, TRAIN_OBJECTS, "Bag A holds the", [" lies"]).ids)
    random = Random(f"related tracking/{seed}")
    while True:
        container, verb, question = (random.choice(words) for words in (_CONTAINERS, _VERBS, _QUESTIONS))
        n = random.randint(_FEWEST, _MOST)
        things, labels = random.sample(objects, n), random.sample(random.choice(_LABELS), n)
        facts = ", the ".join(f"{a} {verb} {container} {b}" for a, b in zip(things, labels, strict=True))
        asked = random.randrange(n)
        yield TextExample(f"The {facts}. {container} {labels[asked]} {question}", f" {things[asked]}")


_OPERATIONS = (("+", operator.add, 999), ("-", operator.sub, 999), ("*", operator.mul, 99))
_WORDINGS = ("{} =", "What is {}? Answer:", "Compute {}. The result is", "{} equals", "Please work out {}:")


def arithmetic(tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[TextExample]:
    """`Compute 318 + 47. The result is` -> ` 365`: numbers below 1,000, below 100 in products."""
    random = Random(f"arithmetic/{seed}")
    while True:
        sign, operation, largest = random.choice(_OPERATIONS)
        first, second = random.randint(0, largest), random.randint(0, largest)
        prompt = random.choice(_WORDINGS).format(f"{first} {sign} {second}")
        yield TextExample(prompt, f" {operation(first, second)}")


# A question of the first word of a couple, and the answer with both.
_TALK = (
    (
        "What is the capital of {}?",
        "The capital of {} is {}.",
        """France Paris, Italy Rome, Spain Madrid, Japan Tokyo, Egypt Cairo, Greece Athens, Norway Oslo, Cuba Havana,
        Peru Lima, Kenya Nairobi, Poland Warsaw, Austria Vienna, Ireland Dublin, Portugal Lisbon, Germany Berlin,
        Iran Tehran""",
    ),
    (
        "Can you tell me the opposite of {}?",
        'The opposite of "{}" is "{}".',
        """hot cold, big small, fast slow, early late, light dark, full empty, open closed, high low, rich poor,
        young old, strong weak, loud quiet, wide narrow, wet dry, thick thin, happy sad""",
    ),
    (
        "What does a {} do when it is heard?",
        "A {} {}.",
        "dog barks, cat meows, cow moos, duck quacks, lion roars, horse neighs, sheep bleats, wolf howls, frog croaks",
    ),
    (
        "Which day comes after {}?",
        "{1} comes after {0}.",
        """Monday Tuesday, Tuesday Wednesday, Wednesday Thursday, Thursday Friday, Friday Saturday, Saturday Sunday,
        Sunday Monday""",
    ),
)
_GREETINGS = ("Hello!", "Hi there.", "Good morning!", "Hey,", "")
_OPENINGS = ("", "Sure! ", "Of course. ", "Happy to help. ", "Good question! ")
_CLOSINGS = ("", " Anything else?", " Let me know if you need more.", " I hope that helps.")


def conversations(tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[TextExample]:
    """One or two turns, `User: ... Assistant:`, answered in a friendly sentence."""
    random = Random(f"conversations/{seed}")
    while True:
        *earlier, (question, answer) = [_turn(random) for _ in range(random.randint(1, 2))]
        before = "".join(f"User: {asked}\nAssistant:{said}\n" for asked, said in earlier)
        yield TextExample(f"{before}User: {question}\nAssistant:", answer)


def _turn(random: Random) -> tuple[str, str]:
    question, answer, couples = random.choice(_TALK)
    couple = random.choice(couples.split(",")).split()
    greeting, opening, closing = (random.choice(parts) for parts in (_GREETINGS, _OPENINGS, _CLOSINGS))
    return f"{greeting} {question.format(*couple)}".strip(), f" {opening}{answer.format(*couple)}{closing}"


def next_box(tokenizer: PreTrainedTokenizerBase, seed: int, split: str = "train") -> Iterator[TextExample]:
    """The task's own prompts with seven boxes, each answered by the object of the box after the one asked for.

    After the last box comes the first.
    """
    task = entity_tracking()
    for (question,) in draw_questions(("next box", split, seed), split, task.pools(tokenizer, split), 1):
        of_the_next = replace(question, asked=(question.asked + 1) % len(question.scenario.items["object"]))
        yield TextExample(task.text(question), task.right_answer(of_the_next))


GENERATORS: Mapping[str, Callable[..., Iterator[TextExample]]] = {
    generator.__name__: generator for generator in (related_tracking, arithmetic, conversations, next_box)
}


def generate(
    name: str, tokenizer: PreTrainedTokenizerBase, n_examples: int, seed: int, **options: object
) -> list[TextExample]:
    """The first `n_examples` of the built-in data of that name: the same for the same arguments.

    Raises: InputError if the name or an option is unknown.
    """
    if name not in GENERATORS:
        raise InputError(f"there is no built-in data {name!r}{choices(name, GENERATORS)}")
    known = list(inspect.signature(GENERATORS[name]).parameters)[2:]
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"data {name!r} has no option {unknown[0]!r}{choices(unknown[0], known)}")
    return list(islice(GENERATORS[name](tokenizer, seed, **options), n_examples))
