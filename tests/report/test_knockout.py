"""The part of the page on attention knockout."""

from __future__ import annotations

from dataclasses import replace

from circuitdiff.report import knockout
from circuitdiff.report.parts import Part
from circuitdiff.study.sections.knockout import Cell, Curve, Knockouts, Matrix, Point
from helpers.invented_results import around, data_of, results_of, share

_BLOCKED = "accuracy, a random position blocked"


def _cell(query: str, key: str, answer: str, loss: float) -> Cell:
    return Cell(query, key, answer, share(0.75 - loss, 48), around(loss), around(loss - 0.03125))


def knockouts(**different) -> Knockouts:
    points = (Point(**vars(share(0.25, 48)), layer=0), Point(**vars(share(None, 48)), layer=3))
    cells = (
        _cell("last", "query_label", "yes", 0.5),
        _cell("last", "object", "no", 0.0),
        _cell("query_label", "object", "not established", 0.0625),
        Cell("query_label", "last", None),
    )
    control = {"last": share(0.71875, 48), "query_label": share(0.6875, 48)}
    matrix = Matrix(("last", "query_label", "object"), share(0.75, 48), cells, control, 0.05)
    curves = tuple(Curve("last", key, False, share(0.75, 48), points) for key in ("query_label", None))
    return replace(Knockouts(48, 48, matrix, curves), **different)


def part_on(found: Knockouts) -> Part:
    return knockout.view(results_of(knockout={"base": found}))


def test_there_are_curves_and_a_matrix_for_each_model_that_was_measured():
    figures = part_on(knockouts()).figures
    assert list(figures) == ["knockout/base/matrix", "knockout/base/curves"]
    rows = [row for row in data_of(figures["knockout/base/curves"]) if "path" in row]
    assert [(row["path"], row["layer"], row["value"]) for row in rows] == [
        ("last to query_label", 0, 0.25),
        ("last to query_label", 3, None),
        ("last to a random position", 0, 0.25),
        ("last to a random position", 3, None),
    ]
    cells = data_of(figures["knockout/base/matrix"])
    assert [(cell["value"], cell["mark"]) for cell in cells] == [
        (0.5, "flows"),
        (0.0, "does not"),
        (0.0625, "?"),
        (None, ""),
    ]
    assert knockout.view(results_of()).empty


def test_no_two_curves_look_alike():
    """Every pair of roles may have one, and there are seven colours."""
    curves = tuple(replace(knockouts().curves[0], key=f"key {i}") for i in range(20))
    figure = part_on(knockouts(curves=curves)).figures["knockout/base/curves"]
    (lines,) = (layer["encoding"] for layer in figure.to_dict()["layer"] if layer["mark"]["type"] == "line")
    colours, dashes = (lines[channel]["scale"] for channel in ("color", "strokeDash"))
    assert colours["domain"] == dashes["domain"] == [f"last to key {i}" for i in range(20)]
    looks = {(colour, *dash) for colour, dash in zip(colours["range"], dashes["range"], strict=True)}
    assert len(looks) == 20


def test_the_table_has_each_cell_with_its_control_and_intervals():
    (table,) = part_on(knockouts()).tables
    assert [(row["role"], row["does not see"], row["flows"]) for row in table.rows] == [
        ("last", "query_label", "yes"),
        ("last", "object", "no"),
        ("query_label", "object", "not established"),
    ]
    assert [table.rows[0][key] for key in ("accuracy", "loss", _BLOCKED, "loss beyond it")] == [
        "0.250 (0.200 to 0.300)",
        "0.500 (0.450 to 0.550)",
        "0.719 (0.669 to 0.769)",
        "0.469 (0.419 to 0.519)",
    ]
    assert table.rows[2][_BLOCKED] == "0.688 (0.637 to 0.738)"
    assert table.caption.endswith("48 prompts, accuracy with nothing blocked 0.750 (0.700 to 0.800)")


def test_sentences_name_only_what_is_significant():
    assert part_on(knockouts()).sentences == [
        "In base, information flows where it attends from last to query_label (0.500).",
        "In base, nothing is lost without attention from last to object (0.000).",
    ]
    assert part_on(knockouts(matrix=replace(knockouts().matrix, cells=()), curves=())).sentences == []
