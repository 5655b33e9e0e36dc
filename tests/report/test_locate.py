"""The part of the page on where it happens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from circuitdiff.report import locate, report_page
from circuitdiff.study.sections.knockout import Cell, Matrix
from circuitdiff.study.sections.locate import Ceiling, CeilingStep, Location, ResidualEffect, ResidualMap
from helpers.invented_results import around, results_of, rows_with, share

CELLS = (Cell("last", "label", "yes", share(0.2), around(0.4), around(0.3)), Cell("label", "last", None))
STEPS = (
    CeilingStep(None, share(0.0), share(0.1), around(0.0)),
    CeilingStep("last", share(0.3), share(0.2), around(0.5)),
    CeilingStep("label", share(0.25), share(0.15), around(None)),
)


def effects(sign: int) -> tuple[ResidualEffect, ...]:
    values = {(0, "label"): 0.5, (0, "last"): 0.0, (4, "label"): -0.25, (4, "last"): 2.0}
    return tuple(ResidualEffect(*place, around(sign * v), around(sign * v / 4)) for place, v in values.items())


RESIDUALS = ResidualMap("logit_difference", (0, 4), around(4.0), effects(1), effects(-1))
FOUND = Location(48, 47, ("label", "last"), RESIDUALS, Matrix(("last", "label"), share(0.6), CELLS, {}, 0.05),
                 Ceiling(24, share(0.6, 24), STEPS))  # fmt: skip


@pytest.fixture
def part():
    return locate.view(results_of(locate={"base": FOUND}))


def test_every_place_is_in_the_map_of_each_direction(part):
    assert list(part.figures) == ["locate/base/restore", "locate/base/remove", "locate/base/matrix"]
    for direction, sign in (("restore", 1), ("remove", -1)):
        rows = rows_with(part.figures[f"locate/base/{direction}"], "layer")
        assert {(row["layer"], row["role"]): row["value"] for row in rows} == {
            (0, "label"): 0.5 * sign,
            (0, "last"): 0.0,
            (4, "label"): -0.25 * sign,
            (4, "last"): 2.0 * sign,
        }


def test_what_carries_the_answer_is_blue_in_both_directions(part):
    for direction, ends in (("restore", ("#c8590b", "#1c5d99")), ("remove", ("#1c5d99", "#c8590b"))):
        spec = part.figures[f"locate/base/{direction}"].to_dict(validate=False)
        scale = next(layer["encoding"]["color"]["scale"] for layer in spec["layer"] if "color" in layer["encoding"])
        assert scale["domain"] == [-2.0, 0, 2.0]
        assert (scale["range"][0], scale["range"][-1]) == ends


def test_the_strongest_place_of_each_direction_is_said_first(part):
    restored, removed, flows = part.sentences
    assert "of 4 places the residual stream at last before layer 4 does most when put back: 2.000" in restored
    assert "at last before layer 4 does most when taken away: −2.000" in removed
    assert "0.500 of the distance" in restored
    assert "information flows where it attends from last to label" in flows


def test_the_ceiling_has_a_row_for_each_role_that_is_added(part):
    table = part.tables[1]
    assert [row["all heads kept at"] for row in table.rows] == ["no role", "last", "and label"]
    assert [row["slot means"][:5] for row in table.rows] == ["0.000", "0.300", "0.250"]
    assert [row["kind means"][:5] for row in table.rows] == ["0.100", "0.200", "0.150"]
    assert "24 prompts, roles chosen on 24 others" in table.caption
    assert table.rows[2]["share of the model's (slot)"] == "–"


def test_five_places_at_most_are_listed_in_each_direction():
    many = replace(RESIDUALS, restore=effects(1) * 2)
    table = locate.strongest_table("base", replace(FOUND, residuals=many))
    assert [row["residual stream"] for row in table.rows] == ["put back"] * 5 + ["taken away"] * 4


def test_a_study_that_did_not_ask_has_no_such_part():
    assert locate.view(results_of()).empty
    page = report_page(results_of(locate={"base": FOUND}))
    assert "Where does it happen" in page
    assert "where it happens (24)" in page, "so few prompts are warned of"
