"""What is said of a task before a model runs: what leaks, what is short, what a guess gives."""

from __future__ import annotations

import json

import pytest

from circuitdiff.tasks import get_task
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


def findings(task) -> dict[str, tuple[str, bool | None]]:
    return {each.what: (each.found, each.passed) for each in examine(task, word_level(WORDS), 12)}


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


def test_guessing_takes_any_right_answer_among_what_is_listed(tmp_path):
    pairs = table(tmp_path, 4).sample(word_level(WORDS), 4)
    assert guessing(pairs) == pytest.approx(1 / 2)
