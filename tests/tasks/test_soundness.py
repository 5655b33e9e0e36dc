"""What is said of a task before a model runs: what leaks, what is short, what a guess gives."""

from __future__ import annotations

import json

import pytest

from circuitdiff.tasks import get_task
from circuitdiff.tasks.scenarios import SPLITS
from circuitdiff.tasks.soundness import examine, guessing
from helpers.tiny_tokenizers import word_level

WORDS = ["red", "blue", "green", "grey", "key", "box", "cup", "The", "is", "not", "but"]


def table(folder, n_rows: int, **changed: str):
    rows = [
        {
            "prompt": f"The {WORDS[4 + i % 3]} is not {WORDS[i % 4]} but",
            "answer": WORDS[(i + 1) % 4],
            "foils": [WORDS[(i + 2) % 4]],
            "counterfactual": f"The {WORDS[4 + i % 3]} is not {WORDS[(i + 2) % 4]} but",
            "scenario": i,
            "split": "evaluation",
        }
        | {key: value.format(answer=WORDS[(i + 1) % 4]) for key, value in changed.items()}
        for i in range(n_rows)
    ]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return get_task(str(folder / "t.jsonl"))


def findings(task, n: int = 12) -> dict[str, tuple[str, bool | None]]:
    return {each.what: (each.found, each.passed) for each in examine(task, word_level(WORDS), n)}


def test_a_sound_task_passes_and_splits_that_are_too_short_are_named(tmp_path):
    found = findings(table(tmp_path, 12))
    assert found["given: equal to the prompt"] == ("0 of 12", True)
    assert found["given: has the clean answer in it"] == ("0 of 12", True)
    assert found["roles at special tokens, clean"] == ("0", True)
    assert found["accuracy of guessing"][0] == "0.50"
    assert found["split mask"][1] is False


def test_an_answer_that_leaks_into_the_counterfactual_and_one_that_it_keeps_are_found(tmp_path):
    leaking = findings(table(tmp_path, 12, counterfactual="The key is {answer} but not"))
    assert leaking["given: has the clean answer in it"] == ("12 of 12", False)
    kept = findings(table(tmp_path, 12, counterfactual="The cup is not but", counterfactual_answer="{answer}"))
    assert kept["given: has the clean answer as its own"] == ("12 of 12", False)


@pytest.mark.parametrize("wrong", range(12))
def test_every_row_of_a_table_is_looked_at_however_many_prompts_are_asked_for(tmp_path, wrong):
    rows = [json.loads(line) for line in table(tmp_path, 12).table.read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= {"foils": [], "counterfactual_answer": row["answer"] if i == wrong else row["foils"][0]}
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [found] = [f for f in examine(get_task(str(tmp_path / "t.jsonl")), word_level(WORDS), 4) if "evaluation" in f.what]
    assert found.passed is False
    assert f"t.jsonl, line {wrong + 1}: " in found.detail
    assert "has no foil" in found.detail


TEMPLATE = """
name: keys
categories:
  things: {words: %s, train: %s}
  colours: {words: %s}
items: {count: 2, fields: {thing: things, colour: colours}}
list: {text: "the {thing} is {colour}"}
text: "{list}. The {asked.thing} is"
answer: " {asked.colour}%s"
counterfactuals: {other: {redraw: [thing], ask: other}}
"""
THINGS, TRAIN, COLOURS = "key box cup pen lamp door", "hat bag map bed", "red blue green grey pink brown"


def template(folder, words: str = THINGS, train: str = TRAIN, more: str = ""):
    (folder / "t.yaml").write_text(TEMPLATE % (words, train, COLOURS, more))
    return get_task(str(folder / "t.yaml"))


def told(task, n: int = 12) -> dict[str, str]:
    """What is wrong with a template."""
    known = word_level([*THINGS.split(), *TRAIN.split(), *COLOURS.split(), "The", "the", "is", ".", ",", "indeed"])
    return {each.what: each.detail for each in examine(task, known, n) if each.passed is False}


def test_a_few_prompts_of_each_split_are_enough_if_no_more_are_asked_for(tmp_path):
    assert told(template(tmp_path), 8) == {}


def test_what_a_split_cannot_be_written_for_is_said_as_it_is(tmp_path):
    assert told(template(tmp_path, train="hat bag map")) == {
        "split train": f"{tmp_path}/t.yaml: this task needs 4 things of one token each, but the tokenizer keeps 3 of 3 "
        "whole: give the task other things, or fewer items"
    }


def test_answers_of_several_tokens_which_a_study_refuses_are_told_with_their_prompt(tmp_path):
    found = told(template(tmp_path, more=" indeed"))
    assert set(found) == {f"split {split}: answers of several tokens" for split in SPLITS}
    assert (
        "is': a study refuses them; give answers of one token, or set" in found["split mask: answers of several tokens"]
    )


def test_guessing_takes_any_right_answer_among_what_is_listed(tmp_path):
    pairs = table(tmp_path, 4).sample(word_level(WORDS), 4)
    assert guessing(pairs) == pytest.approx(1 / 2)
