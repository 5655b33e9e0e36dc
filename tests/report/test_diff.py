"""What moved between two invented runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from typer.testing import CliRunner

from circuitdiff.cache.store import to_json
from circuitdiff.cli import app
from circuitdiff.errors import InputError
from circuitdiff.report.diff import Changed, Heads, diff_runs, diff_tables, paired


def near(value: float | None, spread: float = 0.1) -> dict[str, Any]:
    bounds = (None, None) if value is None else (value - spread, value + spread)
    return {"value": value, "low": bounds[0], "high": bounds[1]}


def results() -> dict[str, Any]:
    effects = [[-0.5, 0.0], [None, 0.25]]
    stage = {
        "name": "fetcher",
        "effects": effects,
        "low": [[-0.6, -0.1], [None, 0.2]],
        "high": [[-0.4, 0.1], [None, 0.3]],
    }
    return {
        "study": {"name": "one", "settings": {"seed": 0, "prompts": {"discovery": 70}}},
        "versions": {"torch": "2.13.0"},
        "checks": [{"name": "same logits", "model": "base", "passed": True, "value": 1e-7, "low": 0, "high": 1}],
        "models": {"base": {"accuracy": near(0.5) | {"n": 80}}, "tuned": {"accuracy": near(0.8)}},
        "discovery": {"base": {"stages": [stage]}},
        "circuits": {
            "base": {
                "model": "base",
                "groups": {
                    "fetcher": {"at": "last", "heads": [[1, 0], [1, 1], [2, 3]]},
                    "reader": {"at": "last", "heads": [[0, 1]]},
                },
            }
        },
        "graft": {
            "tuned": {"runs": [{"parts": ["fetcher"], "accuracy": near(0.6)}, {"parts": [], "accuracy": near(0.5)}]}
        },
        "matrix": {"cells": [{"circuit": "base", "faithfulness": near(0.9)}]},  # repeats what stands elsewhere
        "verdict": {"tuned": {"sentences": [{"claim": "better", "answer": "yes"}]}},
    }


def test_equal_runs_have_no_difference():
    found = diff_runs(results(), results())
    assert found.n_compared == 2 + 3 + 2
    assert (found.moved, found.heads, found.answers, found.checks, found.settings) == ((), (), (), (), ())
    assert (found.only_first, found.only_second) == ((), ())
    assert diff_tables(found, "a", "b") == []


@pytest.mark.parametrize(
    ("value", "spread", "moved"),
    [
        (0.59, 0.1, False),  # in the other's interval
        (0.61, 0.1, True),
        (0.7, 0.25, False),  # the other's value is in this interval
        (0.7, 0.15, True),
    ],
)
def test_a_number_has_moved_if_neither_value_is_in_the_others_interval(value, spread, moved):
    other = results()
    other["models"]["base"]["accuracy"] = near(value, spread)
    found = diff_runs(results(), other)
    assert [each.where for each in found.moved] == (["models / base / accuracy"] if moved else [])


def test_a_mean_outside_its_percentiles_has_not_moved_from_itself():
    skewed = {"value": 0.247, "low": 0.25, "high": 0.25}
    first, same, other = results(), results(), results()
    for run, value in ((first, 0.247), (same, 0.247), (other, 0.24)):
        run["models"]["base"]["accuracy"] = skewed | {"value": value}
    assert diff_runs(first, same).moved == ()
    assert diff_runs(other, first).moved == (), "0.247 lies between 0.24 and its percentiles"


def test_the_furthest_comes_first_and_rows_are_known_by_what_they_are_not_by_their_place():
    other = results()
    other["models"]["tuned"]["accuracy"] = near(0.2)
    runs = other["graft"]["tuned"]["runs"]
    runs.reverse()
    runs[1]["accuracy"] = near(0.9)
    found = diff_runs(results(), other)
    assert [each.where for each in found.moved] == [
        "models / tuned / accuracy",
        "graft / tuned / runs / parts fetcher / accuracy",
    ]
    assert found.moved[0].second.value == 0.2


def test_rows_of_overlaps_and_edges_are_known_by_what_they_compare():
    """Another size of a group adds a k, and a group without heads takes its edges away."""
    first, second = results(), results()
    edge = {"sender": "reader", "receiver": "fetcher", "via": "q"}
    for data, ks, edges in ((first, (5, 10), [edge | {"via": "k"}, edge]), (second, (5, 9, 10), [edge])):
        jaccard = [{"k": k, "between": near(k / 20)} for k in ks]
        moved = [{"base": "a", "variant": name, "effect": near(0.5)} for name in ("a", "b")][-len(edges) :]
        data["overlap"] = {
            "tuned": {
                "stages": [{"stage": "fetcher", "jaccard": jaccard}],
                "edges": [each | {"base": near(len(each["via"]))} for each in edges],
                "moved": moved,
            }
        }
    found = diff_runs(first, second)
    assert found.moved == ()
    assert [each.split(" / ")[-1] for each in found.only_second] == ["k 9"]
    assert [each.split(" / ")[-1] for each in found.only_first] == [
        "sender reader, receiver fetcher, via k",
        "base a, variant a",
    ]


def test_shares_of_a_gain_are_compared_beside_what_adds_to_it():
    first, second = results(), results()
    for data, share in ((first, 0.2), (second, 0.9)):
        credit = near(0.1) | {"share": share, "share_low": share - 0.1, "share_high": share + 0.1}
        data["graft"]["tuned"]["scores"] = {"accuracy": {"parts": {"fetcher": {"alone": credit}}}}
    [moved] = diff_runs(first, second).moved
    assert moved.where.endswith("fetcher / alone / share")
    assert (moved.first.value, moved.second.value) == (0.2, 0.9)


def test_costs_of_heads_and_accuracies_of_masks_are_compared():
    first, second = results(), results()
    for data, x, penalties in ((first, 0.3, (0.05, 0.2)), (second, 0.0, (0.02, 0.05))):
        bounds = {"low": x - 0.05, "high": x + 0.05}
        data["minimality"] = {"base": {"base": {"groups": {"fetcher": [{"head": [3, 1], "cost": x} | bounds]}}}}
        trade_off = [{"penalty": p, "seed": 0} | near(10 * p) for p in penalties]
        mask = {"accuracy": x, "trade_off": trade_off} | bounds
        data["functions"] = {"base": {"base": {"fetcher": {"object": mask}}}}
    found = diff_runs(first, second)
    assert sorted(each.where for each in found.moved) == [
        "functions / base / base / fetcher / object / accuracy",
        "minimality / base / base / groups / fetcher / head 3 + 1 / cost",
    ]
    assert [each.split(" / ")[-1] for each in found.only_first] == ["penalty 0.2, seed 0"]


def test_random_parts_of_two_circuits_are_not_compared():
    first, second = results(), results()
    for data, x in ((first, 0.1), (second, 0.9)):
        data["completeness"] = {"base": {"base": {"random": [{"n_removed": 3, "difference": near(x)}]}}}
    assert diff_runs(first, second).moved == ()


def test_effects_of_single_heads_are_compared():
    other = results()
    stage = other["discovery"]["base"]["stages"][0]
    stage["effects"][0][0], stage["low"][0][0], stage["high"][0][0] = -0.1, -0.2, 0.0
    [moved] = diff_runs(results(), other).moved
    assert moved.where == "discovery / base / stages / name fetcher / head 0.0"
    assert (moved.first.value, moved.second.value) == (-0.5, -0.1)


def test_heads_verdicts_checks_and_settings_that_differ_are_named():
    other = results()
    other["circuits"]["base"]["groups"]["fetcher"]["heads"] = [[1, 1], [4, 0]]
    other["verdict"]["tuned"]["sentences"][0]["answer"] = "not established"
    other["checks"][0]["passed"] = False
    other["study"]["settings"]["seed"] = 1
    other["versions"]["torch"] = "2.14.0"
    found = diff_runs(results(), other)
    assert found.heads == (Heads("base", "fetcher", ("1.0", "2.3"), ("4.0",), 1),)
    assert found.answers == (Changed("tuned / better", "yes", "not established"),)
    assert found.checks == (Changed("base / same logits", True, False),)
    assert found.settings == (Changed("settings / seed", 0, 1), Changed("versions / torch", "2.13.0", "2.14.0"))
    titles = [title for title, _, _ in diff_tables(found, "a", "b")]
    assert titles == ["heads", "verdicts", "checks", "settings"]


def test_what_only_one_run_measured_is_named_once():
    other = results()
    del other["graft"]
    del other["models"]["tuned"]["accuracy"]
    other["models"]["third"] = {"accuracy": near(0.3), "probability": near(0.2)}
    found = diff_runs(results(), other)
    assert found.only_first == ("models / tuned", "graft")
    assert found.only_second == ("models / third",)


@pytest.mark.parametrize("undefined_in", [0, 1])
def test_a_number_that_is_undefined_in_one_run_is_named_with_its_value_in_the_other(undefined_in):
    """As faithfulness is if a model is never right; what it is made of may still be defined."""
    runs = [results(), results()]
    for run in runs:
        run["faithfulness"] = {"base": {"base": near(0.5) | {"agreement": near(0.7)}}}
        run["discovery"]["base"]["stages"][0]["effects"][1][0] = 0.3
        run["discovery"]["base"]["stages"][0]["low"][1][0], run["discovery"]["base"]["stages"][0]["high"][1][0] = (
            0.2,
            0.4,
        )
    runs[undefined_in]["faithfulness"]["base"]["base"] |= near(None)
    runs[undefined_in]["discovery"]["base"]["stages"][0]["effects"][1][0] = None
    found = diff_runs(*runs)
    assert [each.where for each in found.undefined] == [
        "discovery / base / stages / name fetcher / head 1.0",
        "faithfulness / base / base",
    ]
    assert [(run.first, run.second)[undefined_in] for run in found.undefined] == [None, None]
    assert (found.moved, found.only_first, found.only_second) == ((), (), ())
    [(title, _, rows)] = diff_tables(found, "a", "b")
    assert title == "what is undefined in one run"
    assert sorted(rows[1][1:]) == ["0.500 [0.400, 0.600]", "undefined"]


def test_a_number_whose_place_holds_only_its_parts_in_the_other_run_is_named():
    first, second = results(), results()
    first["faithfulness"] = {"base": {"base": near(0.5) | {"agreement": near(0.7)}}}
    second["faithfulness"] = {"base": {"base": {"agreement": near(0.7)}}}
    assert diff_runs(first, second).only_first == ("faithfulness / base / base",)


def test_models_of_other_names_are_compared_where_they_are_paired():
    ours, theirs = results(), results()
    ours["circuits"]["tuned (paper)"] = ours["circuits"]["base"] | {"model": "tuned"}
    theirs["circuits"]["other (paper)"] = theirs["circuits"]["base"] | {"model": "other"}
    for section in ("models", "graft", "verdict"):
        theirs[section]["other"] = theirs[section].pop("tuned")
    assert diff_runs(ours, theirs).only_second
    found = diff_runs(ours, paired(ours, theirs, ["tuned=other"]))
    assert (found.only_first, found.only_second, found.answers) == ((), (), ())
    assert found.n_compared == diff_runs(ours, ours).n_compared
    renamed = paired(ours, theirs, ["tuned=other"])
    assert renamed["circuits"]["tuned (paper)"]["model"] == "tuned"
    assert renamed["study"] == theirs["study"]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["mine=tuned"], "the first run has no model 'mine'; it has base, tuned"),
        (["tuned=theirs"], "the second run has no model 'theirs'"),
        (["tuned"], "the second run has no model ''"),
        (["base=tuned"], "two models of the second run would be called 'base'"),
    ],
)
def test_pairs_that_cannot_be_made_are_refused(pairs, message):
    with pytest.raises(InputError, match=message):
        paired(results(), results(), pairs)


def test_gains_in_opposite_directions_are_named_and_not_compared():
    ours, theirs = results(), results()
    ours["graft"]["tuned"]["recipient"], theirs["graft"]["tuned"]["recipient"] = "base", "tuned"
    theirs["graft"]["tuned"]["runs"][0]["accuracy"] = near(0.1)
    found = diff_runs(ours, theirs)
    assert found.answers == (Changed("graft / tuned / recipient", "base", "tuned"),)
    assert (found.moved, found.only_first) == ((), ())
    theirs["graft"]["tuned"]["recipient"] = "base"
    assert len(diff_runs(ours, theirs).moved) == 1


def test_runs_without_anything_are_compared_too():
    empty = diff_runs({}, {})
    assert empty.n_compared == 0
    assert diff_runs({}, results()).only_second == ("models", "discovery", "graft")


def test_the_command_prints_tables_and_writes_everything(tmp_path):
    other = copy.deepcopy(results())
    other["models"]["base"]["accuracy"] = near(0.95)
    for name, data in (("a", results()), ("b", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(to_json(data))
    came = CliRunner().invoke(
        app, ["diff", *(str(tmp_path / name) for name in "ab"), "--json", str(tmp_path / "d.json")]
    )
    assert came.exit_code == 0
    assert "models / base / accuracy" in came.output
    assert "1 of 7 numbers with an interval moved beyond it" in came.output
    assert '"n_compared": 7' in (tmp_path / "d.json").read_text()
