"""Pairs from texts: what comes is what was said; what does not go together is refused in one line."""

import pytest

from circuitdiff.errors import InputError
from circuitdiff.prompts import Pairs
from helpers.reading import word
from helpers.tiny_tokenizers import word_level

LANDS = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Spain": "Madrid"}
GIVEN = {
    "clean": ["The capital of France is", "So the capital of Japan is"],
    "counterfactual": ["The capital of Italy is", "So the capital of Spain is"],
    "answers": [" Paris", " Tokyo"],
    "foils": [" Rome", [" Madrid", " Rome"]],
    "counterfactual_answers": [" Rome", " Madrid"],
    "roles": {"subject": ["France", "Japan"]},
    "counterfactual_roles": {"subject": ["Italy", "Spain"]},
}


@pytest.fixture(scope="module")
def tokenizer():
    return word_level(["The", "So", "the", "capital", "of", "is", *LANDS, *LANDS.values()])


def test_pairs_hold_the_texts_roles_and_answers_that_were_given(tokenizer):
    pairs = Pairs.from_texts(tokenizer, **GIVEN)
    assert tokenizer.batch_decode(pairs.clean_prompts.rows(), skip_special_tokens=True) == GIVEN["clean"]
    at = pairs.positions["subject"].tolist(), pairs.counterfactual_positions["subject"].tolist()
    assert [word(tokenizer, pairs.clean[i, p]) for i, p in enumerate(at[0])] == ["France", "Japan"]
    assert [word(tokenizer, pairs.counterfactual[i, p]) for i, p in enumerate(at[1])] == ["Italy", "Spain"]
    assert pairs.positions["last"].tolist() == (pairs.lengths - 1).tolist()
    assert tokenizer.batch_decode(pairs.answers[:, None]) == ["Paris", "Tokyo"]
    assert [tokenizer.decode(row).split() for row in pairs.foils] == [["Rome", "Rome"], ["Madrid", "Rome"]]
    assert tokenizer.batch_decode(pairs.counterfactual_answers[:, None]) == ["Rome", "Madrid"]
    assert (pairs.scenarios.tolist(), pairs.queried.tolist()) == ([0, 1], [0, 0])
    assert [pairs.clean_prompts.slot_names[i] for i in pairs.clean_prompts.slots[0, :5]] == [
        *("start", "text_0", "text_0#1", "text_0#2", "subject")
    ]


def test_spans_scenarios_and_queried_are_taken_as_they_are(tokenizer):
    spans = {"subject": [(15, 21), (18, 23)]}
    given = GIVEN | {"roles": spans, "counterfactual_roles": {"subject": [(15, 20), (18, 23)]}, "scenarios": [7, 7]}
    pairs = Pairs.from_texts(tokenizer, **given, queried=[1, 0])
    assert pairs.positions["subject"].tolist() == Pairs.from_texts(tokenizer, **GIVEN).positions["subject"].tolist()
    assert (pairs.scenarios.tolist(), pairs.queried.tolist()) == ([7, 7], [1, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": [" Paris"]}, r"^answers: expected one for each clean prompt, of which there are 2"),
        ({"foils": " Rome"}, r"^foils: expected one for each"),
        ({"clean": []}, r"expected one for each clean prompt, of which there are 0"),
        ({"roles": {"subject": ["France"]}}, r"roles\['subject'\]: expected one for each"),
        ({"counterfactual_roles": {}}, r"role 'subject' is in one of roles and counterfactual_roles only"),
        ({"counterfactual_roles": None}, r"^prompt 0, counterfactual: role 'subject' is at the word 'France'"),
        ({"roles": {"last": ["is", "is"]}, "counterfactual_roles": None}, r"role cannot be called 'last'"),
        ({"counterfactual": [GIVEN["counterfactual"][0], GIVEN["clean"][1]]}, r"^prompt 1: the counterfactual equals"),
        ({"clean": [GIVEN["clean"][0], "So the capital of old Japan is"]}, r"^prompt 1: .*not know every word"),
        ({"foils": [" Rome", []]}, r"^prompt 1: .*has no foil"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_said_in_one_line(tokenizer, change, message):
    with pytest.raises(InputError, match=message):
        Pairs.from_texts(tokenizer, **GIVEN | change)
