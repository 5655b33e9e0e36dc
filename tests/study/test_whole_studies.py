"""Whole studies of tiny models, every section: what comes, in 16 bits, too, and where groups are empty."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import circuitdiff.study.host
import circuitdiff.study.sections.discovery
from circuitdiff.methods.discovery import StageResult, stage_result
from circuitdiff.report import report_page
from circuitdiff.study.registry import read_results
from circuitdiff.study.runner import run_study
from helpers.tiny_folder import save_tiny_model, settings_of, silent


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def test_a_whole_study_fills_every_section_and_a_second_run_computes_nothing(model, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=1)
    small = {
        "minimality": "{prompts: 8}",
        "completeness": "{prompts: 4, random_parts: 2, greedy_steps: 1, greedy_candidates: 2, greedy_prompts: 4}",
        "ablations": "{}",
        "functions": "{desiderata: [position], train: 6, validation: 4, test: 4, steps: 6, check_every: 1,"
        " random_groups: 1, sweep: null, redraw: {times: 1, triples: 4}}",
        "cross_model": "{prompts: 4, random_groups: 2}",
        "graft": "{prompts: 4, random_groups: 2}",
        "knockout": "{prompts: 4, layer_step: 1}",
        "attention": "{prompts: 3}",
        "curves": "{prompts: 4, steps: 2}",
        "locate": "{prompts: 5, roles: [last, query_label]}",
        "overlap": "{prompts: 3}",
    }
    settings = settings_of(tmp_path, model, variants=f"{{second: {other}}}", **small)
    run_study(settings, tmp_path / "run", silent)
    results = read_results(tmp_path / "run")
    for part in (results.overlap, results.cross_model, results.graft, results.verdict):
        assert set(part) == {"second"}
    assert set(results.minimality) == set(results.ablations) == {model.name, "second"}
    assert (
        set(results.functions)
        == set(results.knockout)
        == set(results.attention)
        == set(results.curves)
        == set(results.locate)
        == {model.name, "second"}
    )
    assert all(set(models) == {model.name, "second"} for models in results.functions.values())
    answers = [sentence.answer for sentence in results.verdict["second"].sentences]
    assert set(answers) == {"not established"}  # nine scenarios establish nothing
    page = report_page(results)
    for heading in ("Verdict", "Is it the same circuit?", "What caused the gain?", "What each group encodes"):
        assert f">{heading}</h2>" in page
    for row in re.findall(r'href="#(table-[^"]+)"', page):
        assert f'id="{row}"' in page  # every sentence leads to its numbers
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    (tmp_path / "run" / "finished.json").unlink()
    run_study(settings, tmp_path / "run", silent)  # no unit runs again
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_without_a_circuit_the_rest_is_measured_and_judged(model, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=1)
    plans = "{main: {stages: [{name: none, at: last, select: {minimum: 1.0e+9}}]}}"
    knockout = "{roles: [last, query_label], prompts: 4, layer_step: 2}"
    settings = settings_of(
        tmp_path, model, variants=f"{{second: {other}}}", plans=plans, knockout=knockout, attention="{}"
    )
    run_study(settings, tmp_path / "run", silent)
    results = read_results(tmp_path / "run")
    assert "has no heads" in " ".join(results.warnings)
    assert set(results.knockout) == {model.name, "second"}
    assert results.attention == {}
    accuracies = [results.accuracy[name].accuracy.value for name in ("second", model.name)]
    verdict = results.verdict["second"]
    assert verdict.behaviour.accuracy.value == pytest.approx(accuracies[0] - accuracies[1])
    off = ("same_function", "improved_part", "cause_layers", "visible_part")
    assert [each.claim for each in verdict.sentences if each.answer == "not asked"] == list(off)
    assert {each.answer for each in verdict.sentences if each.claim not in off} == {"not established"}


def test_groups_of_one_head_and_of_none_go_through_every_section(model, tmp_path, monkeypatch):
    discovery = circuitdiff.study.sections.discovery
    family_results = discovery.family_results

    def mute(result: StageResult) -> StageResult:
        nothing = replace(result.found, per_prompt=0 * result.found.per_prompt)
        return stage_result(result.stage, result.receivers or None, nothing, result.replication and nothing)

    async def none_in_mute(study: object, model: str, *rest: object) -> list[StageResult]:
        found = await family_results(study, model, *rest)
        return [mute(each) for each in found] if model == "mute" else found

    monkeypatch.setattr(discovery, "family_results", none_in_mute)
    folders = {name: save_tiny_model(tmp_path / name, seed) for seed, name in enumerate(("second", "mute"), start=1)}
    variants = f"{{second: {folders['second']}, mute: {folders['mute']}}}"
    stages = """
  main:
    stages:
      - {name: alone, at: last, select: {top: 1}}
      - {name: empty, at: last, via: q, receivers_from: alone, select: {minimum: 1.0e+9}}
      - {name: skipped, at: query_label, via: v, receivers_from: empty}"""
    small = {
        "minimality": "{prompts: 8}",
        "completeness": "{prompts: 4, random_parts: 2, greedy_steps: 1, greedy_candidates: 2, greedy_prompts: 4}",
        "ablations": "{}",
        "functions": "{desiderata: [position], train: 6, validation: 4, test: 4, steps: 6, check_every: 1,"
        " random_groups: 1, redraw: {times: 1, triples: 4}}",
        "cross_model": "{prompts: 4, random_groups: 2}",
        "graft": "{prompts: 4, random_groups: 2}",
        "knockout": "{prompts: 4, layer_step: 2}",
        "attention": "{}",
        "curves": "{prompts: 4}",
        "locate": "{prompts: 4, layer_step: 2}",
        "overlap": "{prompts: 3}",
    }
    run_study(settings_of(tmp_path, model, variants=variants, plans=stages, **small), tmp_path / "run", silent)
    results = read_results(tmp_path / "run")
    nothing = results.discovery.pop("mute")
    assert {name: group.heads for name, group in nothing.groups.items()} == {"alone": ()}
    assert nothing.gaps[1] == "stage empty was not run: alone has no heads to patch into"
    assert results.overlap["mute"].not_run == ("empty",)
    for found in results.discovery.values():
        assert {name: len(group.heads) for name, group in found.groups.items()} == {"alone": 1, "empty": 0}
        assert found.gaps == (
            "no heads at stage empty; use more prompts or a rule that is less strict",
            "stage skipped was not run: empty has no heads to patch into",
        )
    sections = ("minimality", "completeness", "ablations", "functions", "cross_model", "graft", "knockout", "overlap")
    assert all(
        getattr(results, section) for section in (*sections, "attention", "curves", "locate", "faithfulness", "verdict")
    )
    assert results.overlap["second"].not_run == ()
    assert "stage skipped was not run" in report_page(read_results(tmp_path / "run"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_study_in_16_bits_passes_its_own_checks(model, tmp_path, dtype):
    tuned = save_tiny_model(tmp_path / "tuned", seed=1)
    sections = {
        "completeness": "{prompts: 4, random_parts: 1, greedy_steps: 0}",
        "functions": "{desiderata: [position], train: 4, validation: 3, test: 4, steps: 6, sweep: false,"
        " redraw: {times: 0}}",
        "cross_model": "{prompts: 4, random_groups: 2}",
        "graft": "{prompts: 4, random_groups: 1}",
        "knockout": "{prompts: 4}",
        "attention": "{prompts: 5}",
        "curves": "{prompts: 4, steps: 1}",
        "locate": "{prompts: 4, metric: log_prob}",
        "overlap": "{prompts: 3}",
    }
    settings = settings_of(tmp_path, model, dtype=dtype, variants=f"{{tuned: {tuned}}}", **sections)
    run_study(settings, tmp_path / "run", silent)
    results = read_results(tmp_path / "run")
    assert all(check.passed for check in results.checks)
    sections = (
        "faithfulness",
        "functions",
        "cross_model",
        "graft",
        "knockout",
        "attention",
        "curves",
        "locate",
        "verdict",
    )
    assert all(getattr(results, section) for section in sections)
