"""The report's sentences say what the numbers say."""

from __future__ import annotations

import pytest

from circuitdiff.report.numbers import hits, interval, number, significant, unbroken
from circuitdiff.report.summary import alarms, summary
from helpers.invented_results import MODEL, OURS, PAPER


def test_the_summary_states_accuracy_size_faithfulness_and_chance(results):
    model, ours, paper = summary(results)
    assert model == (
        f"{MODEL} answers 46 of 64 prompts correctly: an accuracy of 0.719 (95 % interval 0.600 to 0.810)."
    )
    assert ours == (
        f"The circuit {OURS} has 7 heads in 5 groups (7 of the 15 heads of {MODEL}). "
        "Alone, with every other head replaced by its mean (slot means), it answers 42 of 64 prompts correctly, an "
        "accuracy of 0.656, which is 0.913 times the whole model's (faithfulness; 95 % interval 0.810 to 0.990). "
        "It scores higher than 84 of 100 random circuits of its size."
    )
    assert "has 1 head in 1 group (1 of the 15 heads" in paper


def test_a_random_circuit_that_scores_the_same_is_not_beaten(results):
    results["random"][OURS][MODEL]["accuracies"] = [0.65625, 0.65625, 0.6]
    assert "scores higher than 1 of 3 random circuits" in summary(results)[1]


def test_random_circuits_are_compared_with_the_circuit_on_their_own_prompts(results):
    results["random"][OURS][MODEL] |= {"circuit": 0.25, "n_prompts": 16, "accuracies": [0.1, 0.2, 0.3, 0.4]}
    assert "scores higher than 2 of 4 random circuits" in summary(results)[1]


def test_undefined_faithfulness_is_said_with_its_reason(results):
    results["faithfulness"][OURS][MODEL] |= {"value": float("nan"), "note": "the model scores 0"}
    assert "its faithfulness is undefined here: the model scores 0." in summary(results)[1]


def test_failed_checks_come_first_then_cautions(results):
    found = alarms(results)
    assert [alarm.level for alarm in found] == ["failed", *["caution"] * 4]
    texts = [alarm.text for alarm in found]
    assert "window = full: 0.25 against a tolerance of 1e−05 (v at <query_label>)" in texts[0]
    assert f"Faithfulness in {MODEL} is above 1.1 ({PAPER} 1.261)" in texts[1]
    assert f"{OURS} in {MODEL} scores higher than only 84 of 100" in texts[2]
    assert texts[3] == f"Fewer than 50 prompts tell little; see the intervals of {PAPER} in {MODEL} (32)."
    assert texts[4] == "objects left out: <kiwi>"


def test_a_sound_run_raises_no_alarm(results):
    results["checks"][1]["passed"] = True
    results["warnings"] = []
    del results["faithfulness"][PAPER]
    results["random"][OURS][MODEL]["accuracies"] = [0.1] * 100
    assert alarms(results) == []


@pytest.mark.parametrize(("n", "expected"), [(49, 1), (50, 0)])
def test_fewer_than_fifty_prompts_are_a_caution(n, expected):
    assert len(alarms({"models": {"m": {"accuracy": {"n": n}}}})) == expected


def test_random_circuits_on_few_prompts_are_a_caution():
    (alarm,) = alarms({"random": {"c": {"m": {"n_prompts": 35}}}})
    assert "random circuits like c in m (35)" in alarm.text


@pytest.mark.parametrize(("value", "expected"), [(1.1, 0), (1.1001, 1), (None, 0)])
def test_faithfulness_above_one_point_one_is_a_caution(value, expected):
    assert len(alarms({"faithfulness": {"c": {"m": {"value": value}}}})) == expected


def test_faithfulness_above_one_point_one_is_one_caution_a_model():
    entries = {"a": {"m": {"value": 1.5}, "n": {"value": 1.25}}, "b": {"m": {"value": 1.75}, "n": {"value": 1.0}}}
    texts = [alarm.text for alarm in alarms({"faithfulness": entries})]
    assert ["(a 1.500, b 1.750)" in texts[0], "(a 1.250)" in texts[1], len(texts)] == [True, True, 2]


def test_the_summary_has_each_circuit_in_the_model_where_it_was_found():
    entries = {"a": {"m": {"value": 0.5}, "n": {"value": 0.25}}, "b": {"n": {"value": 0.75}}}
    circuits = {"a": {"model": "m", "groups": {}}, "b": {"model": "n", "groups": {}}}
    said = summary({"faithfulness": entries, "circuits": circuits})
    assert [("0.500" in text, "0.750" in text) for text in said] == [(True, False), (False, True)]


def test_numbers_are_rounded_to_three_decimals_and_gaps_are_dashes():
    assert (number(-0.12345), number(2), number(None), number(float("nan")), number(True)) == (
        "−0.123",
        "2.000",
        "–",
        "–",
        "–",
    )
    assert (significant(2.5e-6), significant(None)) == ("2.5e−06", "–")
    assert interval({"low": 0.1, "high": 0.25}) == "0.100 to 0.250"
    assert interval({"low": None, "high": 0.25}) == interval(None) == "–"
    assert hits({"hits": 181, "n": 200}) == "181 / 200"


def test_a_narrow_column_breaks_before_an_interval_and_not_in_it():
    assert unbroken("0.500 (−0.100 to 1.100)") == "0.500 (−0.100\u00a0to\u00a01.100)"
    assert unbroken("0.500 (−0.300 to −0.100)").count(" ") == 1
    assert unbroken("last to query_label") == "last to query_label"
    assert unbroken(7) == "7"


def test_a_caution_names_each_section_with_the_fewest_prompts_behind_it(results):
    found = {
        "minimality": {"c": {"n_prompts": {"choosing": 20, "testing": 30}}},
        "completeness": {"c": {"m": {"n_prompts": 12}, "other": {"n_prompts": 40}}},
        "overlap": {"v": {"n_scenarios": 10}, "w": {}},
        "functions": {"c": {"m": {"fetcher": {"object": {"n_test": 45}, "label": {"n_test": 90}}}}},
        "cmap": {"v": {"to_base": {"z": {"n_prompts": 49}}, "controls": {"fetcher": {"n_prompts": 11}}}},
        "graft": {"v": {"n_prompts": 50}},
        "knockout": {"m": {"n_prompts": 48, "n_scenarios": 47}},
    }
    (alarm,) = alarms(found)
    assert alarm.text == (
        "Fewer than 50 prompts tell little; see the intervals of the costs of heads (30), completeness (12), the ways "
        "between groups and their profiles (10), functions (45), patching (49), the controls of patching (11), "
        "knockouts (47)."
    )
