"""Triples of one's own, read from a file."""

from __future__ import annotations

import json

import pytest

from circuitdiff.errors import InputError
from circuitdiff.tasks import read_triples

BASE = "The apple is in Box F, the book is in Box K. Box K contains the"
SOURCE = "The book is in Box F. Box F contains the"
LINE = {
    "base": BASE,
    "source": SOURCE,
    "answer": " book",
    "target": " apple",
    "base_roles": {"query_label": [49, 50], "previous_query_label": [42, 43]},
    "source_roles": {"query_label": [26, 27]},
}


def write(folder, *lines):
    path = folder / "mine.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_roles_are_found_by_characters_in_each_prompt(tmp_path, tokenizer):
    longer = LINE | {"source": "The cup is in Box M, t" + SOURCE[1:], "scenario": 4}
    longer["source_roles"] = {"query_label": [26 + 21, 27 + 21]}
    triples = read_triples(write(tmp_path, LINE, "", longer), tokenizer)
    assert triples.name == "mine"
    for prompts, text, role in (
        (triples.base, "K", "query_label"),
        (triples.base, "K", "previous_query_label"),
        (triples.source, "F", "query_label"),
    ):
        at = prompts.positions[role]
        assert [tokenizer.decode([int(t[p])]).strip() for t, p in zip(prompts.tokens, at, strict=True)] == [text, text]
    assert (triples.base.positions["previous_query_label"] < triples.base.positions["query_label"]).all()
    assert (triples.source.positions["last"] == triples.source.lengths - 1).all()
    assert tokenizer.decode([int(triples.targets[0])]).strip() == "apple"
    assert tokenizer.decode([int(triples.answers[0])]).strip() == "book"
    assert triples.scenarios.tolist() == [5, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": " wheelbarrow-ish"}, r"line 1: ' wheelbarrow-ish' must be one token of the vocabulary"),
        ({"target": " book"}, "wants the same: choose another source or target"),
        ({"base_roles": {"query_label": [50, 50]}}, r"line 1: role 'query_label' is at characters 50 to 50"),
        ({"base_roles": {"query_label": [60, 90]}}, r"of a prompt of 63"),
        ({"sauce": "x"}, r"line 1: there is no key 'sauce' here .*choose one of base, source"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, tokenizer, change, message):
    with pytest.raises(InputError, match=message):
        read_triples(write(tmp_path, LINE | change), tokenizer)


def test_a_line_without_a_target_and_a_line_that_is_no_json_are_named(tmp_path, tokenizer):
    without = {key: value for key, value in LINE.items() if key != "target"}
    with pytest.raises(InputError, match=r"line 2: target: this is missing"):
        read_triples(write(tmp_path, LINE, without), tokenizer)
    with pytest.raises(InputError, match=r"line 1 is not JSON"):
        read_triples(write(tmp_path, "{"), tokenizer)
    with pytest.raises(InputError, match="has no triples"):
        read_triples(write(tmp_path, ""), tokenizer)
    with pytest.raises(InputError, match=r"there is no .*none\.jsonl"):
        read_triples(tmp_path / "none.jsonl", tokenizer)
