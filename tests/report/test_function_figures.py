"""Figures and tables of what groups encode hold the numbers that they were given."""

from __future__ import annotations

import json
import math

import pytest

from circuitdiff.report.functions import (
    conflict_key,
    function_rows,
    function_sentences,
    function_tables,
    functions_figures,
    functions_key,
    redrawn_key,
    trade_off_key,
)
from circuitdiff.report.verdict import anchor

CIRCUIT, BASE, OTHER = "mine <b>", "base & co", "tuned"


def cell(value: float, floor: float, *, low: float = 0.1, heads=((3, 1), (2, 0)), **more) -> dict:
    above = value - floor
    return {
        "heads": [list(head) for head in heads],
        "group": [[3, 1], [2, 0], [1, 4]],
        "accuracy": value,
        "low": value - 0.0625,
        "high": value + 0.0625,
        "floor": floor,
        "floor_is": "no head patched",
        "above_floor": {"value": above, "low": above - low, "high": above + low},
        "carries": above - low > 0,
        "controls": {
            "nothing": {"value": floor},
            "shuffled": {"value": 0.03125},
            "all": {"value": 0.71},
            "ranked": {"value": None},
            "random": math.nan,
        },
    } | more


def mask(n: int, value: float, penalty: float, seed: int = 0) -> dict:
    return {"penalty": penalty, "seed": seed, "heads": [[i, 2] for i in range(n)], "n_heads": n} | {
        "value": value,
        "low": value - 0.05,
        "high": value + 0.05,
    }


def by_queried(values) -> list[dict]:
    return [{"queried": i, "value": v, "low": v, "high": v, "hits": 3, "n": 7} for i, v in enumerate(values)]


@pytest.fixture
def results() -> dict:
    redrawn = {"mean": 0.5, "sd": 0.125, "accuracies": [0.375, 0.625, 0.5], "heads": [[3, 1]], "from": BASE}
    fetcher = {
        "position": cell(0.09375, 0.0625, heads=()),
        "object": cell(0.6875, 0.0, trade_off=[mask(2, 0.6875, 0.02), mask(1, 0.5, 0.2)], redrawn=redrawn),
        "comma": cell(0.5, 0.25, trade_off=[mask(2, 0.5, 0.02)]),
    }
    reader = {
        "conflict_position": cell(0.4, 0.05, by_queried=by_queried([0.75, 0.25, 0.5])),
        "object": cell(0.015625, 0.03125, by_queried=by_queried([0.1])),
    }
    changed = {
        "object": cell(
            0.75, 0.0, transferred={"value": 0.625, "low": 0.5, "high": 0.75}, redrawn=redrawn | {"mean": 0.25}
        )
    }
    return {"functions": {CIRCUIT: {BASE: {"fetcher": fetcher, "reader": reader}, OTHER: {"fetcher": changed}}}}


def rows_with(figure, *columns: str) -> list[dict]:
    (found,) = (rows for rows in figure.to_dict()["datasets"].values() if rows and set(columns) <= set(rows[0]))
    return found


def test_there_is_a_figure_for_all_that_has_numbers(results):
    assert list(functions_figures(results)) == [
        functions_key(CIRCUIT, BASE),
        trade_off_key(CIRCUIT, BASE, "fetcher"),
        conflict_key(CIRCUIT, BASE, "reader"),
        functions_key(CIRCUIT, OTHER),
        redrawn_key(CIRCUIT, "object"),
    ]
    assert functions_figures({}) == {}


def test_bars_have_each_accuracy_unrounded_with_its_interval_and_its_floor(results):
    rows = rows_with(functions_figures(results)[functions_key(CIRCUIT, BASE)], "accuracy", "floor")
    by_cell = {(row["group"], row["desideratum"]): row for row in rows}
    assert list(by_cell) == [
        ("fetcher", "object"),
        ("fetcher", "position"),
        ("fetcher", "comma"),
        ("reader", "object"),
        ("reader", "conflict_position"),
    ]
    row = by_cell["fetcher", "object"]
    assert (row["accuracy"], row["low"], row["high"], row["floor"]) == (0.6875, 0.625, 0.75, 0.0)
    assert (row["heads"], row["above"]) == ("2 of 3", "0.688 (0.588 to 0.787)")
    assert [by_cell[key]["carries"].startswith("above") for key in by_cell] == [True, False, True, False, True]


def test_the_floor_is_drawn_in_every_layered_bar_chart(results):
    spec = functions_figures(results)[functions_key(CIRCUIT, BASE)].to_dict()
    marks = {layer["mark"]["type"]: layer["encoding"]["y"]["field"] for layer in spec["layer"]}
    assert marks == {"bar": "accuracy", "rule": "low", "tick": "floor"}


def test_a_trade_off_has_a_dot_for_every_mask_of_a_desideratum_with_several(results):
    rows = rows_with(functions_figures(results)[trade_off_key(CIRCUIT, BASE, "fetcher")], "n_heads")
    assert [(row["desideratum"], row["n_heads"], row["accuracy"], row["penalty"]) for row in rows] == [
        ("object", 2, 0.6875, "0.02"),
        ("object", 1, 0.5, "0.2"),
    ]


def test_only_conflicts_are_drawn_by_index(results):
    rows = rows_with(functions_figures(results)[conflict_key(CIRCUIT, BASE, "reader")], "index")
    assert [(row["desideratum"], row["index"], row["accuracy"]) for row in rows] == [
        ("conflict_position", 0, 0.75),
        ("conflict_position", 1, 0.25),
        ("conflict_position", 2, 0.5),
    ]


