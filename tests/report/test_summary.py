"""The report's sentences say what the numbers say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from circuitdiff.report.numbers import hits, interval, number, printed, significant, unbroken
from circuitdiff.report.summary import alarms, summary
from circuitdiff.study.estimates import Estimate, Share
from circuitdiff.study.sections.attention import CircuitAttention
from circuitdiff.study.sections.discovery import FoundCircuit
from circuitdiff.study.sections.knockout import Knockouts, Matrix
from circuitdiff.study.sections.minimality import PromptCounts
from circuitdiff.study.sections.overlap import VariantOverlap
from helpers.invented_results import (
    MODEL,
    OURS,
    PAPER,
    accuracy,
    cell,
    changed,
    random_circuits,
    results_of,
    share,
)
from helpers.invented_sections import grafted, mask, no_gain, parts_removed, patched, pruned_circuit


def with_ours(results, **different):
    ours = replace(results.faithfulness[OURS][MODEL], **different)
    return changed(results, faithfulness=results.faithfulness | {OURS: {MODEL: ours}})


def texts(results) -> list[str]:
    return [str(sentence.text) for sentence in alarms(results).sentences]


def test_the_summary_states_accuracy_size_faithfulness_and_chance(results):
    model, ours, paper = summary(results).sentences
    assert model == (
        f"{MODEL} answers 46 of 64 prompts correctly: an accuracy of 0.719 (95 % interval 0.600 to 0.810)."
    )
    assert ours == (
        f"The circuit {OURS} has 7 heads in 5 groups (7 of the 15 heads of {MODEL}). "
        "Alone, with every other head replaced by its mean (slot means), it answers 42 of 64 prompts correctly, an "
        "accuracy of 0.656, which is 0.913 times the whole model's (faithfulness; 95 % interval 0.810 to 0.990). "
        "Beside random circuits of its size it scores 0.656; 16 of 100 random circuits do as well, p = 0.168."
    )
    assert "has 1 head in 1 group (1 of the 15 heads" in paper


def test_of_few_random_circuits_the_best_is_named_and_no_rank(results):
    found = with_ours(results, random=random_circuits((0.65625, 0.6, 0.5)))
    assert "it scores 0.656; largest of 3 random circuits: 0.656." in summary(found).sentences[1]


def test_undefined_faithfulness_is_said_with_its_reason(results):
    found = with_ours(results, value=None, note="the model scores 0")
    assert "its faithfulness is undefined here: the model scores 0." in summary(found).sentences[1]


def test_failed_checks_come_first_then_cautions(results):
    assert [sentence.look for sentence in alarms(results).sentences] == ["alarm failed", *["alarm caution"] * 2]
    said = texts(results)
    assert "window = full: 0.25 against a tolerance of 1e−05 (v at <query_label>)" in said[0]
    assert said[1] == "objects left out: <kiwi>"
    assert said[2] == f"Fewer than 50 prompts tell little; see the intervals of {PAPER} in {MODEL} (32)."


def test_a_sound_run_raises_no_alarm(results):
    found = with_ours(results, random=random_circuits((0.1,) * 100, 1 / 101))
    sound = changed(found, checks=results.checks[:1], warnings=(), faithfulness={OURS: found.faithfulness[OURS]})
    assert alarms(sound).empty


@pytest.mark.parametrize(("n", "expected"), [(49, 1), (50, 0)])
def test_fewer_than_fifty_prompts_are_a_caution(n, expected):
    assert len(texts(results_of(accuracy={"m": accuracy(0.5, n)}))) == expected


def test_the_summary_has_each_circuit_in_the_model_where_it_was_found():
    cells = {"a": {"m": cell(0.5), "n": cell(0.25)}, "b": {"n": cell(0.75)}}
    circuits = {name: FoundCircuit(home, None, None, {}, ()) for name, home in (("a", "m"), ("b", "n"))}
    said = summary(results_of(faithfulness=cells, discovery=circuits)).sentences
    assert [("which is 0.500" in text, "which is 0.750" in text) for text in said] == [(True, False), (False, True)]


def test_numbers_are_rounded_to_three_decimals_and_gaps_are_dashes():
    assert [number(value) for value in (-0.12345, 2, None, float("nan"))] == ["−0.123", "2.000", "–", "–"]
    assert (significant(2.5e-6), significant(None)) == ("2.5e−06", "–")
    assert interval(Estimate(0.2, 0.1, 0.25)) == "0.100 to 0.250"
    assert interval(Estimate(0.2, None, 0.25)) == interval(None) == "–"
    assert printed(Estimate(0.2, 0.1, 0.25)) == "0.200 (0.100 to 0.250)"
    assert printed(Estimate(None, None, None)) == printed(None) == "–"
    assert hits(Share(0.905, 0.9, 1.0, 181, 200)) == "181 / 200"


def test_a_narrow_column_breaks_before_an_interval_and_not_in_it():
    assert unbroken("0.500 (−0.100 to 1.100)") == "0.500 (−0.100\u00a0to\u00a01.100)"
    assert unbroken("0.500 (−0.300 to −0.100)").count(" ") == 1
    assert unbroken("last to query_label") == "last to query_label"
    assert unbroken(7) == "7"


def test_a_caution_names_each_section_with_the_fewest_prompts_behind_it():
    removed, patch = parts_removed(), no_gain()
    few, many = mask(0.5, 0.25, n_test=45), mask(0.5, 0.25)
    patches = replace(patched(), to_base={"z": replace(patch, n_prompts=49)}, to_variant={})
    found = results_of(
        minimality={"c": replace(pruned_circuit(), n_prompts=PromptCounts(20, 30, 300))},
        completeness={"c": {"m": replace(removed, n_prompts=12), "other": replace(removed, n_prompts=40)}},
        functions={"c": {"m": {"fetcher": {"object": few, "label": many}}}},
        cross_model={"v": patches},
        graft={"v": grafted(n_prompts=50, n_scenarios=50)},
        overlap={"v": VariantOverlap(n_scenarios=10), "w": VariantOverlap()},
        knockout={"m": Knockouts(48, 47, Matrix((), share(0.75), (), {}, 0.05), ())},
        attention={"c": {"m": CircuitAttention(46, 43, {})}},
    )
    assert texts(found) == [
        "Fewer than 50 prompts tell little; see the intervals of the costs of heads (30), completeness (12), "
        "the paths between groups and their profiles (10), functions (45), patching (49), knockouts (47), "
        "attention to roles (43)."
    ]
