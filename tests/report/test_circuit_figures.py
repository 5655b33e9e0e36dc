"""Figures and sentences on minimality, completeness and ablations."""

from __future__ import annotations

import json

import pytest
import vl_convert

from circuitdiff.report.ablations import ablation_rows, ablations_figures, ablations_key
from circuitdiff.report.completeness import completeness_figures, completeness_key, completeness_sentence, part_rows
from circuitdiff.report.minimality import cost_rows, minimality_figures, minimality_key, minimality_sentence
from circuitdiff.report.parts import parts
from helpers.invented_circuit_tests import (
    CIRCUIT,
    MODEL,
    ablations_entry,
    completeness_entry,
    estimate,
    minimality_entry,
)


@pytest.fixture(scope="module")
def figures() -> dict:
    return (
        minimality_figures({"minimality": {CIRCUIT: minimality_entry()}})
        | completeness_figures({"completeness": {CIRCUIT: {MODEL: completeness_entry()}}})
        | ablations_figures({"ablations": {CIRCUIT: {MODEL: ablations_entry()}}})
    )


def rows_with(figure, *columns: str) -> list[dict]:
    """The one data set of `figure` that has `columns`."""
    found = [rows for rows in figure.to_dict()["datasets"].values() if rows and set(columns) <= set(rows[0])]
    assert len(found) == 1
    return found[0]


def test_there_is_a_figure_for_every_group_with_heads_and_every_circuit_in_a_model(figures):
    assert list(figures) == [
        minimality_key(CIRCUIT, "value_fetcher"),
        minimality_key(CIRCUIT, "structure_reader"),
        completeness_key(CIRCUIT, MODEL),
        ablations_key(CIRCUIT, MODEL),
    ]


@pytest.mark.parametrize("make", [minimality_figures, completeness_figures, ablations_figures])
def test_a_missing_section_has_no_figure(make):
    assert make({}) == {}


def test_every_figure_is_strict_json_that_vega_draws(figures):
    for figure in figures.values():
        text = json.dumps(figure.to_dict(), allow_nan=False)
        assert len(vl_convert.vegalite_to_svg(text)) > 3000


def test_costs_stand_dearest_first_with_their_interval_and_what_was_removed_before():
    rows = cost_rows(minimality_entry()["groups"]["value_fetcher"])
    assert [row["head"] for row in rows] == ["4.1", "3.0", "2.2"]
    assert rows[0]["removed_with"] == "3.0, 2.2"
    assert (rows[0]["cost"], rows[0]["low"], rows[0]["high"]) == (0.25, 0.23, 0.28)
    assert [row["status"] for row in rows] == ["kept: the cost is credible", "dropped", "dropped"]
    assert rows[2]["printed"] == "−0.010"
    assert rows[2]["removed_with"] == "none"


def test_the_minimality_figure_says_how_many_heads_stay_and_from_which_prompts(figures):
    title = figures[minimality_key(CIRCUIT, "value_fetcher")].to_dict()["title"]
    assert title["subtitle"][0] == "1 of 3 heads kept; removal sets from 100 prompts, costs on 98 others"


def test_the_threshold_is_drawn_where_the_rule_puts_it():
    entry = minimality_entry()
    entry["rule"]["threshold"] = 0.1
    figure = minimality_figures({"minimality": {CIRCUIT: entry}})[minimality_key(CIRCUIT, "value_fetcher")]
    assert rows_with(figure, "threshold") == [{"threshold": 0.1}]
    entry["rule"]["decision"] = "ratio"  # a ratio of scores has no place on an axis of costs
    figure = minimality_figures({"minimality": {CIRCUIT: entry}})[minimality_key(CIRCUIT, "value_fetcher")]
    assert rows_with(figure, "threshold") == [{"threshold": 0.0}]


def test_the_minimality_sentence_gives_faithfulness_before_and_after_on_fresh_prompts():
    assert minimality_sentence(CIRCUIT, minimality_entry()) == (
        "ours keeps 2 of its 4 heads; on 300 fresh prompts its faithfulness is 0.750 (0.700 to 0.800) before pruning "
        "and 0.625 (0.575 to 0.675) after."
    )


