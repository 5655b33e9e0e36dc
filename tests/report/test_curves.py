"""The part of the page on rankings of heads."""

from __future__ import annotations

from circuitdiff.report import curves, report_page
from circuitdiff.study.sections.curves import Curve, CurvePoint, RankingCurves
from helpers.invented_results import around, results_of, rows_with


def curve(ranking: str, height: float) -> Curve:
    points = (CurvePoint(3, 0.05, around(height / 2)), CurvePoint(60, 1.0, around(height)))
    return Curve(ranking, "slot", points, around(height), around(1 - height))  # pyright: ignore[reportArgumentType]


FOUND = RankingCurves(("last", "label"), 48, 47, (curve("path", 0.7), curve("random", 0.1)))


def test_every_point_is_in_the_figure_and_both_areas_in_the_table():
    part = curves.view(results_of(curves={"base": FOUND}))
    rows = rows_with(part.figures["curves/base"], "ranking")
    assert [(row["ranking"], row["heads"], row["value"]) for row in rows] == [
        ("path patching", 3, 0.35),
        ("path patching", 60, 0.7),
        ("random order", 3, 0.05),
        ("random order", 60, 0.1),
    ]
    [table] = part.tables
    assert [row["ranking"] for row in table.rows] == ["path patching", "random order"]
    assert table.rows[0]["cpr"].startswith("0.70")
    assert table.rows[0]["cmd"].startswith("0.30")


def test_a_study_without_curves_has_no_such_part():
    assert curves.view(results_of()).empty
    assert "How good is a ranking" in report_page(results_of(curves={"base": FOUND}))
