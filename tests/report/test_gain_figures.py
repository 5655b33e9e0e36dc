"""Figures, tables and sentences on gains, knockouts and the verdict, from invented results."""

from __future__ import annotations

import json
import math
import re

import pytest

from circuitdiff.report.cross_model import (
    GRAFTED,
    control_key,
    control_rows,
    gain_figures,
    gain_key,
    gain_sentence,
    measured,
    run_rows,
)
from circuitdiff.report.gains import gain_tables, side_by_side_rows
from circuitdiff.report.knockout import (
    curve_rows,
    curves,
    curves_key,
    knockout_caption,
    knockout_figures,
    knockout_sentences,
    knockout_table_rows,
    matrix_key,
    matrix_rows,
)
from circuitdiff.report.look import Figure
from circuitdiff.report.page import write_report
from circuitdiff.report.parts import parts
from circuitdiff.report.verdict import anchor, threshold_sentence, verdict_rows
from helpers.invented_gains import VARIANT, credit, gains


def drawn(figure: Figure) -> list[dict]:
    """All rows of a figure's own data."""
    spec = figure.to_dict()
    json.dumps(spec, allow_nan=False)  # what a page may hold
    return [row for rows in spec["datasets"].values() for row in rows]


def test_there_is_a_figure_for_each_method_and_each_group_among_random_ones():
    assert set(gain_figures(gains())) == {
        gain_key(VARIANT, "to_base", "patched z"),
        gain_key(VARIANT, "to_base", "patched z, single heads of fetcher"),
        gain_key(VARIANT, "to_base", GRAFTED),
        gain_key(VARIANT, "to_base", "grafted weights of layers"),
        control_key(VARIANT, "fetcher"),
    }
    assert gain_figures({}) == {}


def test_every_method_is_measured_once_those_by_group_first():
    assert [(direction, method) for direction, method, _ in measured(gains(), VARIANT)] == [
        ("to_base", "patched z"),
        ("to_variant", "patched z"),
        ("to_base", GRAFTED),
        ("to_base", "patched z, single heads of fetcher"),
        ("to_base", "patched z, from untuned instead"),
        ("to_base", "grafted weights of layers"),
    ]


def test_where_a_gain_is_visible_stands_beside_what_caused_it():
    results = gains()
    grafted = results["graft"][VARIANT]["scores"]["accuracy"]
    grafted["parts"]["mlps"] = {"alone": credit(0.0625, 0.25)}
    grafted["parts"]["fetcher"]["alone"] = credit(0.125, 0.5)
    both, *_ = gain_tables(results, VARIANT)
    assert list(both.columns.values()) == ["part", "counted", "patched z", "share", "grafted weights", "share"]
    rows = {(row["part"], row["how"]): row for row in both.rows}
    assert [
        rows["fetcher", "alone"][key] for key in ("patched z", "share, patched z", GRAFTED, f"share, {GRAFTED}")
    ] == [
        "0.250 (0.200 to 0.300)",
        "0.750 (0.625 to 0.875)",
        "0.125 (0.075 to 0.175)",
        "0.500 (0.375 to 0.625)",
    ]
    assert (rows["mlps", "alone"]["patched z"], rows["mlps", "alone"][GRAFTED]) == ("", "0.062 (0.012 to 0.113)")
    symmetric = rows["fetcher", "Shapley, symmetric"]
    assert (symmetric["share, patched z"], symmetric[GRAFTED]) == ("0.938 (0.812 to 1.062)", "")
    assert rows["the gain", ""]["patched z"] == "0.312 (0.263 to 0.362)"
    assert list(rows)[-2:] == [("all together", ""), ("what no part explains", "")]
    far = "the run with reader lies far from clean activations <so>"
    undefined = f"No share is defined: {far} (patched z of reader, {GRAFTED} of reader). "
    assert both.note == f"{undefined}The same in both models: norms."
    assert "norms" not in {part for part, _ in rows}, "a part that is the same in both models says nothing"


