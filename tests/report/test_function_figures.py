"""Figures and tables of what groups encode hold the numbers that they were given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from circuitdiff.report import functions
from circuitdiff.report.parts import Part, anchor
from helpers.invented_results import data_of, results_of, rows_with, share
from helpers.invented_sections import by_queried, mask, redrawn, trade_off, transferred

CIRCUIT, HOME, OTHER = "mine <b>", "base & co", "tuned"
KEY = f"functions/{CIRCUIT}/{HOME}"


@pytest.fixture
def masks() -> dict:
    """By circuit, model, group and desideratum."""
    fetcher = {
        "position": mask(0.09375, 0.0625, heads=()),
        "object": mask(
            0.6875, 0.0, trade_off=(trade_off(2, 0.6875, 0.02), trade_off(1, 0.5, 0.2)), redrawn=redrawn(0.5)
        ),
        "comma": mask(0.5, 0.25, trade_off=(trade_off(2, 0.5, 0.02),)),
    }
    reader = {
        "conflict_position": mask(0.4, 0.05, by_queried=by_queried(0.75, 0.25, 0.5)),
        "object": mask(0.015625, 0.03125, by_queried=by_queried(0.1)),
    }
    other = {"object": mask(0.75, 0.0, transferred=transferred(0.625), redrawn=redrawn(0.25))}
    return {CIRCUIT: {HOME: {"fetcher": fetcher, "reader": reader}, OTHER: {"fetcher": other}}}


def part_on(masks: dict) -> Part:
    return functions.view(results_of(functions=masks))


def test_there_is_a_figure_for_all_that_has_numbers(masks):
    assert list(part_on(masks).figures) == [
        KEY,
        f"{KEY}/fetcher/trade-off",
        f"{KEY}/reader/by index",
        f"functions/{CIRCUIT}/{OTHER}",
        f"functions/{CIRCUIT}/sources drawn anew/object",
    ]
    assert all(data_of(figure) for figure in part_on(masks).figures.values())
    assert functions.view(results_of()).empty


def test_bars_have_each_accuracy_unrounded_with_its_interval_and_its_floor(masks):
    rows = rows_with(part_on(masks).figures[KEY], "value", "floor")
    by_cell = {(row["group"], row["desideratum"]): row for row in rows}
    assert list(by_cell) == [
        ("fetcher", "object"),
        ("fetcher", "position"),
        ("fetcher", "comma"),
        ("reader", "object"),
        ("reader", "conflict_position"),
    ]
    row = by_cell["fetcher", "object"]
    assert (row["value"], row["low"], row["high"], row["floor"]) == (0.6875, 0.625, 0.75, 0.0)
    assert (row["heads"], row["above"]) == ("2 of 3", "0.688 (0.588 to 0.787)")
    assert [each["carries"].startswith("above") for each in by_cell.values()] == [True, False, True, False, True]


def test_the_floor_is_drawn_in_every_layered_bar_chart(masks):
    spec = part_on(masks).figures[KEY].to_dict()
    marks = {layer["mark"]["type"]: layer["encoding"]["y"]["field"] for layer in spec["layer"]}
    assert marks == {"bar": "value", "rule": "low", "tick": "floor"}


def test_a_trade_off_has_a_dot_for_every_mask_of_a_desideratum_with_several(masks):
    rows = rows_with(part_on(masks).figures[f"{KEY}/fetcher/trade-off"], "n_heads")
    assert [(row["desideratum"], row["n_heads"], row["value"], row["penalty"]) for row in rows] == [
        ("object", 2, 0.6875, "0.02"),
        ("object", 1, 0.5, "0.2"),
    ]


def test_only_conflicts_are_drawn_by_index(masks):
    rows = rows_with(part_on(masks).figures[f"{KEY}/reader/by index"], "index")
    assert [(row["desideratum"], row["index"], row["value"]) for row in rows] == [
        ("conflict_position", 0, 0.75),
        ("conflict_position", 1, 0.25),
        ("conflict_position", 2, 0.5),
    ]


def test_activation_patching_shows_one_standard_deviation_in_every_model(masks):
    rows = rows_with(part_on(masks).figures[f"functions/{CIRCUIT}/sources drawn anew/object"], "redraws")
    assert [(r["model"], r["low"], r["value"], r["high"], r["redraws"]) for r in rows] == [
        (HOME, 0.375, 0.5, 0.625, 3),
        (OTHER, 0.125, 0.25, 0.375, 3),
    ]


def test_the_tables_name_heads_and_controls_and_the_transferred_mask(masks):
    here, _, there, _ = part_on(masks).tables
    first = here.rows[0]
    assert (first["group"], first["desideratum"]) == ("fetcher", "object")
    assert (first["which"], here.rows[1]["which"]) == ("3.1, 2.0", "none")
    assert [first[name] for name in ("all", "ranked", "random")] == ["0.710", "–", "–"]
    assert ("transferred" in here.columns, "transferred" in there.columns) == (False, True)
    assert there.rows[0]["transferred"] == "0.625 (0.500 to 0.750); 0.625 (0.575 to 0.675) above the floor"
    assert here.columns["ranked"] == "strongest heads, 40 triples"


def test_every_circuit_has_a_table_in_every_model_and_a_verdict_links_to_the_carried_masks(masks):
    part = part_on({"another": {OTHER: {"own": {"object": mask(0.5, 0.25)}}}} | masks)
    assert [(table.caption, len(table.rows)) for table in part.tables] == [
        (f"Masks of another's groups in {OTHER}", 1),
        (f"Heads that the masks of another's groups in {OTHER} patch", 1),
        (f"Masks of {CIRCUIT}'s groups in {HOME}", 5),
        (f"Heads that the masks of {CIRCUIT}'s groups in {HOME} patch", 5),
        (f"Masks of {CIRCUIT}'s groups in {OTHER}", 1),
        (f"Heads that the masks of {CIRCUIT}'s groups in {OTHER} patch", 1),
    ]
    linked = [list(table.ids) for table in part.tables]
    assert linked == [[], [], [anchor("functions", HOME)], [], [anchor("functions", OTHER)], []]
    assert all(set(table.columns) <= set(row) for table in part.tables for row in table.rows)
    assert {f"functions/another/{OTHER}", f"functions/{CIRCUIT}/{OTHER}"} <= set(part.figures)


def test_the_trained_floor_has_a_column_where_there_is_one(masks):
    cell = masks[CIRCUIT][HOME]["fetcher"]["object"]
    trained = replace(cell.controls, shuffled=share(0.125))
    masks[CIRCUIT][HOME]["fetcher"]["object"] = replace(cell, controls=trained, floor_is="shuffled")
    here, _, there, _ = part_on(masks).tables
    assert here.columns["shuffled"] == "trained floor"
    assert here.rows[0]["shuffled"] == "0.125 (0.075 to 0.175)"
    assert here.rows[0]["floor_printed"] == "0.000 (a mask trained and tested on shuffled targets)"
    assert "shuffled" not in there.columns


def test_a_table_says_which_answer_is_followed_in_conflict(masks):
    cells = masks[CIRCUIT][HOME]
    pointed = {"mask": {"unpatched": 0.5, "object": 0.25, "other": 0.25}}
    cells["fetcher"]["object"] = replace(cells["fetcher"]["object"], pointed=pointed)
    pointed = {
        "mask": {"unpatched": 0.5, "object": 0.0, "position": 0.375, "other": 0.125},
        "all": {"unpatched": 0.25, "object": 0.0, "position": 0.75, "other": 0.0},
    }
    cells["reader"]["conflict_position"] = replace(cells["reader"]["conflict_position"], pointed=pointed)
    (table,) = (table for table in part_on(masks).tables if table.caption.startswith("In conflict"))
    assert list(table.headings.values()) == [
        *("group", "desideratum", "patched"),
        *("the answer without a patch", "object", "position", "anything else"),
    ]
    assert [[row[key] for key in table.headings] for row in table.rows] == [
        ["reader", "conflict_position", "the mask's heads", "0.500", "0.000", "0.375", "0.125"],
        ["reader", "conflict_position", "all heads", "0.250", "0.000", "0.750", "0.000"],
    ]


def test_a_sentence_names_only_what_is_above_its_floor(masks):
    first, second = part_on(masks).sentences
    assert first == (
        "mine <b> in base & co: fetcher encodes object (0.688 (0.588 to 0.787) above the floor), comma (0.250 (0.150 "
        "to 0.350) above the floor); reader encodes conflict_position (0.350 (0.250 to 0.450) above the floor)."
    )
    assert str(second).startswith("mine <b> in tuned: fetcher encodes object")
    reader = masks[CIRCUIT][HOME]["reader"]
    reader["conflict_position"] = replace(reader["conflict_position"], carries=False)
    assert "reader encodes none of what was asked." in str(part_on(masks).sentences[0])
