"""Studies of planted models are held against the wiring: a right answer counts as right, and a wrong one as wrong."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from circuitdiff import cli
from circuitdiff.circuit import Overlap
from circuitdiff.ground_truth import GroundTruth, Planting, ask, chosen, render_page
from circuitdiff.ground_truth.plantings import HELD_OUT, OTHER_ROUTES, study_of
from circuitdiff.ground_truth.rivals import FoundHeads, by_weights
from circuitdiff.ground_truth.statements import Statement, statements
from circuitdiff.models import load_model
from circuitdiff.models.checks import CheckError
from circuitdiff.planted import build_planted
from circuitdiff.planted.table import PLANTED
from circuitdiff.study.registry import read_results

PAIR = Planting("planted-detectors-in-noise", seed=5)
FEW = {"n_prompts": 56, "evaluation": 56}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ground-truth")


@pytest.fixture(scope="module")
def truth(folder):
    """Of one pair, by few prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("circuitdiff.ground_truth.asked.study_of", lambda planting: study_of(planting, **FEW))
        return ask([PAIR], folder)


def test_a_pair_is_asked_by_a_study_and_its_cause_is_named(truth):
    improved = {each.about: each for each in truth.statements if each.claim == "improved"}
    assert [part for part, each in improved.items() if each.true] == ["position_detector"]
    assert {"value_fetcher", "mlps", "norms", "embeddings", "other heads"} < set(improved)
    assert [each.ours for each in improved.values() if each.true] == ["yes"]
    assert not [each for each in truth.statements if each.right is False]
    groups = {each.group: each.ours for each in truth.heads}
    assert groups["position_transmitter"].precision == 1
    assert groups["name_binder"] == Overlap(0, 0, 0)
    assert all(each.model == PAIR.name for each in truth.heads), "the base that many share stands once, by itself"


def test_plainer_methods_name_another_part(truth, folder):
    """All of the gain is seen at the fetchers, too; and the weights that moved most are no cause."""
    named = {
        rival: [each.about for each in truth.statements if each.rivals.get(rival) == "yes"]
        for rival in ("z-patching", "weights")
    }
    assert named["weights"]
    assert named["z-patching"] == ["position_detector", "position_transmitter", "value_fetcher"]
    visible = {each.about: each.true for each in truth.statements if each.claim == "gain visible at"}
    assert visible == {
        "structure_reader": False,
        "position_detector": True,
        "position_transmitter": True,
        "value_fetcher": True,
    }


def test_the_same_answers_about_another_truth_are_wrong(truth, folder):
    """The same results, told that the fetchers were the cause, and that the circuit is another one."""
    results = read_results(folder / study_of(PAIR).name)
    planted = build_planted(PAIR.name, seed=PAIR.seed)
    other = replace(planted, improved_parts=("value_fetcher",), same_circuit=False)
    said = statements(PAIR, other, results, {})
    wrong = {(each.claim, each.about) for each in said if each.right is False}
    assert {("improved", "position_detector"), ("gain visible at", "position_transmitter")} <= wrong
    none = statements(PAIR, replace(planted, improved_parts=()), results, {})
    assert ("does better", "") in {(each.claim, each.about) for each in none if each.right is False}


def test_a_base_in_which_no_head_was_found_leaves_everything_open(truth, folder):
    results = read_results(folder / study_of(PAIR).name)
    verdict = next(iter(results.verdict.values()))
    unsaid = tuple(replace(each, answer="not established") for each in verdict.sentences)
    nothing = replace(verdict, parts={}, sentences=unsaid)
    bare = results.model_copy(update={"cross_model": {}, "graft": {}, "verdict": {PAIR.title: nothing}})
    said = statements(replace(PAIR, held_out=True), build_planted(PAIR.name, seed=PAIR.seed), bare, {})
    assert {each.ours for each in said} == {"open"}
    claims = {"does better", "same circuit", "same functions", "improved", "gain visible at", "encodes"}
    assert {each.claim for each in said} == claims
    assert len([each for each in said if each.claim == "encodes"]) == 12


def test_a_variant_that_is_worse_has_no_part_that_improved(truth, folder):
    """Of it the verdict says what it lacks."""
    results = read_results(folder / study_of(PAIR).name)
    [(name, verdict)] = results.verdict.items()
    lost = tuple(replace(s, answer="worse") if s.claim == "behaviour" else s for s in verdict.sentences)
    bare = results.model_copy(update={"verdict": {name: replace(verdict, sentences=lost)}})
    said = statements(PAIR, replace(build_planted(PAIR.name), improved_parts=()), bare, {"weights": ["mlps"]})
    [only] = [each for each in said if each.claim == "improved"]
    assert (only.about, only.true, only.ours, only.rivals) == ("any part", False, "no", {"weights": "yes"})


def test_the_parts_whose_weights_moved_most():
    base, other = load_model("planted-base"), load_model("planted-sharper-fetchers")
    circuit = build_planted("planted-base").circuit
    assert by_weights(base, other, circuit) == ["value_fetcher"]
    with torch.no_grad():
        other.module.transformer.h[3].mlp.c_fc.weight += 1e4
    assert by_weights(base, other, circuit) == ["mlps"]
    assert by_weights(base, base, circuit) == []


