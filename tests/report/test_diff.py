"""What moved between two invented runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from circuitdiff.cli import app
from circuitdiff.errors import InputError
from circuitdiff.report.diff import Changed, Heads, diff_runs, diff_tables, paired
from circuitdiff.study.estimates import Estimate, GroupHeads, Ratio, Share
from circuitdiff.study.registry import results_bytes
from circuitdiff.study.results import CommonResults, StudyHeader
from circuitdiff.study.sections.completeness import Removed
from circuitdiff.study.sections.faithfulness import Row
from circuitdiff.study.sections.minimality import HeadResult
from circuitdiff.study.sections.overlap import (
    EdgeOverlap,
    StageOverlap,
    StrongestInCommon,
    VariantOverlap,
)
from circuitdiff.study.sections.overlap_profiles import SameWork
from helpers.invented_results import around, cell, changed, model, random_circuits, results_of
from helpers.invented_runs import GROUPS, circuit, near, results, sweep
from helpers.invented_sections import (
    credit,
    grafted,
    mask,
    parts_removed,
    patched,
    pruned_circuit,
    trade_off,
    verdict,
)


def with_runs(*accuracies: float, **different: Any) -> dict[str, Any]:
    """Grafts of nothing, and of both parts."""
    found = grafted(**different)
    runs = (replace(run, accuracy=near(value).accuracy) for run, value in zip(found.runs, accuracies, strict=True))
    return {"tuned": replace(found, runs=tuple(runs))}


def moved(first: CommonResults, second: CommonResults) -> list[str]:
    return [each.where for each in diff_runs(first, second).moved]


def test_equal_runs_have_no_difference():
    found = diff_runs(results(), results())
    assert found.n_compared == 2 + 3
    assert (found.moved, found.heads, found.answers, found.checks, found.settings) == ((), (), (), (), ())
    assert (found.only_first, found.only_second) == ((), ())
    assert diff_tables(found, "a", "b") == []


@pytest.mark.parametrize(
    ("value", "spread", "has_moved"),
    [
        (0.59, 0.1, False),  # in the other's interval
        (0.61, 0.1, True),
        (0.7, 0.25, False),  # the other's value is in this interval
        (0.7, 0.15, True),
    ],
)
def test_a_number_has_moved_if_neither_value_is_in_the_others_interval(value, spread, has_moved):
    other = results(accuracy={"base": near(value, spread), "tuned": near(0.8)})
    assert moved(results(), other) == (["accuracy / base / accuracy"] if has_moved else [])


def test_a_mean_outside_its_percentiles_has_not_moved_from_itself():
    def run(value: float) -> CommonResults:
        share = Share(value, 0.25, 0.25, 0, 80)
        return results(accuracy={"base": replace(near(0.5), accuracy=share)})

    assert moved(run(0.247), run(0.247)) == []
    assert moved(run(0.24), run(0.247)) == [], "0.247 lies between 0.24 and its percentiles"


def test_the_furthest_comes_first_and_rows_are_known_by_what_they_are_not_by_their_place():
    first = results(graft=with_runs(0.5, 0.6))
    grafts = with_runs(0.5, 0.9)
    grafts["tuned"] = replace(grafts["tuned"], runs=grafts["tuned"].runs[::-1])
    second = results(graft=grafts, accuracy={"base": near(0.5), "tuned": near(0.2)})
    found = diff_runs(first, second)
    assert [each.where for each in found.moved] == [
        "accuracy / tuned / accuracy",
        "graft / tuned / runs / parts reader + fetcher / accuracy",
    ]
    assert found.moved[0].second.value == 0.2


def test_rows_of_faithfulness_are_known_by_what_is_kept_and_by_the_means():
    def run(*rows: tuple[str, float]) -> CommonResults:
        undefined = Ratio(None, None, None, None)
        found = tuple(Row(kept, "slot", near(value).accuracy, undefined, undefined) for kept, value in rows)
        return results(faithfulness={"base": {"base": cell(0.5, rows=found)}})

    assert moved(run(("circuit", 0.5), ("nothing", 0.1)), run(("nothing", 0.1), ("circuit", 0.9))) == [
        "faithfulness / base / base / rows / mean_by slot, kept circuit / accuracy"
    ]


def test_rows_of_overlaps_and_edges_are_known_by_what_they_compare():
    """Another size of a group adds a k, and a group without heads takes its edges away."""

    def run(ks: tuple[int, ...], vias: tuple[str, ...], names: tuple[str, ...]) -> CommonResults:
        alike = Ratio(**vars(around(0.5)), note=None)
        common = tuple(StrongestInCommon(k, k / 20, 0.9, 0.9, 0.1) for k in ks)
        repeated = (around(0.9), around(0.9))
        stage = StageOverlap("fetcher", True, (3, 3), alike, None, None, *repeated, common, (), 0.02)
        edges = tuple(
            EdgeOverlap("reader", "fetcher", via, around(ord(via)), around(0.0), around(0.0), 0.5)  # pyright: ignore
            for via in vias
        )
        same = tuple(SameWork("a", name, around(0.5), around(0.5)) for name in names)
        return results(overlap={"tuned": VariantOverlap(stages=(stage,), edges=edges, moved=same)})

    found = diff_runs(run((5, 10), ("k", "q"), ("a", "b")), run((5, 9, 10), ("q",), ("b",)))
    assert found.moved == ()
    assert found.only_second == ()
    assert [each.split(" / ")[-1] for each in found.only_first] == [
        "sender reader, receiver fetcher, via k",
        "base a, variant a",
    ]


def test_shares_of_a_gain_are_compared_beside_what_adds_to_it():
    def run(share: float) -> CommonResults:
        found = grafted()
        scores = replace(found.scores["accuracy"], parts={"fetcher": {"alone": credit(0.1, share)}})
        return results(graft={"tuned": replace(found, scores={"accuracy": scores})})

    (only,) = diff_runs(run(0.2), run(0.9)).moved
    assert only.where.endswith("fetcher / alone / share")
    assert (only.first.value, only.second.value) == (0.2, 0.9)


def test_costs_of_heads_and_accuracies_of_masks_are_compared():
    def run(x: float, penalties: tuple[float, float]) -> CommonResults:
        head = HeadResult((3, 1), x, x - 0.05, x + 0.05, 0.1, 0.9, "open", (), 0.5, 0.5, Estimate(None, None, None))
        masks = tuple(trade_off(1, 10 * penalty, penalty) for penalty in penalties)
        found = mask(x, 0.0, trade_off=masks, above_floor=around(0.1))
        return results(
            minimality={"base": replace(pruned_circuit(), groups={"fetcher": (head,)})},
            functions={"base": {"base": {"fetcher": {"object": found}}}},
        )

    found = diff_runs(run(0.3, (0.05, 0.2)), run(0.0, (0.02, 0.05)))
    assert sorted(each.where for each in found.moved) == [
        "functions / base / base / fetcher / object / accuracy",
        "minimality / base / groups / fetcher / head 3.1 / cost",
    ]
    assert [each.split(" / ")[-1] for each in found.only_first] == ["penalty 0.2, seed 0"]


def test_random_parts_and_random_circuits_of_two_circuits_are_not_compared():
    def run(x: float) -> CommonResults:
        drawn = Removed(3, *[around(x)] * 4)
        faithfulness = {"base": {"base": cell(0.5, random=random_circuits((x,)))}}
        completeness = {"base": {"base": replace(parts_removed(), random=(drawn,))}}
        return results(completeness=completeness, faithfulness=faithfulness)

    assert moved(run(0.1), run(0.9)) == []


def test_effects_of_single_heads_are_compared():
    tables = {
        "effects": ((-0.1, 0.0), (None, 0.25)),
        "adjusted_p": ((0.5, 0.5), (0.5, 0.5)),
        "low": ((-0.2, -0.1), (None, 0.2)),
        "high": ((0.0, 0.1), (None, 0.3)),
    }
    (only,) = diff_runs(results(), results(discovery={"base": circuit(sweep(**tables))})).moved
    assert only.where == "discovery / base / stages / name fetcher / head 0.0"
    assert (only.first.value, only.second.value) == (-0.5, -0.1)


def test_heads_verdicts_checks_and_settings_that_differ_are_named():
    said = verdict()
    unsure = replace(said, sentences=(replace(said.sentences[0], answer="not established"), said.sentences[1]))
    first = results(verdict={"tuned": said})
    second = results(
        verdict={"tuned": unsure},
        discovery={"base": circuit(groups=GROUPS | {"fetcher": GroupHeads("last", ((1, 1), (4, 0)))})},
        checks=(replace(first.checks[0], passed=False),),
        study=StudyHeader("one", "entity_tracking", 0, {"seed": 1, "prompts": {"discovery": 70}}),
        versions={"torch": "2.14.0"},
    )
    found = diff_runs(first, second)
    assert found.heads == (Heads("base", "fetcher", ("1.0", "2.3"), ("4.0",), 1),)
    assert found.answers == (Changed("tuned / behaviour", "better", "not established"),)
    assert found.checks == (Changed("base / same logits", True, False),)
    assert found.settings == (Changed("settings / seed", 0, 1), Changed("versions / torch", "2.13.0", "2.14.0"))
    titles = [title for title, _, _ in diff_tables(found, "a", "b")]
    assert titles == ["heads", "verdicts", "checks", "settings"]


def test_what_only_one_run_measured_is_named_once():
    first = results(graft=with_runs(0.5, 0.6))
    second = results(accuracy={"base": near(0.5), "third": near(0.3)})
    found = diff_runs(first, second)
    assert found.only_first == ("accuracy / tuned", "graft")
    assert found.only_second == ("accuracy / third",)


@pytest.mark.parametrize("undefined_in", [0, 1])
def test_a_number_that_is_undefined_in_one_run_is_named_with_its_value_in_the_other(undefined_in):
    """As faithfulness is if a model is never right; what it is made of may still be defined."""
    known = {
        "effects": ((-0.5, 0.0), (0.3, 0.25)),
        "adjusted_p": ((0.5, 0.5), (0.5, 0.5)),
        "low": ((-0.6, -0.1), (0.2, 0.2)),
        "high": ((-0.4, 0.1), (0.4, 0.3)),
    }
    whole = results(
        discovery={"base": circuit(sweep(**known))}, faithfulness={"base": {"base": cell(0.5, normalised=around(0.5))}}
    )
    gaps = changed(
        whole, discovery={"base": circuit()}, faithfulness={"base": {"base": cell(None, normalised=around(0.5))}}
    )
    runs = (gaps, whole) if undefined_in == 0 else (whole, gaps)
    found = diff_runs(*runs)
    assert [each.where for each in found.undefined] == [
        "discovery / base / stages / name fetcher / head 1.0",
        "faithfulness / base / base",
    ]
    assert [(run.first, run.second)[undefined_in] for run in found.undefined] == [None, None]
    assert (found.moved, found.only_first, found.only_second) == ((), (), ())
    [(title, _, rows)] = diff_tables(found, "a", "b")
    assert title == "what is undefined in one run"
    assert sorted(rows[1][1:]) == ["0.500 [0.450, 0.550]", "undefined"]


def test_models_of_other_names_are_compared_where_they_are_paired():
    def run(name: str) -> CommonResults:
        tuned = changed(results(), graft={name: grafted(donor=name)}, verdict={name: verdict()})
        discovery = {"base": circuit(), f"{name} (paper)": circuit(home=name)}
        accuracy = {"base": near(0.5), name: near(0.8)}
        return changed(tuned, models={"base": model(), name: model()}, discovery=discovery, accuracy=accuracy)

    ours, theirs = run("tuned"), run("other")
    assert diff_runs(ours, theirs).only_second
    renamed = paired(ours, theirs, ["tuned=other"])
    found = diff_runs(ours, renamed)
    assert (found.only_first, found.only_second, found.answers) == ((), (), ())
    assert found.n_compared == diff_runs(ours, ours).n_compared
    assert renamed.discovery["tuned (paper)"].model == "tuned"
    assert renamed.graft["tuned"].donor == "tuned"
    assert renamed.study == theirs.study


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


@pytest.mark.parametrize("section", ["graft", "cross_model"])
def test_gains_in_opposite_directions_are_named_and_not_compared(section):
    if section == "graft":
        ours, theirs, same = with_runs(0.5, 0.6), with_runs(0.5, 0.1, recipient="tuned"), with_runs(0.5, 0.1)
    else:
        worse = with_gain(0.9)
        ours, theirs, same = with_gain(0.1), {"tuned": replace(worse["tuned"], recipient="tuned")}, worse
    first, second = results(**{section: ours}), results(**{section: theirs})
    found = diff_runs(first, second)
    assert found.answers == (Changed(f"{section} / tuned / recipient", "base", "tuned"),)
    assert (found.moved, found.only_first) == ((), ())
    assert len(moved(first, results(**{section: same}))) == 1


def with_gain(value: float) -> dict[str, Any]:
    """Patches into the base, with another gain."""
    way = patched().to_base["z"]
    scores = {"accuracy": replace(way.scores["accuracy"], gain=around(value))}
    return {"tuned": replace(patched(), to_base={"z": replace(way, scores=scores)}, heads=None)}


def test_runs_without_anything_are_compared_too():
    empty = diff_runs(results_of(), results_of())
    assert empty.n_compared == 0
    assert diff_runs(results_of(), results(graft=with_runs(0.5, 0.6))).only_second == ("accuracy", "discovery", "graft")


def test_the_command_prints_tables_and_writes_everything(tmp_path):
    other = results(accuracy={"base": near(0.95), "tuned": near(0.8)})
    for name, data in (("a", results()), ("b", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_bytes(results_bytes(data))
    came = CliRunner().invoke(
        app, ["diff", *(str(tmp_path / name) for name in "ab"), "--json", str(tmp_path / "d.json")]
    )
    assert came.exit_code == 0
    assert "accuracy / base / accuracy" in came.output
    assert "1 of 5 numbers with an interval moved beyond it" in came.output
    assert '"n_compared": 5' in (tmp_path / "d.json").read_text()
