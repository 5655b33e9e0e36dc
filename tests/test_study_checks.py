"""The study's self-checks pass on a sound model and fail on a broken one."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch

import circuitdiff.study_checks
from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine.frozen import FrozenRun
from circuitdiff.engine.model import Model
from circuitdiff.engine.window import WindowExecutor
from circuitdiff.evaluation import mean_activations
from circuitdiff.methods.discovery import Stage, StageResult, choose
from circuitdiff.methods.path_patching import path_effects
from circuitdiff.models.checks import CheckError, refuse_failures
from circuitdiff.stats.selection import TopK
from circuitdiff.study_checks import check_ablation, check_batching, check_noise, check_same_shape, check_stage
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import subject

CIRCUIT = Circuit({"g": Group("last", (Head(1, 2), Head(2, 0))), "r": Group("query_label", (Head(0, 5),))})
RECEIVERS = [Head(3, 0), Head(2, 1)]


def sweep(via=None) -> StageResult:
    pairs = fake_pairs()
    stage = Stage("s", "last", TopK(3), via, None if via is None else "r")
    receivers = None if via is None else RECEIVERS
    found = path_effects(subject("llama").model, pairs, "last", receivers, via)
    return StageResult(stage, tuple(receivers or ()), found, None, choose(stage, found, None))


@pytest.mark.parametrize("via", [None, "q"])
def test_a_sweep_of_a_sound_executor_passes(via):
    check = check_stage(subject("llama").model, sweep(via), fake_pairs(), "logit_difference")
    assert check.passed
    assert check.value < 1e-8


def test_where_no_head_has_an_effect_the_executors_need_not_agree_on_noise(monkeypatch):
    found = replace(sweep().found, noise_floor=1e-6)
    silent = replace(found, per_prompt=found.per_prompt * 0)
    off_by = {"window": 1e-5, "full": 0.0}
    monkeypatch.setattr(
        circuitdiff.study_checks,
        "path_effects",
        lambda *_, executor: replace(silent, per_prompt=silent.per_prompt + off_by[executor]),
    )
    model, pairs = subject("llama").model, fake_pairs()
    check = check_stage(model, replace(sweep(), found=silent), pairs, "logit_difference")
    assert check.value == pytest.approx(0.0005)
    off_by["window"] = float(found.effects.abs().max()) / 100  # noise, beside an effect that is heard, is not let pass
    assert not check_stage(model, replace(sweep(), found=found), pairs, "logit_difference").passed


@pytest.mark.parametrize(("steps", "passes"), [(1.9, True), (2.1, False)])
def test_the_executors_need_not_agree_below_the_noise_floor(monkeypatch, steps, passes):
    """As in 16 bits, where one step between two logits is a large part of an effect."""
    found = sweep().found
    coarse = replace(found, noise_floor=float(found.effects.abs().max()) / 3)
    off_by = {"window": steps * coarse.noise_floor, "full": 0.0}
    monkeypatch.setattr(
        circuitdiff.study_checks,
        "path_effects",
        lambda *_, executor: replace(coarse, per_prompt=coarse.per_prompt + off_by[executor]),
    )
    check = check_stage(subject("llama").model, replace(sweep(), found=coarse), fake_pairs(), "logit_difference")
    assert check.passed == passes


def test_a_second_run_that_is_a_little_off_fails(monkeypatch):
    result, right = sweep("q"), WindowExecutor.run
    monkeypatch.setattr(WindowExecutor, "run", lambda *args: right(*args) + 0.01)
    check = check_stage(subject("llama").model, result, fake_pairs(), "logit_difference")
    assert not check.passed
    with pytest.raises(CheckError, match="window executor vs full executor"):
        refuse_failures([check])


def test_a_frozen_run_that_skips_a_layer_fails(monkeypatch):
    result, advance = sweep(), FrozenRun._advance
    monkeypatch.setattr(FrozenRun, "_advance", lambda run, layer: None if layer == 2 else advance(run, layer))
    assert not check_stage(subject("llama").model, result, fake_pairs(), "logit_difference").passed


def test_circuits_alone_pass_and_a_wrong_mean_fails(monkeypatch):
    model, pairs = subject("llama").model, fake_pairs()
    means = mean_activations(model, pairs)
    assert check_ablation(model, [CIRCUIT], pairs, means).passed
    right = WindowExecutor.ablated

    def shifted(executor, batch, ablation, readout):
        wrong = dataclasses.replace(ablation, constants=ablation.constants + 0.1, remembered=None)
        return right(executor, batch, wrong, readout)

    monkeypatch.setattr(WindowExecutor, "ablated", shifted)
    assert not check_ablation(model, [CIRCUIT], pairs, means).passed


def test_buckets_and_padded_batches_pass_and_a_forward_that_depends_on_the_batch_fails(monkeypatch):
    model, pairs = subject("qwen2").model, fake_pairs()
    assert all(check.passed for check in check_batching(model, pairs))
    right = Model.forward
    monkeypatch.setattr(Model, "forward", lambda self, tokens: right(self, tokens) * (1 + 0.01 * (len(tokens) > 1)))
    assert [check.passed for check in check_batching(model, pairs)] == [False, True]
    monkeypatch.setattr(Model, "forward", lambda self, tokens: right(self, tokens) * 1.01)
    assert [check.passed for check in check_batching(model, pairs)] == [True, False]


def test_a_variant_with_other_tokens_or_another_shape_is_named():
    base, pairs = subject("llama").model, fake_pairs()
    assert check_same_shape(base, subject("mistral").model, pairs, pairs).passed
    other = fake_pairs()
    other.clean[0, 0] += 1
    assert "another tokenizer output" in check_same_shape(base, base, pairs, other).detail
    gpt2 = check_same_shape(base, subject("gpt2").model, pairs, pairs)
    assert not gpt2.passed
    assert gpt2.detail == "key/value heads 6 instead of 2"


def test_a_choice_below_the_noise_floor_fails():
    result = sweep()
    assert check_noise(subject("llama").model, result).passed
    loud = dataclasses.replace(result, found=dataclasses.replace(result.found, noise_floor=1e3))
    assert not check_noise(subject("llama").model, loud).passed


def test_without_any_choice_the_noise_check_passes():
    result = sweep()
    none = dataclasses.replace(result, selection=dataclasses.replace(result.selection, helping=(), hurting=()))
    assert check_noise(subject("llama").model, none).passed


def test_the_checks_leave_the_models_attention_as_it_was():
    model, pairs = subject("llama").model, fake_pairs()
    before = model.forward(pairs.clean[:1, :9])
    check_batching(model, pairs)
    assert torch.equal(model.forward(pairs.clean[:1, :9]), before)