def test_every_part_stands_at_what_circuit_and_model_do_without_it():
    rows = part_rows(completeness_entry())
    assert [(row["kind"], row["circuit"], row["model"]) for row in rows] == [
        ("a random part", 0.25, 0.5),
        ("a random part", 0.5, 0.625),
        ("a whole group", 0.0625, 0.25),
        ("a whole group", 0.5, 0.5),
        ("the worst part found", 0.125, 0.5),
        ("nothing removed", 0.625, 0.75),
        ("the whole circuit", 0.03125, 0.125),
    ]
    assert rows[2]["what"] == "value_fetcher"
    assert (rows[0]["circuit_low"], rows[0]["circuit_high"]) == (0.2, 0.3)
    assert rows[0]["difference"] == "0.250 (0.200 to 0.300)"


def test_the_completeness_table_has_both_terms_and_the_signed_and_absolute_difference():
    completeness = {CIRCUIT: {MODEL: completeness_entry()}}
    completeness[CIRCUIT][MODEL]["groups"][0]["difference"] = estimate(-0.1875)
    (part,) = parts({"completeness": completeness})
    (table,) = part.tables
    assert table.caption == "ours and tiny without the same heads: mean probability of the answer, with 95 % intervals"
    drawn, group = ([row[key] for key in table.columns] for row in table.rows[1:3])
    assert drawn[:2] == ["a random part", 1]
    assert drawn[2:4] == ["0.625 (0.575 to 0.675)", "0.500 (0.450 to 0.550)"]
    assert drawn[4:] == ["0.125 (0.075 to 0.175)", "0.125 (0.062 to 0.188)"]
    assert group[:2] == ["a whole group, value_fetcher", 3]
    assert group[4:] == ["−0.188 (−0.237 to −0.138)", "0.188 (0.125 to 0.250)"]


def test_the_diagonal_spans_both_axes_alike(figures):
    spec = figures[completeness_key(CIRCUIT, MODEL)].to_dict()
    (line,) = (rows for rows in spec["datasets"].values() if set(rows[0]) == {"circuit", "model"})
    assert all(row["circuit"] == row["model"] for row in line)
    domains = {tuple(layer["encoding"][axis]["scale"]["domain"]) for layer in spec["layer"] for axis in ("x", "y")}
    assert len(domains) == 1
    assert domains == {(line[0]["model"], line[1]["model"])}


def test_the_completeness_sentence_has_both_terms_and_the_floor():
    assert completeness_sentence(CIRCUIT, MODEL, completeness_entry()) == (
        "Without the worst 2 heads that a search found, tiny scores 0.500 and ours alone 0.125: a difference of 0.375 "
        "(0.325 to 0.425). With no head kept at all the score is 0.031."
    )
    assert completeness_sentence(CIRCUIT, MODEL, completeness_entry() | {"greedy": None}) == ""


def test_the_ablations_table_has_a_row_per_ablation_and_quantity():
    rows = ablation_rows(ablations_entry())
    assert [(row["ablation"], row["quantity"]) for row in rows] == [
        ("mean of the slot", "accuracy"),
        ("mean of the slot", "logit difference"),
        ("zero", "accuracy"),
    ]
    assert rows[0]["circuit"] == "0.500 (0.450 to 0.550)"
    assert rows[0]["ratio"] == "0.625 (0.575 to 0.675)"
    assert (rows[1]["ratio"], rows[1]["note"]) == ("–", "why")


def test_a_part_that_was_not_measured_is_no_number():
    entry = completeness_entry()
    entry["random"][0]["model"] = estimate(None)
    assert part_rows(entry)[0]["model"] is None
    json.dumps(
        completeness_figures({"completeness": {CIRCUIT: {MODEL: entry}}})[completeness_key(CIRCUIT, MODEL)].to_dict()
    )
