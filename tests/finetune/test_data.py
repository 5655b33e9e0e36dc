"""Built-in training data: it repeats, its answers are right, and it keeps away from what circuits are evaluated on."""

from __future__ import annotations

import re

import pytest

from circuitdiff.errors import InputError
from circuitdiff.finetune.data import GENERATORS, generate
from circuitdiff.finetune.examples import encode_examples
from circuitdiff.vocabulary import LABELS, OBJECTS, TRAIN_OBJECTS
from helpers.tiny_tokenizers import FRAME, word_level

TOKENIZER = word_level([*FRAME, *LABELS, *OBJECTS, *TRAIN_OBJECTS])


@pytest.mark.parametrize("name", GENERATORS)
def test_the_same_seed_gives_the_same_examples_and_the_first_do_not_depend_on_how_many_follow(name):
    few, many, other = (generate(name, TOKENIZER, n, seed) for n, seed in ((20, 3), (50, 3), (20, 4)))
    assert few == many[:20]
    assert few != other
    assert all(answer.startswith(" ") and not prompt.endswith(" ") for prompt, answer in many)


def test_related_tracking_answers_with_what_is_in_the_container_asked_for():
    for prompt, answer in generate("related_tracking", TOKENIZER, 300, 0):
        facts, question = re.fullmatch(r"The (.*)\. (.*)", prompt).groups()
        container, label = question.split()[:2]
        held = [fact.split()[0] for fact in facts.split(", the ") if fact.endswith(f" {container} {label}")]
        assert held == [answer.strip()]


def test_related_tracking_shares_neither_wording_nor_objects_with_the_task():
    text = " ".join(prompt + answer for prompt, answer in generate("related_tracking", TOKENIZER, 500, 1))
    words = set(re.findall(r"[A-Za-z]+", text))
    assert not words & {"Box", "is", "contains"}
    assert not words & {*OBJECTS} - {"basket"}  # Basket is one of the containers
    assert "basket" not in words
    assert words & {*TRAIN_OBJECTS}


def test_sums_are_right():
    for prompt, answer in generate("arithmetic", TOKENIZER, 300, 0):
        first, sign, second = re.search(r"(\d+) ([+*-]) (\d+)", prompt).groups()
        assert int(answer) == {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(first), int(second))


def test_conversations_end_where_the_assistant_speaks():
    for prompt, answer in generate("conversations", TOKENIZER, 200, 0):
        assert prompt.startswith("User: ")
        assert prompt.endswith("\nAssistant:")
        assert answer.rstrip().endswith((".", "?"))


def test_the_next_box_is_the_one_after_the_box_asked_for():
    for prompt, answer in generate("next_box", TOKENIZER, 200, 0):
        boxes = re.findall(r"[Tt]he (\w+) is in Box (\w)", prompt)
        asked = re.search(r"Box (\w) contains the$", prompt).group(1)
        here = [label for _, label in boxes].index(asked)
        assert answer == f" {boxes[(here + 1) % 7][0]}"


def test_the_next_boxes_answers_are_one_token():
    examples = encode_examples(generate("next_box", TOKENIZER, 50, 0), TOKENIZER)
    assert examples.answers.shape == (50, 1)


def test_unknown_data_and_options_are_refused():
    with pytest.raises(InputError, match="no built-in data 'sums'; choose one of related_tracking, arithmetic"):
        generate("sums", TOKENIZER, 3, 0)
    with pytest.raises(InputError, match="data 'next_box' has no option 'boxes'; choose one of split"):
        generate("next_box", TOKENIZER, 3, 0, boxes=3)
