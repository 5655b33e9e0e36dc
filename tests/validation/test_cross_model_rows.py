"""Claims about pairs of planted models: they hold for the truth, and would fail for anything else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from circuitdiff.models import load_model
from circuitdiff.planted import build_planted
from circuitdiff.stats.shapley import Attribution, all_subsets, attribute
from validation import Sizes
from validation.cross_model_rows import (
    _grafted_rows,
    _patched_rows,
    _split_rows,
    _turned_rows,
    cross_model_rows,
)
from validation.subjects import named_subject

FEW = Sizes(discovery=7, evaluation=50, random_circuits=2, random_prompts=21, truth=7, decoys=2)


def test_the_truth_about_a_planted_pair_is_found():
    rows = cross_model_rows(named_subject("planted-transmitters-among-changes", FEW))
    assert len(rows) == 11
    assert [row.claim for row in rows if not row.passed] == []


def test_z_in_another_basis_is_incompatible_and_z_of_the_same_weights_is_not():
    turned = named_subject("planted-rotated-values", replace(FEW, evaluation=8))
    base, pairs = load_model("planted-base"), turned.prompts["evaluation"]
    circuit = build_planted("planted-base").circuit
    assert all(row.passed for row in _turned_rows("turned", base, turned.model, circuit, pairs))
    runs, shares = _turned_rows("not turned", base, base, circuit, pairs)
    assert (runs.value, runs.passed) == (15, False)
    assert shares.passed, "without a gain there is none either"


def test_nothing_is_claimed_of_a_base_of_another_circuit_or_of_what_follows_from_equal_weights():
    assert cross_model_rows(named_subject("planted-clearer-addresses", FEW)) == []
    subject = named_subject("planted-base", FEW)
    assert cross_model_rows(subject) == []
    lexical = replace(subject, truth=build_planted("planted-lexical"))
    assert cross_model_rows(lexical) == []


PARTS = ("structure_reader", "position_detector", "position_transmitter", "value_fetcher")


def credited_to(part: str) -> Attribution:
    """All of the gain is one part's."""
    donor, nothing = np.repeat([1.0, 0.0], [30, 30]), np.zeros(60)
    scores = {subset: donor if part in subset else nothing for subset in all_subsets(PARTS)}
    return attribute(scores, donor, np.arange(60), PARTS)


def test_a_gain_credited_to_another_part_fails_every_claim():
    circuit, wrong = build_planted("planted-base").circuit, credited_to("structure_reader")
    grafted = _grafted_rows("any", "value_fetcher", wrong)
    assert not any(row.passed for row in grafted)
    patched = _patched_rows("any", "value_fetcher", circuit, wrong)
    assert not any(row.passed for row in patched)
    no_group = _patched_rows("any", "mlps", circuit, wrong)
    assert not any(row.passed for row in no_group)
    split = _split_rows("planted-transmitters-among-changes", circuit, credited_to("position_transmitter"))
    assert [row.passed for row in split] == [True, True, False, False]
    later = _split_rows("planted-transmitters-among-changes", circuit, credited_to("value_fetcher"))
    assert not any(row.passed for row in later)


def test_a_gain_credited_to_the_right_part_passes():
    circuit, right = build_planted("planted-base").circuit, credited_to("value_fetcher")
    rows = [*_grafted_rows("any", "value_fetcher", right), *_patched_rows("any", "value_fetcher", circuit, right)]
    assert all(row.passed for row in rows)
