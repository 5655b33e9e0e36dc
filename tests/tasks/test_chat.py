"""A chat template before each prompt: roles, words and answers are those of the plain prompt, further right."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.errors import InputError
from circuitdiff.tasks import entity_tracking
from circuitdiff.tasks.chat import chat_prefix
from helpers.reading import words_at
from helpers.tiny_tokenizers import FRAME, byte_pairs, word_level

PLAIN = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}{% if add_generation_prompt %}[me] {% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
DATED = "{{ date_string }} " + PLAIN
OBJECTS = [
    "apple",
    "ball",
    "bell",
    "bike",
    "book",
    "bowl",
    "bread",
    "brick",
    "chair",
    "clock",
    "coat",
    "coin",
    "crown",
    "cup",
]
LABELS = list("ABCDEFGHIJKLMN")


@pytest.fixture
def tokenizer():
    return byte_pairs(OBJECTS, trim_offsets=False)


def sample(tokenizer, chat):
    task = entity_tracking(3, objects=OBJECTS, train_objects=["dog"], labels=LABELS)
    return task.sample(tokenizer, 12, chat=chat)


def test_roles_words_and_answers_are_those_of_the_plain_prompt(tokenizer):
    tokenizer.chat_template = PLAIN
    plain, chat = sample(tokenizer, "off"), sample(tokenizer, "auto")
    n = len(tokenizer(chat_prefix(tokenizer, "auto"))["input_ids"])
    assert n > 5
    assert torch.equal(chat.lengths, plain.lengths + n)
    for i, (row, bare) in enumerate(zip(chat.clean_prompts.rows(), plain.clean_prompts.rows(), strict=True)):
        assert row[n:] == bare
        assert tokenizer.decode(row[:n]) == "[system] You are a helpful assistant. [user] Continue the text. [me] ", i
    for role, at in plain.positions.items():
        assert torch.equal(chat.positions[role], at + n)
    assert words_at(tokenizer, chat.clean_prompts, "correct_object") == words_at(
        tokenizer, plain.clean_prompts, "correct_object"
    )
    assert torch.equal(chat.answers, plain.answers)
    assert torch.equal(chat.foils, plain.foils)
    used = {chat.clean_prompts.slot_names[slot].partition("#")[0] for slot in chat.clean_prompts.slots[0, :n].tolist()}
    assert used == {"chat"}


def test_special_tokens_stand_once_where_the_template_writes_them():
    tokenizer = word_level([*FRAME, *OBJECTS, "dog", *LABELS])  # which puts <s> before every text by itself
    tokenizer.chat_template = "{{ bos_token }} Box "
    rows = sample(tokenizer, "auto").clean_prompts.rows()
    assert all(row[:2] == [1, tokenizer.convert_tokens_to_ids("Box")] and row.count(1) == 1 for row in rows)


def test_a_template_without_a_system_text_goes_without_and_the_date_is_always_the_same(tokenizer, tmp_path):
    (tmp_path / "t.jinja").write_text(NO_SYSTEM)
    assert chat_prefix(tokenizer, str(tmp_path / "t.jinja")) == "[user] Continue the text. [me] "
    tokenizer.chat_template = DATED
    assert chat_prefix(tokenizer, "auto").startswith("26 Jul 2024 [system]")
    assert chat_prefix(tokenizer, "off") == ""


def test_no_template_and_one_that_fails_are_said(tokenizer, tmp_path):
    with pytest.raises(InputError, match="has no chat template: give the path of one, or set chat: off"):
        sample(tokenizer, "auto")
    (tmp_path / "t.jinja").write_text("{{ raise_exception('never') }}")
    with pytest.raises(InputError, match=r"t\.jinja cannot be used: never"):
        sample(tokenizer, str(tmp_path / "t.jinja"))
    with pytest.raises(InputError, match="there is no nowhere"):
        sample(tokenizer, "nowhere.jinja")