def test_no_number_of_a_gain_stands_in_two_tables():
    captions = [table.caption for table in gain_tables(gains(), VARIANT) if table.rows]
    assert captions == [
        f"The gain of {VARIANT} over base: where it is visible (patched activations) and what caused it (grafted "
        "weights); what each part adds to the accuracy, and its share of the gain",
        f"patched z, single heads of fetcher of {VARIANT} in base",
        f"grafted weights of layers of {VARIANT} in base",
        f"patched z of {VARIANT} in base: every run",
        f"grafted weights of {VARIANT} in base: every run",
        f"Controls, {VARIANT}",
    ]
    assert side_by_side_rows({}) == []


def test_every_column_of_a_table_is_in_its_rows():
    """A page prints nothing for what it does not find."""
    tables = [table for part in parts(gains()) for table in part.tables if table.rows]
    assert any(table.caption.startswith("Attention knockout in base") for table in tables)
    assert any(table.caption.startswith("The gain of") for table in tables)
    for table in tables:
        for row in table.rows:
            assert set(table.columns) <= set(row), table.caption


def test_sentences_on_a_gain_link_to_the_direction_in_which_weights_went():
    results = gains()
    results["cmap"][VARIANT]["to_variant"]["z"] = results["cmap"][VARIANT]["to_base"]["z"]
    results["graft"][VARIANT]["recipient"] = VARIANT
    first, second, *_ = gain_tables(results, VARIANT)
    assert GRAFTED in first.columns
    assert list(first.ids) == [anchor("cmap", VARIANT), anchor("graft", VARIANT)]
    assert GRAFTED not in second.columns
    assert list(second.ids) == []
    del results["cmap"][VARIANT]["to_variant"]
    assert [list(table.ids) for table in gain_tables(results, VARIANT)[:2]] == [
        [anchor("graft", VARIANT)],
        [anchor("cmap", VARIANT)],
    ]


def test_a_share_that_is_undefined_is_pale_and_says_why():
    figure = gain_figures(gains())[gain_key(VARIANT, "to_base", "patched z")]
    readers = [row for row in drawn(figure) if row.get("part") == "reader"]
    assert {row["share"] for row in readers} == {"undefined"}
    assert all("far from clean activations" in row["note"] for row in readers)
    bars, *_ = figure.to_dict()["layer"]
    assert bars["mark"]["type"] == "bar"
    assert "===" in json.dumps(bars["encoding"]["opacity"]["condition"]), "only rows without a note are dark"


def test_controls_are_drawn_beside_the_group_that_they_stand_in_for():
    results = gains()
    controls = results["cmap"][VARIANT]["controls"]["fetcher"]
    controls["noise"] = credit(0.015625, 0.05)
    found = gain_figures(results)
    by_how = {row["how"]: row for row in drawn(found[gain_key(VARIANT, "to_base", "patched z")]) if "how" in row}
    assert by_how["control: noise"]["value"] == 0.015625
    random = by_how["control: random heads of its layers"]
    assert (random["part"], random["value"]) == ("fetcher", 0.0078125)
    for other in (GRAFTED, "patched z, single heads of fetcher"):
        rows = drawn(found[gain_key(VARIANT, "to_base", other)])
        assert not [row for row in rows if str(row.get("how")).startswith("control")]


def test_the_page_says_which_weights_went_along_and_which_are_the_same():
    results = gains()
    results["graft"][VARIANT]["also_touched"] = {"fetcher": [[3, 1], [3, 2]]}
    both, *_ = gain_tables(results, VARIANT)
    assert "With fetcher the keys and values of 3.1, 3.2 were grafted, too: they are the same weights." in both.note
    assert both.note.endswith("The same in both models: norms.")