def test_who_is_asked():
    plantings = chosen()
    names = [each.name for each in plantings if not each.held_out]
    assert len(names) == len(set(names))
    by_identity = {"planted-sharper-fetchers", "planted-fetchers-among-changes", "planted-two-causes"}
    assert not by_identity & set(names), "there a graft is right by identity"
    assert {"planted-base", "planted-nothing-in-noise", "planted-both-in-noise"} <= set(names)
    assert [(each.name, each.seed) for each in plantings if each.held_out] == list(HELD_OUT)
    for each in plantings:
        same = PLANTED[each.name].same_circuit or each.name in OTHER_ROUTES
        assert (each.base is None) == (PLANTED[each.name].base == each.name or not same)
    assert Planting("planted-spread", 3).models == {"planted-spread@3": "planted-spread"}
    assert len(chosen(quick=True)) == 3


def said(claim="improved", about="mlps", true=True, ours="yes", held_out=False, **rivals):
    return Statement("planted-x", held_out, claim, about, true, ours, "what was said", rivals)


def heads(found, held_out=False, attribution=None, effect=None):
    rivals = {"attribution": attribution, "effect": effect}
    return FoundHeads("planted-x", held_out, "planted-x", "value_fetcher", found, rivals)


def test_the_page_begins_with_what_tells_methods_apart():
    rivals = {"z-patching": "no", "weights": "no"}
    found = (
        heads(Overlap(3, 3, 3), attribution=0.33, effect=1.0),
        heads(Overlap(2, 3, 2), attribution=1.0, effect=1.0),
    )
    pair = (said(**rivals), said(about="norms", true=False, ours="no", **{**rivals, "weights": "yes"}))
    page = render_page(GroundTruth(found, pair))
    first, wrong, rest = page.split("\n## ")[1:4]
    assert first.startswith("Right, where")
    assert "| `planted-x` | mlps | mlps | **none** ✗ | **norms** ✗ |" in first
    assert "| `planted-x` | value_fetcher | 3 of 3 | **0.33** ✗ | 1.00 |" in first
    assert wrong.startswith("Wrong\n\nAnswers:\n\nNone.")
    assert "| **2 of 3** ✗ | 1.00 | 1.00 |" in wrong
    assert "| improved | 2 | 1 of 1 | 1 of 1 | 0 of 2 |" in rest
    assert "1 of 2 groups are exact" in rest
    assert "Held-out plantings:\n\nNone yet." in rest


def test_a_pair_of_which_everything_is_open_is_no_success():
    rivals = {"z-patching": "no", "weights": "yes"}
    silent, answered = (
        render_page(GroundTruth((), (said(true=False, ours=ours, **rivals),))) for ours in ("open", "no")
    )
    assert "`planted-x`" not in silent.split("## Wrong")[0]
    assert "`planted-x` | none | none |" in answered.split("## Wrong")[0]


def test_a_wrong_answer_stands_on_the_page_and_an_open_one_counts_for_neither():
    asked = (said(ours="no"), said(about="norms", true=False, ours="open"), said("same circuit", "", True, "yes"))
    page = render_page(GroundTruth((), asked))
    _, _, wrong, rest, left_open, *_ = page.split("\n## ")
    assert "| `planted-x` | improved mlps | yes | no | what was said |" in wrong
    assert "| improved | 2 | – | 0 of 1 | 1 of 2 |" in rest
    assert "| improved norms | no | open |" in left_open


def test_a_study_that_a_check_ended_costs_no_other_its_answers(monkeypatch, tmp_path):
    def fails(settings, folder):
        raise CheckError("executors differ")

    monkeypatch.setattr("circuitdiff.ground_truth.asked.run_study", fails)
    truth = ask([PAIR, Planting("planted-base")], tmp_path)
    assert truth.failed == (f"`{PAIR.title}`: executors differ", "`planted-base`: executors differ")
    left_open = render_page(truth + GroundTruth((), (said(),))).split("## What was left open")[1]
    assert f"- `{PAIR.title}`: executors differ" in left_open


def test_held_out_plantings_are_counted_by_themselves():
    page = render_page(GroundTruth((), (said(held_out=True), said(ours="no"))))
    held, looked_at = page.split("Held-out plantings:")[1].split("Plantings that were looked at")
    assert "| improved | 1 | 1 of 1 | – | 0 of 1 |" in held
    assert "| improved | 1 | – | 0 of 1 | 0 of 1 |" in looked_at


def test_the_command_writes_a_page(monkeypatch, capsys, tmp_path):
    truth = GroundTruth((heads(Overlap(3, 3, 3)),), (said(), said(ours="open")))
    monkeypatch.setattr(cli, "ask", lambda plantings, *_: truth if len(plantings) == 3 else None)
    monkeypatch.setattr(sys, "argv", ["circuitdiff", "ground-truth", "--quick", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "2 answers: 0 wrong, 1 open; 1 of 1 groups exact" in capsys.readouterr().out
    assert (tmp_path / "ground-truth.md").read_text().startswith("# Ground truth")