def test_activation_patching_shows_one_standard_deviation_in_every_model(results):
    rows = rows_with(functions_figures(results)[redrawn_key(CIRCUIT, "object")], "below")
    assert [(r["model"], r["below"], r["mean"], r["above"], r["redraws"]) for r in rows] == [
        (BASE, 0.375, 0.5, 0.625, 3),
        (OTHER, 0.125, 0.25, 0.375, 3),
    ]


def test_the_table_names_heads_and_controls_and_the_transferred_mask(results):
    rows = function_rows(results)
    assert len(rows) == 6
    first, last = rows[0], rows[-1]
    assert (first["circuit"], first["model"], first["group"], first["desideratum"]) == (
        CIRCUIT,
        BASE,
        "fetcher",
        "object",
    )
    assert (first["which"], rows[1]["which"]) == ("3.1, 2.0", "none")
    assert [first[name] for name in ("nothing", "shuffled", "all", "ranked", "random")] == [
        "0.000",
        "0.031 (–)",
        "0.710",
        "–",
        "–",
    ]
    assert (first["transferred"], last["transferred"]) == ("", "0.625 (0.500 to 0.750)")


def test_every_circuit_has_a_table_in_every_model_and_a_verdict_links_to_the_carried_masks(results):
    results["functions"]["another"] = {OTHER: {"own": {"object": cell(0.5, 0.25)}}}
    results["functions"] = dict(reversed(results["functions"].items()))
    tables = function_tables(results)
    assert [(table.caption, len(table.rows)) for table in tables] == [
        (f"Masks of another's groups in {OTHER}", 1),
        (f"Heads that the masks of another's groups in {OTHER} patch", 1),
        (f"Masks of {CIRCUIT}'s groups in {BASE}", 5),
        (f"Heads that the masks of {CIRCUIT}'s groups in {BASE} patch", 5),
        (f"Masks of {CIRCUIT}'s groups in {OTHER}", 1),
        (f"Heads that the masks of {CIRCUIT}'s groups in {OTHER} patch", 1),
    ]
    assert [list(table.ids) for table in tables[::2]] == [[], [anchor("masks", BASE)], [anchor("masks", OTHER)]]
    assert not any(table.ids for table in tables[1::2])
    assert all(set(table.columns) <= set(row) for table in tables for row in table.rows)
    assert {functions_key("another", OTHER), functions_key(CIRCUIT, OTHER)} <= set(functions_figures(results))


def test_the_trained_floor_has_a_column_where_there_is_one(results):
    cells = results["functions"][CIRCUIT][BASE]
    cells["fetcher"]["object"]["controls"]["shuffled"] = {"value": 0.125, "low": 0.0625, "high": 0.25}
    for entries in results["functions"][CIRCUIT][OTHER].values():
        for entry in entries.values():
            del entry["controls"]["shuffled"]
    here, _, there, _ = function_tables(results)
    assert here.columns["shuffled"] == "trained floor"
    assert here.rows[0]["shuffled"] == "0.125 (0.062 to 0.250)"
    assert "shuffled" not in there.columns
    assert ("transferred" in here.columns, "transferred" in there.columns) == (False, True)


def test_controls_say_on_how_many_triples_they_were_tried(results):
    assert function_tables(results)[0].columns["ranked"] == "strongest heads"
    for entry in results["functions"][CIRCUIT][BASE]["fetcher"].values():
        entry["controls"]["all"]["n"] = 40
    assert function_tables(results)[0].columns["ranked"] == "strongest heads, 40 triples"


def test_a_table_says_which_answer_is_followed_in_conflict(results):
    cells = results["functions"][CIRCUIT][BASE]
    cells["fetcher"]["object"]["pointed"] = {"mask": {"unpatched": 0.5, "object": 0.25, "other": 0.25}}
    cells["reader"]["conflict_position"]["pointed"] = {
        "mask": {"unpatched": 0.5, "object": 0.0, "position": 0.375, "other": 0.125},
        "all": {"unpatched": 0.25, "object": 0.0, "position": 0.75, "other": 0.0},
    }
    (table,) = (table for table in function_tables(results) if table.caption.startswith("In conflict"))
    assert list(table.columns.values()) == [
        *("group", "desideratum", "patched"),
        *("the answer without a patch", "object", "position", "anything else"),
    ]
    assert [[row[key] for key in table.columns] for row in table.rows] == [
        ["reader", "conflict_position", "the mask's heads", "0.500", "0.000", "0.375", "0.125"],
        ["reader", "conflict_position", "all heads", "0.250", "0.000", "0.750", "0.000"],
    ]


def test_a_sentence_names_only_what_is_above_its_floor(results):
    first, second = function_sentences(results)
    assert first == (
        "mine <b> in base & co: fetcher encodes object (0.688 above the floor, 0.588 to 0.787), comma (0.250 above "
        "the floor, 0.150 to 0.350); reader encodes conflict_position (0.350 above the floor, 0.250 to 0.450)."
    )
    assert second.startswith("mine <b> in tuned: fetcher encodes object")
    results["functions"][CIRCUIT][BASE]["reader"]["conflict_position"]["carries"] = False
    assert "reader encodes none of what was asked." in function_sentences(results)[0]


def test_specs_are_strict_json(results):
    for figure in functions_figures(results).values():
        json.dumps(figure.to_dict(), allow_nan=False)