def test_every_run_and_the_other_scores_stand_in_tables():
    results = gains()
    scores = results["cmap"][VARIANT]["to_base"]["z"]["scores"]
    scores["log_prob"] = scores["accuracy"] | {"gain": {"value": 2.0, "low": 1.0, "high": 3.0}}
    tables = {table.caption: table for table in gain_tables(results, VARIANT) if table.rows}
    runs = tables[f"patched z of {VARIANT} in base: every run"]
    assert [row["parts"] for row in runs.rows] == ["none", "reader + fetcher"]
    other = tables[f"patched z of {VARIANT} in base: answer's log probability"]
    assert other.columns["printed"] == "adds to the answer's log probability"
    assert list(tables[f"grafted weights of layers of {VARIANT} in base"].ids) == [anchor("layers", VARIANT)]


def test_runs_and_controls_print_what_was_measured_and_nothing_else():
    runs = run_rows(gains()["cmap"][VARIANT]["to_base"]["z"])
    assert [run["share"].split(" ")[0] for run in runs] == ["–", "0.812"]  # of each subset of the parts
    assert [run["parts"] for run in runs] == ["none", "reader + fetcher"]
    assert (runs[1]["distance"], runs[1]["note"]) == ("1.250", "far <away>")
    rows = {row["how"]: row for row in control_rows(gains(), VARIANT)}
    assert set(rows) == {
        "the group itself",
        "as many heads of any layer",
        "the same heads at another role",
        "4 random groups of its layers (the group is above 100 of 100)",
        "random heads of any layer",
    }
    assert rows["the same heads at another role"]["note"] == "ends far from clean runs"
    random = gain_figures(gains())[control_key(VARIANT, "fetcher")]
    assert [row["accuracy"] for row in drawn(random) if "what" not in row] == [0.5, 0.53125, 0.5]


def test_sentences_on_gains_name_the_shares_or_why_there_are_none():
    found = [gain_sentence(VARIANT, *each) for each in measured(gains(), VARIANT)]
    assert f"Patched z of {VARIANT} in base: the gain is 0.312" in found[0]
    assert found[0].endswith("its shares in causal order are fetcher 0.875.")
    assert found[1].endswith("; covers 0.")


def test_knockout_has_curves_and_a_matrix_for_each_model_that_was_measured():
    figures = knockout_figures(gains())
    assert set(figures) == {matrix_key("base"), curves_key("base")}
    rows = curve_rows(gains()["knockout"]["base"])
    assert [(row["path"], row["layer"], row["value"]) for row in rows] == [
        ("last to query_label", 0, 0.25),
        ("last to query_label", 3, None),
        ("last to a random position", 0, 0.25),
        ("last to a random position", 3, None),
    ]
    cells = matrix_rows(gains()["knockout"]["base"])
    assert [(cell["loss"], cell["mark"]) for cell in cells] == [
        (0.5, "flows"),
        (0.0, "does not"),
        (0.0625, "?"),
        (None, ""),
    ]
    for figure in figures.values():
        assert drawn(figure)


def test_no_two_curves_of_a_knockout_look_alike():
    """Every pair of roles may have one, and there are seven colours."""
    entry = gains()["knockout"]["base"]
    entry["curves"] = [entry["curves"][0] | {"key": f"key {i}"} for i in range(20)]
    (lines,) = (
        layer["encoding"] for layer in curves("base", entry).to_dict()["layer"] if layer["mark"]["type"] == "line"
    )
    colours, dashes = (lines[channel]["scale"] for channel in ("color", "strokeDash"))
    assert colours["domain"] == dashes["domain"] == [f"last to key {i}" for i in range(20)]
    looks = {(colour, *dash) for colour, dash in zip(colours["range"], dashes["range"], strict=True)}
    assert len(looks) == 20


def test_the_knockout_table_has_each_cell_with_its_control_and_intervals():
    entry = gains()["knockout"]["base"]
    rows = knockout_table_rows(entry)
    assert [(row["query"], row["key"], row["answer"]) for row in rows] == [
        ("last", "query_label", "yes"),
        ("last", "object", "no"),
        ("query_label", "object", "not established"),
    ]
    assert [rows[0][key] for key in ("accuracy", "loss", "control", "beyond")] == [
        "0.250 (0.200 to 0.300)",
        "0.500 (0.450 to 0.550)",
        "0.719 (0.669 to 0.769)",
        "0.469 (0.419 to 0.519)",
    ]
    assert rows[2]["control"] == "0.688 (0.637 to 0.738)"
    assert knockout_caption("base", entry).endswith("48 prompts, accuracy with nothing blocked 0.750 (0.700 to 0.800)")
    assert knockout_table_rows({}) == []


