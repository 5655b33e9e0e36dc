"""The parts of the page on minimality, completeness and ablations."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import vl_convert

from circuitdiff.methods.minimality import MinimalityRule
from circuitdiff.report import ablations, completeness, minimality
from circuitdiff.report.parts import Part
from circuitdiff.study.sections.ablations import AblationScores, UnderAblation
from circuitdiff.study.sections.completeness import PartsRemoved
from circuitdiff.study.sections.minimality import HeadCounts
from helpers.invented_results import around, data_of, ratio, results_of, rows_with
from helpers.invented_sections import CIRCUIT, TINY, parts_removed, pruned_circuit

FETCHERS = f"minimality/{CIRCUIT}/value_fetcher"


def on_minimality(**rule) -> Part:
    pruned = replace(pruned_circuit(), rule=MinimalityRule(**rule))
    return minimality.view(results_of(minimality={CIRCUIT: pruned}))


def on_completeness(parts: PartsRemoved) -> Part:
    return completeness.view(results_of(completeness={CIRCUIT: {TINY: parts}}))


@cache
def on_ablations() -> Part:
    def scores(circuit: float, of_model: float | None, note: str | None = None) -> AblationScores:
        ratios = ratio(of_model, note=note)
        return AblationScores(around(circuit), around(0.8), around(0.1), ratios, ratios)

    by_slot = UnderAblation(90, scores(0.5, 0.625), scores(0.4, 0.5), scores(0.25, None, "why"))
    zero = UnderAblation(90, scores(0.2, 0.25), scores(0.1, 0.125), scores(0.1, 0.125))
    return ablations.view(results_of(ablations={CIRCUIT: {TINY: {"zero": zero, "mean_by_slot": by_slot}}}))


def test_there_is_a_figure_for_every_group_with_heads_and_every_circuit_in_a_model():
    assert list(on_minimality().figures) == [FETCHERS, f"minimality/{CIRCUIT}/structure_reader"]
    assert list(on_completeness(parts_removed()).figures) == [f"completeness/{CIRCUIT}/{TINY}"]
    assert list(on_ablations().figures) == [f"ablations/{CIRCUIT}/{TINY}"]


@pytest.mark.parametrize("view", [minimality.view, completeness.view, ablations.view])
def test_a_missing_section_has_no_part(view):
    assert view(results_of()).empty


def test_vega_draws_every_figure():
    for part in (on_minimality(), on_completeness(parts_removed()), on_ablations()):
        for figure in part.figures.values():
            assert len(vl_convert.vegalite_to_svg(figure.to_json())) > 3000


def test_costs_stand_most_costly_first_with_their_interval_and_what_was_removed_before():
    rows = rows_with(on_minimality().figures[FETCHERS], "head")
    assert [row["head"] for row in rows] == ["4.1", "3.0", "2.2"]
    assert rows[0]["removed_with"] == "3.0, 2.2"
    assert (rows[0]["value"], rows[0]["low"], rows[0]["high"]) == (0.25, 0.23, 0.28)
    assert [row["status"] for row in rows] == ["needed", "open: neither is sure, so it stays", "not needed"]
    assert rows[2]["printed"] == "−0.010 (−0.030 to 0.020)"
    assert rows[2]["removed_with"] == "none"


def test_the_minimality_figure_says_how_many_heads_are_needed_and_from_which_prompts():
    subtitle = on_minimality().figures[FETCHERS].to_dict()["title"]["subtitle"]
    counted = "1 of 3 heads needed, 1 not needed, 1 open"
    assert subtitle[0] == f"{counted}; removal sets from 100 prompts, costs on 98 others"


def test_the_limits_are_drawn_where_the_rule_puts_them():
    spec = on_minimality(threshold=0.1, margin=0.05).figures[FETCHERS].to_dict()
    drawn = [row["at"] for rows in spec["datasets"].values() for row in rows if "at" in row]
    assert drawn == pytest.approx([0.1, 0.15])
    (line,) = rows_with(on_minimality(threshold=0.1, decision="ratio").figures[FETCHERS], "at")
    assert line["at"] == 0.0, "a ratio of scores has no place on an axis of costs"


def test_the_minimality_sentence_gives_all_outcomes_and_faithfulness_on_fresh_prompts():
    assert list(on_minimality().sentences) == [
        "Of the 4 heads of ours 2 are needed, 1 are not needed (they cost surely less than 0.03), and 1 are open; on "
        "300 fresh prompts its faithfulness is 0.750 (0.700 to 0.800), and 0.625 (0.575 to 0.675) without those that "
        "are not needed."
    ]


def test_where_nothing_is_surely_not_needed_the_page_says_that_nothing_is_pruned():
    unsure = replace(pruned_circuit(), n_heads=HeadCounts(needed=1, not_needed=0, open=3))
    (sentence,) = minimality.view(results_of(minimality={CIRCUIT: unsure})).sentences
    assert sentence.endswith("0 are not needed (they cost surely less than 0.03), and 3 are open; none is pruned.")


def test_every_part_stands_at_what_circuit_and_model_do_without_it():
    rows = rows_with(on_completeness(parts_removed()).figures[f"completeness/{CIRCUIT}/{TINY}"], "kind")
    assert [(row["kind"], row["circuit"], row["model"]) for row in rows] == [
        ("a random part", 0.25, 0.5),
        ("a random part", 0.5, 0.625),
        ("a whole group", 0.0625, 0.25),
        ("a whole group", 0.5, 0.5),
        ("the worst part found", 0.125, 0.5),
        ("nothing removed", 0.625, 0.75),
        ("the whole circuit", 0.03125, 0.125),
    ]
    assert (rows[0]["circuit_low"], rows[0]["circuit_high"]) == (0.2, 0.3)


def test_the_completeness_table_has_both_terms_and_the_signed_and_absolute_difference():
    parts = parts_removed()
    worse = replace(parts.groups[0], difference=around(-0.1875))
    (table,) = on_completeness(replace(parts, groups=(worse, *parts.groups[1:]))).tables
    assert table.caption == "ours and tiny without the same heads: mean probability of the answer, with 95 % intervals"
    drawn, group = ([row[key] for key in table.columns] for row in table.rows[1:3])
    assert drawn[:2] == ["a random part", 1]
    assert drawn[2:4] == ["0.625 (0.575 to 0.675)", "0.500 (0.450 to 0.550)"]
    assert drawn[4:] == ["0.125 (0.075 to 0.175)", "0.125 (0.062 to 0.188)"]
    assert group[:2] == ["a whole group, value_fetcher", 3]
    assert group[4:] == ["−0.188 (−0.237 to −0.138)", "0.188 (0.125 to 0.250)"]


def test_the_diagonal_spans_both_axes_alike():
    spec = on_completeness(parts_removed()).figures[f"completeness/{CIRCUIT}/{TINY}"].to_dict()
    (line,) = (rows for rows in spec["datasets"].values() if set(rows[0]) == {"circuit", "model"})
    assert all(row["circuit"] == row["model"] for row in line)
    domains = {tuple(layer["encoding"][axis]["scale"]["domain"]) for layer in spec["layer"] for axis in ("x", "y")}
    assert domains == {(line[0]["model"], line[1]["model"])}


def test_the_completeness_sentence_has_both_terms_and_the_floor():
    assert list(on_completeness(parts_removed()).sentences) == [
        "Without the worst 2 heads that a search found, tiny scores 0.500 and ours alone 0.125: a difference of 0.375 "
        "(0.325 to 0.425). With no head kept at all the score is 0.031."
    ]
    assert on_completeness(replace(parts_removed(), greedy=None)).sentences == []


def test_a_part_that_was_not_measured_is_no_number():
    parts = parts_removed()
    unmeasured = replace(parts, random=(replace(parts.random[0], model=around(None)),))
    figure = on_completeness(unmeasured).figures[f"completeness/{CIRCUIT}/{TINY}"]
    assert next(row["model"] for row in data_of(figure) if row.get("kind") == "a random part") is None


def test_the_ablations_table_has_a_row_per_ablation_and_quantity():
    (table,) = on_ablations().tables
    assert [(row["ablation"], row["quantity"]) for row in table.rows] == [
        (ablation, quantity)
        for ablation in ("mean of the slot", "zero")
        for quantity in ("accuracy", "probability", "logit difference")
    ]
    assert table.rows[0]["circuit"] == "0.500 (0.450 to 0.550)"
    assert table.rows[0]["ratio"] == "0.625 (0.575 to 0.675)"
    assert (table.rows[2]["ratio"], table.rows[2]["note"]) == ("–", "why")
