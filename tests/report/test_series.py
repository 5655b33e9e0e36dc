"""Checkpoints over training steps."""

from __future__ import annotations

import pytest

from circuitdiff.report.parts import parts
from circuitdiff.report.series import series_figures, series_key, series_rows


def found(value: float) -> dict:
    return {"value": value, "low": value - 0.125, "high": value + 0.125}


def shared(value: float) -> dict:
    return dict.fromkeys(("precision", "recall", "jaccard"), value)


def results() -> dict:
    names = ("start", "late", "early")
    return {
        "study": {"settings": {"series": {"one run": {"late": 40, "start": 0, "early": 10}}}},
        "models": {name: {"accuracy": found(0.25 * (i + 1))} for i, name in enumerate(names)},
        "faithfulness": {"start": {"start": found(0.5), "late": found(0.25)}, "late": {"late": found(0.75)}},
        "overlap": {"late": {"groups": [{"group": "a", **shared(0.125)}, {"group": "all groups", **shared(0.375)}]}},
    }


def test_each_checkpoint_has_what_was_measured_of_it_in_the_order_of_steps():
    rows = [(row["step"], row["measure"], row["value"]) for row in series_rows(results(), "one run")]
    own, base, heads = "faithfulness of its own circuit", "faithfulness of the base's circuit", "heads in common"
    assert [(step, value) for step, measure, value in rows if measure == "accuracy"] == [
        (0, 0.25),
        (10, 0.75),
        (40, 0.5),
    ]
    assert [(step, value) for step, measure, value in rows if measure == base] == [(0, 0.5), (40, 0.25)]
    assert [(step, value) for step, measure, value in rows if measure == own] == [(0, 0.5), (40, 0.75)]
    assert [(step, value) for step, measure, value in rows if measure.startswith(heads)] == [(0, 1.0), (40, 0.375)]
    assert series_rows(results(), "one run")[0]["printed"] == "0.250 (0.125 to 0.375)"


def test_a_series_is_drawn_and_a_study_without_one_has_no_such_part():
    [figure] = series_figures(results()).values()
    assert list(series_figures(results())) == [series_key("one run")]
    rows = [row for data in figure.to_dict()["datasets"].values() for row in data]
    assert {row["step"] for row in rows} == {0, 10, 40}
    without_heads = results() | {"overlap": {}}
    assert parts(without_heads)[0].title == "Over training"
    assert "Over training" not in [part.title for part in parts(without_heads | {"study": {}})]


def test_nothing_measured_draws_nothing():
    assert series_figures({"study": results()["study"]}) == {}
    assert series_rows({"study": results()["study"]}, "one run") == pytest.approx([])
