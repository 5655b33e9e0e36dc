"""What the page of ground truth claims is worked out right, and would fail if it were not so."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from circuitdiff.methods.attribution import attribution_scores

from circuitdiff.circuit import Head, Overlap
from circuitdiff.engine import Edit
from circuitdiff.errors import InputError
from circuitdiff.evaluation import evaluate_model
from circuitdiff.methods.discovery import Plan, Stage, StageResult
from circuitdiff.methods.path_patching import PathEffects
from circuitdiff.prompts import Pairs
from circuitdiff.stats.intervals import Interval, RatioInterval, mean_interval
from circuitdiff.stats.selection import Discoveries, Selection
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import N_HEADS, N_LAYERS, subject
from helpers.tiny_models import Subject as TinySubject
from validation import GroundTruth, Sizes, check_ground_truth, render_page
from validation import __main__ as command
from validation.circuit_rows import _as_good, circuit_rows
from validation.discovery_rows import Comparison, compare_with_attribution, discovery_rows, null_rows
from validation.plantings import Alarm, Coverage, Planting, holds, planting_rows, try_planting
from validation.subjects import PLAN, Row, Subject, another_planting, named_subject, run_plan

FEW = Sizes(discovery=7, evaluation=21, random_circuits=2, random_prompts=21, truth=7, decoys=2)
DIRECT, NONE = PLAN.stages[0], torch.zeros(10, 8)


@functools.cache
def planted(name: str) -> Subject:
    return named_subject(name, FEW)


# Attribution scores


def logit_difference(logits: torch.Tensor, pairs: Pairs, i: int) -> float:
    return float(logits[0, pairs.answers[i]] - logits[0, pairs.foils[i]].max())


def by_finite_difference(chosen: TinySubject, pairs: Pairs, head: Head, at: str) -> list[float]:
    """How the logit difference of each prompt moves per step from the clean z towards the counterfactual z."""
    slopes, step = [], 1e-5
    for i in range(len(pairs)):
        clean, other = pairs.clean[i : i + 1, : pairs.lengths[i]], pairs.counterfactual[i : i + 1]
        here, there = int(pairs.positions[at][i]), int(pairs.counterfactual_positions[at][i])
        own = chosen.reference.clean(clean).seen[head.layer, "z"][:, here, [head.index]]
        new = chosen.reference.clean(other).seen[head.layer, "z"][:, there, [head.index]]
        ends = []
        for sign in (1, -1):
            z = own + sign * step * (new - own)
            edit = Edit(head.layer, "z", here, torch.tensor([head.index]), torch.tensor([0]), z[None])
            ends.append(logit_difference(chosen.reference.run(clean, [edit], 1)[0], pairs, i))
        slopes.append((ends[0] - ends[1]) / (2 * step))
    return slopes


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])  # in others a norm computes in float32
@pytest.mark.parametrize("at", ["last", "previous_query_label"])
def test_attribution_is_the_slope_towards_the_counterfactual_z(architecture, at):
    chosen, pairs = subject(architecture), fake_pairs()
    scores = attribution_scores(chosen.model, pairs, [at])[at]
    for head in (Head(0, 3), Head(2, 5)):
        expected = torch.tensor(by_finite_difference(chosen, pairs, head, at), dtype=torch.float64)
        assert expected.abs().min() > 1e-4
        torch.testing.assert_close(scores[head.layer, head.index], expected, rtol=1e-5, atol=1e-7)  # the step


def test_a_head_that_no_later_position_reads_scores_zero_before_the_last_token():
    chosen, pairs = subject("llama"), fake_pairs()
    scores = attribution_scores(chosen.model, pairs, ["query_label", "last"])
    assert (scores["query_label"][N_LAYERS - 1] == 0).all()
    assert (scores["last"][N_LAYERS - 1] != 0).all()
    assert scores["last"].shape == (N_LAYERS, N_HEADS, len(pairs))


def test_several_roles_at_once_score_as_each_alone():
    chosen, pairs, roles = subject("llama"), fake_pairs(), ["query_label", "previous_query_label", "last"]
    together = attribution_scores(chosen.model, pairs, roles)
    for role in roles:
        alone = attribution_scores(chosen.model, pairs, [role])[role]
        torch.testing.assert_close(together[role], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("at", "message"), [("nowhere", "no role 'nowhere'"), ("absent", "no place in some prompts")])
def test_attribution_refuses_a_role_that_is_not_in_every_prompt(at, message):
    with pytest.raises(InputError, match=message):
        attribution_scores(subject("llama").model, fake_pairs(), [at])


def test_top_k_is_told_the_number_of_heads_planted_at_each_role():
    came = compare_with_attribution(planted("planted-base"), [])
    assert [(c.role, c.planted) for c in came] == [("last", 6), ("query_label", 3), ("previous_query_label", 3)]
    assert all(c.attribution == 1 for c in came)  # strong heads, no test needed
    assert all(c.discovery_recall == 0 and np.isnan(c.discovery) for c in came)


# Discovery


def invented(
    stage: Stage, helping: tuple[Head, ...], hurting: tuple[Head, ...] = (), effects: torch.Tensor = NONE
) -> StageResult:
    table = torch.zeros(10, 8, dtype=torch.float64)
    chosen = Selection(stage.select, helping, hurting, (), table, table + 1, table + 1, None)
    found = PathEffects(effects[..., None], None, 0.0, torch.arange(1), "logit_difference")
    return StageResult(stage, (), found, None, chosen)


def ideal(of: Subject) -> list[StageResult]:
    groups = of.truth.circuit.groups
    heads = [groups[stage.name].heads if stage.name in groups else () for stage in PLAN.stages]
    results = [invented(stage, chosen) for stage, chosen in zip(PLAN.stages, heads, strict=True)]
    return [invented(PLAN.stages[0], heads[0], of.truth.negative), *results[1:]]


def by_claim(rows: list[Row]) -> dict[str, Row]:
    assert len({row.claim for row in rows}) == len(rows)
    return {row.claim: row for row in rows}


def test_the_planted_groups_themselves_pass_every_claim_of_discovery():
    rows = by_claim(discovery_rows(planted("planted-base"), ideal(planted("planted-base"))))
    assert len(rows) == 10
    assert all(row.passed and row.value == 1 and not row.detail for row in rows.values())


def test_a_missing_head_costs_recall_and_a_decoy_costs_precision():
    base = planted("planted-base")
    results, decoy = ideal(base), min(base.decoys)
    detectors = base.truth.circuit.groups["position_detector"].heads
    results[2] = invented(PLAN.stages[2], (*detectors[:2], decoy))
    rows = by_claim(discovery_rows(base, results))
    precision, recall = rows["position_detector: precision"], rows["position_detector: recall"]
    assert (precision.value, recall.value) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert precision.detail.startswith(f"too many: decoy {decoy} (effect")
    assert recall.detail.startswith(f"missing: {detectors[2]} (effect")
    assert {claim for claim, row in rows.items() if not row.passed} == {precision.claim, recall.claim}


def test_negative_heads_must_be_among_those_that_hurt():
    base = planted("planted-base")
    results = ideal(base)
    results[0] = invented(PLAN.stages[0], results[0].selection.helping, base.truth.negative[:1])
    failed = [row for row in discovery_rows(base, results) if not row.passed]
    assert [(row.claim, row.value) for row in failed] == [("negative: recall", 0.5)]


def test_a_stage_that_was_not_reached_fails_where_heads_are_planted():
    base = planted("planted-base")
    rows = by_claim(discovery_rows(base, ideal(base)[:3]))
    assert rows["structure_reader: recall"].value == rows["structure_reader: precision"].value == 0
    assert not rows["structure_reader: recall"].passed
    assert "did not come this far" in rows["structure_reader: recall"].detail


def test_where_no_detector_is_planted_none_may_be_found():
    lexical = planted("planted-lexical")
    rows = by_claim(discovery_rows(lexical, ideal(lexical)[:2]))
    assert rows["position_detector: heads found"].passed
    assert rows["structure_reader: heads found"].expectation == "= 0.00: none is planted"
    wrong = [*ideal(lexical)[:2], invented(PLAN.stages[2], (Head(2, 0),))]
    assert not by_claim(discovery_rows(lexical, wrong))["position_detector: heads found"].passed
    assert "name_binder: recall" in rows


def test_a_backup_shows_only_behind_silent_fetchers():
    backup = planted("planted-backup")
    rows = by_claim(discovery_rows(backup, ideal(backup)))
    assert rows["backup: in the found circuit"].passed
    silent = [rows[f"backup: effect behind fetchers {how}"] for how in ("at their mean", "that write nothing")]
    assert all(row.passed and row.value > 5 for row in silent)
    idle = [
        rows[f"backup: effect {where}"] for where in ("in the whole model", "behind fetchers that write other names")
    ]
    assert all(row.passed and row.value < 0.01 for row in idle)
    results = ideal(backup)
    fetchers = results[0].selection.helping
    results[0] = invented(PLAN.stages[0], (*fetchers, *backup.truth.backup))
    assert not by_claim(discovery_rows(backup, results))["backup: in the found circuit"].passed


def test_a_plan_ends_where_a_stage_has_no_receivers():
    strict = Discoveries(minimum=1e9)
    stages = (Stage("a", "last", strict), Stage("b", "last", strict, "q", "a"), Stage("c", "last", strict))
    assert [r.stage.name for r in run_plan(planted("planted-base"), Plan(stages))] == ["a"]


# Circuits alone, and nulls


def test_the_planted_circuit_suffices_and_its_readers_show_by_kind_only():
    rows = by_claim(circuit_rows(planted("planted-base"), FEW))
    readers = rows["readers ablated, slot means: largest change"]
    assert readers.passed
    assert readers.detail.endswith("21 of 21 prompts")
    assert rows["readers ablated, kind means: accuracy lost"].passed
    assert rows["wrong segment: accuracy lost, kind means"].value > 0.3
    assert rows["faithfulness, slot means"].value > 0.9
    assert abs(rows["random circuits: answer preferred"].value - 1 / 7) < 0.15


def test_a_circuit_without_its_fetchers_is_not_faithful():
    base = planted("planted-base")
    cut = base.truth.circuit.without(base.truth.circuit.groups["value_fetcher"].heads, "last")
    rows = by_claim(circuit_rows(replace(base, truth=replace(base.truth, circuit=cut)), FEW))
    assert not rows["faithfulness, slot means"].passed
    assert not rows["wrong segment: accuracy lost, kind means"].passed


def test_a_circuit_is_as_good_as_its_model_where_the_interval_says_so():
    bounds = {(0.91, 1.01): True, (0.93, 0.99): True, (0.79, 1.02): False, (0.7, 1.3): False, (1.05, 1.11): False}
    came = {RatioInterval(1.0, *each): passed for each, passed in bounds.items()}
    came[RatioInterval(np.nan, np.nan, np.nan, "chance")] = False
    for ratio, passed in came.items():
        assert _as_good(planted("planted-base"), "c", ratio, "").passed is passed


@pytest.mark.parametrize("name", ["planted-permuted-heads", "planted-rotated-values"])
def test_a_null_passes_only_with_the_answers_heads_and_effects_of_the_base(name):
    base, null, other = planted("planted-base"), planted(name), planted("planted-sharper-fetchers")
    heads, moved = (each.truth.circuit.groups["value_fetcher"].heads for each in (base, null))
    effects = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    found = [invented(DIRECT, heads, effects=effects)]
    again = [invented(DIRECT, moved, effects=effects.flip(1))]  # in other places of the same layers
    other_order, other_effects = invented(DIRECT, moved[::-1], effects=effects), invented(DIRECT, moved)

    def passed(subject: Subject, results: list[StageResult]) -> list[bool]:
        return [row.passed for row in null_rows(base, found, subject, results)]

    assert passed(null, again) == [True, True, True]
    assert passed(other, found) == [False, True, True]
    assert passed(null, [other_order]) == [True, False, True]
    assert passed(null, [other_effects]) == [True, True, False]


# Plantings


def invented_planting(seed: int, common: int, covered: int) -> Planting:
    groups = {"value_fetcher": Overlap(3, 3, 3), "structure_reader": Overlap(3, 3, common)}
    alarms = (Alarm("structure_reader", "0.0", -0.2, -0.06),) * (3 - common)
    return Planting(seed, 0.5 + seed / 100, groups, Overlap(2, 2, 2), 100, alarms, {"direct": Coverage(covered, 50)})


def test_plantings_are_pooled_by_heads_and_tests():
    rows = by_claim(planting_rows([invented_planting(1, 3, 48), invented_planting(2, 2, 47)]))
    assert rows["precision"].value == rows["recall"].value == pytest.approx(11 / 12)
    assert "exact in 1 of 2" in rows["recall"].detail
    assert rows["false-alarm rate"].value == pytest.approx(1 / 200)
    assert "1 helping and 0 hurting of 200" in rows["false-alarm rate"].detail
    assert "effect of 1 is 0.05 or more" in rows["false-alarm rate"].detail
    assert rows["coverage: all"].value == pytest.approx(0.95)
    assert rows["coverage: all"].passed


def test_intervals_that_hold_the_truth_too_seldom_fail():
    rows = by_claim(planting_rows([invented_planting(1, 3, 40), invented_planting(2, 3, 40)]))
    assert not rows["coverage: direct"].passed


def test_an_interval_is_widened_by_what_the_other_mean_may_err():
    few = Interval(np.array([1.0, 1.0, 1.0]), np.array([0.0, 0.0, 0.0]), np.array([2.0, 2.0, 2.0]))
    many = np.array([2.9, 3.1, -0.99])
    assert holds(few, many, n_few=6, n_many=2).tolist() == [True, False, True]  # 1 +- 1 becomes 1 +- 2
    assert holds(few, many, n_few=1, n_many=10**9).tolist() == [False, False, False]


def test_widened_intervals_hold_the_mean_of_few_others_as_often_as_they_promise():
    draw = np.random.default_rng(0)
    rows, others = draw.standard_normal((1500, 140)), draw.standard_normal((1500, 210))
    bounds = mean_interval(rows, np.arange(140))
    share = holds(bounds, others.mean(1), 140, 210).mean()
    assert 0.93 <= share <= 0.965  # 0.95, standard error 0.006; without widening 0.87


def test_a_planting_is_tried_with_its_own_heads_and_prompts():
    other = another_planting("planted-base", 1, FEW)
    assert other.truth.circuit != planted("planted-base").truth.circuit
    assert not torch.equal(other.prompts["discovery"].clean, planted("planted-base").prompts["discovery"].clean)
    came = try_planting(other, 1, FEW)
    assert came.decoys_tested >= 66
    assert came.coverage["value_fetcher, planted"].n == 5
    assert came.coverage["position_transmitter, decoys"].n == 2
    assert came.groups["value_fetcher"].second == 3
    assert came.accuracy == evaluate_model(other.model, other.prompts["evaluation"]).accuracy.value


# The page and the command


def truth_of(*rows: Row) -> GroundTruth:
    comparison = Comparison("planted-base", "last", 6, 0.5, 1.0, 1.0)
    return GroundTruth(FEW, rows, (invented_planting(7, 2, 48),), (comparison,))


GOOD = Row("planted-base", "value_fetcher: precision", 1.0, "= 1.00", True)
BAD = Row("planted-base", "value_fetcher: recall", 0.5, "= 1.00", False, "missing: 8.6 | why")


def test_the_page_marks_and_lists_what_does_not_hold():
    page = render_page(truth_of(GOOD, BAD))
    assert "**1 of 2 claims hold.**" in page
    assert "| `planted-base` | **1.00 / 0.50** ✗ |" in page
    assert page.index("## What does not hold") < page.index("missing: 8.6 \\| why") < page.index("## Not covered")
    assert "3 structure_reader" in page
    assert "| 7 | structure_reader | 0.0 | -0.200 | -0.060 |" in page
    assert "| 7 | 0.570 |" in page
    assert "| `planted-base` | last | 6 | 0.50 | 1.00 | 1.00 |" in page


def test_every_table_of_the_page_has_as_many_cells_in_each_line():
    widths = {
        line.replace("\\|", "").count("|")
        for block in render_page(truth_of(GOOD, BAD)).split("\n\n")
        for line in block.splitlines()
        if line.startswith("|") and "| value |" in block.splitlines()[0]
    }
    assert len(widths) == 1


def run(monkeypatch, *arguments: object) -> int:
    """The exit code of `python -m validation ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["validation", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(("rows", "code"), [((GOOD,), 0), ((GOOD, BAD), 1)])
def test_the_command_ends_with_zero_only_if_every_claim_holds(monkeypatch, capsys, tmp_path, rows, code):
    monkeypatch.setattr(command, "check_ground_truth", lambda folder, n, monitor, share: truth_of(*rows))
    page, data = tmp_path / "page.md", tmp_path / "rows.json"
    assert run(monkeypatch, "ground-truth", "--out", page, "--json", data, "--plantings", 3) == code
    assert page.read_text().startswith("# Ground truth")
    assert [row["claim"] for row in json.loads(data.read_text())["rows"]] == [row.claim for row in rows]
    assert (
        "DOES NOT HOLD: planted-base, value_fetcher: recall: 0.5, expected = 1.00" in capsys.readouterr().out
    ) == code


def test_a_folder_that_is_missing_is_named_before_the_work(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, "ground-truth", "--out", tmp_path / "no" / "page.md") == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_negative_number_of_plantings_is_refused(tmp_path):
    with pytest.raises(InputError, match="0 or more; got -1"):
        check_ground_truth(tmp_path, -1)


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(InputError):
        check_ground_truth(tmp_path, 0, FEW, ["planted-nothing"])
