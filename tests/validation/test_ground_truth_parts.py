"""The work of the ground truth in parts: kept, shared by processes, joined; and a study's verdict as a part."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from circuitdiff.cache.store import Store, to_json
from circuitdiff.circuit import Overlap
from circuitdiff.errors import InputError
from circuitdiff.study.verdict import Sentence
from validation import GroundTruth, Share, Sizes, check_ground_truth
from validation.check import Part, carry_out
from validation.cross_model_rows import JUDGED, same_circuit_row, study_of
from validation.discovery_rows import Comparison
from validation.plantings import Alarm, Coverage, Planting
from validation.subjects import NAME_BINDERS, PLAN, Row

SMALL = Sizes(discovery=7, evaluation=14, random_circuits=1, random_prompts=7, truth=7, decoys=1)


def test_shares_of_other_processes_are_joined_and_a_second_run_computes_nothing(monkeypatch, tmp_path):
    names = ["planted-pair"]
    for share in ("1/2", "2/2"):
        check_ground_truth(tmp_path, 1, SMALL, names, share=Share.read(share))
    for what in ("named_subject", "another_planting", "run_plan"):
        monkeypatch.setattr(f"validation.check.{what}", None)
    joined = check_ground_truth(tmp_path, 1, SMALL, names)
    assert {row.model for row in joined.rows} == {"planted-pair", "planted-base, other plantings"}
    assert [planting.seed for planting in joined.plantings] == [1]
    assert joined.attribution
    with pytest.raises(TypeError):
        check_ground_truth(tmp_path, 1, replace(SMALL, evaluation=21), names)


def test_rows_and_plantings_come_back_from_what_is_kept_as_they_were():
    alarms, shared = (Alarm("structure_reader", "0.0", -0.2, -0.06),), {"value_fetcher": Overlap(3, 3, 2)}
    planting = Planting(7, 0.57, shared, Overlap(2, 2, 2), 100, alarms, {"direct": Coverage(48, 50)})
    rows = (Row("m", "c", 1.0, "= 1.00", True), Row("m", "d", np.nan, "= 1.00", False, "why"))
    comparison = Comparison("m", "last", 6, 0.5, np.nan, 0.0)
    kept = json.loads(to_json(GroundTruth(SMALL, rows, (planting,), (comparison,)).to_dict()))
    assert kept["rows"][1]["value"] is None
    assert kept["plantings"][0]["negative"] == {"first": 2, "second": 2, "common": 2}
    read = GroundTruth.from_dict(kept)
    good, bad = read.rows
    assert good == rows[0]
    assert np.isnan(bad.value)
    assert replace(bad, value=0.0) == replace(rows[1], value=0.0)
    assert (read.sizes, read.plantings) == (SMALL, (planting,))
    (again,) = read.attribution
    assert np.isnan(again.discovery)
    assert replace(again, discovery=0.0) == replace(comparison, discovery=0.0)


def test_shares_take_every_part_once(tmp_path):
    parts = [Part(str(i), (), lambda i=i: {"i": i}) for i in range(5)]
    store, quiet = Store.open(tmp_path), lambda title, done, total: None
    came = [carry_out(parts, SMALL, store, quiet, Share(which, 2)) for which in (1, 2)]
    assert came == [[{"i": 0}, {"i": 2}, {"i": 4}], [{"i": 1}, {"i": 3}]]


@pytest.mark.parametrize("text", ["3/2", "0/2", "2", "a/b", "1/2/3"])
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(InputError, match=f"1/2, the first of two, or 2/2; got '{text}'"):
        Share.read(text)


def test_a_verdict_is_right_if_it_says_of_the_circuit_what_was_wired():
    def passed(name: str, answer: str) -> bool:
        better = Sentence("behaviour", "better", "", (), "accuracy", "")
        same = replace(better, claim="same_circuit", answer=answer, text=f"{answer}.")
        return same_circuit_row(name, [better, same]).passed

    answers = ("yes", "no", "not established")
    assert [passed("planted-sharper-fetchers", answer) for answer in answers] == [True, False, False]
    assert [passed("planted-new-route", answer) for answer in answers] == [False, True, False]


def test_the_study_finds_both_routes_by_the_plan_and_prompts_of_all_other_claims():
    study = study_of(JUDGED, Sizes())
    assert study.plans["main"].stages == (*PLAN.stages, NAME_BINDERS)
    assert (study.prompts.discovery, study.prompts.evaluation, study.seed) == (140, 200, 0)
    assert list(study.models) == ["planted-base", *JUDGED]
