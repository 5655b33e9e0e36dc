"""Checkpoints over training steps."""

from __future__ import annotations

from circuitdiff.report import series
from circuitdiff.study.results import StudyHeader
from circuitdiff.study.sections.overlap import GroupOverlap, VariantOverlap
from helpers.invented_results import accuracy, cell, changed, data_of, model, results_of

STEPS = {"late": 40, "start": 0, "early": 10}


def results():
    names = ("start", "late", "early")
    groups = (GroupOverlap("a", 1, 1, 1, 0.125, 0.125, 0.125), GroupOverlap(None, 1, 1, 1, 0.375, 0.375, 0.375))
    return results_of(
        study=StudyHeader("s", "t", 0, {"series": {"one run": STEPS}}),
        models={name: model() for name in names},
        accuracy={name: accuracy(0.25 * (i + 1)) for i, name in enumerate(names)},
        faithfulness={"start": {"start": cell(0.5), "late": cell(0.25)}, "late": {"late": cell(0.75)}},
        overlap={"late": VariantOverlap(groups=groups)},
    )


def test_each_checkpoint_has_what_was_measured_of_it_in_the_order_of_steps():
    (table,) = series.view(results()).tables
    rows = [(row["step"], row["measure"], row["value"]) for row in table.rows]
    own, base, heads = "faithfulness of its own circuit", "faithfulness of the base's circuit", "heads in common"
    of = {measure: [(step, value) for step, name, value in rows if name.startswith(measure)] for _, measure, _ in rows}
    assert of["accuracy"] == [(0, 0.25), (10, 0.75), (40, 0.5)]
    assert of[base] == [(0, 0.5), (40, 0.25)]
    assert of[own] == [(0, 0.5), (40, 0.75)]
    assert [(step, value) for step, name, value in rows if name.startswith(heads)] == [(0, 1.0), (40, 0.375)]
    assert table.rows[0]["printed"] == "0.250 (0.200 to 0.300)"
    assert [row["printed"] for row in table.rows if str(row["measure"]).startswith(heads)] == ["1.000", "0.375"]


def test_a_series_is_drawn_and_a_study_without_one_has_no_such_part():
    (figure,) = series.view(results()).figures.values()
    assert {row["step"] for row in data_of(figure)} == {0, 10, 40}
    assert series.view(changed(results(), study=StudyHeader("s", "t", 0, {}))).empty
    assert list(series.view(changed(results(), overlap=None)).figures) == ["series/one run"]


def test_nothing_measured_draws_nothing():
    assert series.view(results_of(study=results().study)).empty