def test_knockout_sentences_name_only_what_is_sure():
    flows, not_needed = knockout_sentences("base", gains()["knockout"]["base"])
    assert flows == "In base, information flows where it attends from last to query_label (0.500)."
    assert not_needed == "In base, nothing is lost without attention from last to object (0.000)."
    assert knockout_sentences("empty", {}) == []


def test_every_sentence_of_the_verdict_has_its_scope_and_a_table_to_look_at():
    rows = verdict_rows(gains())
    assert [row["answer"] for row in rows] == ["yes", "not established"]
    assert all(row["scope"] for row in rows)
    assert [row["anchor"] for row in rows] == [anchor("models"), anchor("graft", VARIANT)]
    assert anchor("graft", "a b<c>") == "table-graft-a-b-c-"
    assert verdict_rows({}) == []


def test_the_thresholds_are_said():
    text = threshold_sentence(gains()["verdict"][VARIANT])
    assert text.startswith("Held against at least 50 held-out scenarios, normalised faithfulness of at least 0.8")
    assert threshold_sentence({}) == ""


@pytest.mark.parametrize("value", [math.nan, None])
def test_missing_numbers_are_dashes_not_crashes(value):
    results = gains()
    accuracy = results["cmap"][VARIANT]["to_base"]["z"]["scores"]["accuracy"]
    accuracy["gain"] = {"value": value, "low": value, "high": value}
    accuracy["parts"]["fetcher"]["alone"] = {"value": value, "undefined": None}
    figure = gain_figures(results)[gain_key(VARIANT, "to_base", "patched z")]
    assert any(row.get("value") is None for row in drawn(figure))
    assert "–" in gain_sentence(VARIANT, "to_base", "patched z", results["cmap"][VARIANT]["to_base"]["z"])


def test_weights_that_went_into_the_variant_are_drawn_as_such():
    """As where the base does the task better."""
    results, variant = gains(), VARIANT
    assert ("to_base", GRAFTED) in [(direction, method) for direction, method, _ in measured(results, variant)]
    results["graft"][variant]["recipient"] = variant
    assert ("to_variant", GRAFTED) in [(direction, method) for direction, method, _ in measured(results, variant)]


def test_each_sentence_of_the_page_carries_its_own_scope(tmp_path):
    results = gains()
    sentences = results["verdict"][VARIANT]["sentences"]
    for sentence, n in zip(sentences, (500, 200), strict=True):
        sentence["scope"] = f"accuracy on {n} prompts"
    page = write_report(results, tmp_path / "report.html").read_text()
    for sentence, n in zip(sentences, (500, 200), strict=True):
        line = next(line for line in page.splitlines() if sentence["text"].split(",")[0] in line)
        assert f"accuracy on {n} prompts." in line


def test_a_sentence_links_to_its_table_or_to_nothing(tmp_path):
    """As where a section was left out."""
    results = gains()
    del results["graft"]
    for given in (gains(), results):
        html = write_report(given, tmp_path / "report.html").read_text()
        links, ids = set(re.findall(r'href="#(table-[^"]+)"', html)), set(re.findall(r'id="(table-[^"]+)"', html))
        assert links or given is results
        assert links <= ids
    assert anchor("graft", VARIANT) not in links


def test_the_page_has_the_tables_with_their_notes_and_unbroken_intervals(tmp_path):
    html = write_report(gains(), tmp_path / "report.html").read_text()
    assert "No share is defined: the run with reader lies far" in html
    assert "<td>0.719 (0.669\u00a0to\u00a00.769)</td>" in html
