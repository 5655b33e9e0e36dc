"""Self-checks on a study's prompts pass on a sound model and fail on a broken one."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch

import circuitdiff.study.checks
from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine.model import Model
from circuitdiff.engine.window import FrozenRun, WindowExecutor
from circuitdiff.methods.discovery import Stage, StageResult, stage_result
from circuitdiff.methods.path_patching import path_effects
from circuitdiff.stats.selection import TopK
from circuitdiff.study.checks import batching, executors_on_circuits, executors_on_path
from circuitdiff.study.common_units import slot_means
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.units import Needed
from helpers.fake_pairs import fake_pairs
from helpers.given_model import GivenModel
from helpers.tiny_models import subject

CIRCUIT = Circuit({"g": Group("last", (Head(1, 2), Head(2, 0))), "r": Group("query_label", (Head(0, 5),))})
RECEIVERS = [Head(3, 0), Head(2, 1)]


def sweep(via=None) -> StageResult:
    pairs = fake_pairs()
    stage = Stage("s", "last", TopK(3), via, None if via is None else "r")
    receivers = None if via is None else RECEIVERS
    found = path_effects(subject("llama").model, pairs, "last", receivers, via)
    return stage_result(stage, None if receivers is None else tuple(receivers), found)


def checked(result: StageResult) -> tuple[float, bool]:
    """What check 3 of a sweep measured, and whether it passes."""
    value, allowed = executors_on_path(
        GivenModel(subject("llama").model, fake_pairs()),
        prompts=PromptsOf("discovery", first=2),
        stage=result.stage,
        receivers=result.receivers,
        strongest=tuple(result.selection.helping[:1]),
        largest=float(result.found.effects.nan_to_num().abs().max()),
        noise_floor=result.found.noise_floor,
        metric="logit_difference",
    )
    return value, value <= allowed


@pytest.mark.parametrize("via", [None, "q"])
def test_a_sweep_of_a_sound_executor_passes(via):
    value, passed = checked(sweep(via))
    assert passed
    assert value < 1e-8


def test_where_no_head_has_an_effect_the_executors_need_not_agree_on_noise(monkeypatch):
    found = replace(sweep().found, noise_floor=1e-6)
    silent = replace(found, per_prompt=found.per_prompt * 0)
    off_by = {"window": 1e-5, "full": 0.0}
    monkeypatch.setattr(
        circuitdiff.study.checks,
        "path_effects",
        lambda *_, executor: replace(silent, per_prompt=silent.per_prompt + off_by[executor]),
    )
    result = sweep()
    assert checked(replace(result, found=silent))[0] == pytest.approx(0.0005)
    off_by["window"] = float(found.effects.abs().max()) / 100  # noise, beside an effect that is heard, is not let pass
    assert not checked(replace(result, found=found))[1]


@pytest.mark.parametrize("largest", [0.0008, 0.003, 0.03, 3.0])
def test_where_no_effect_matters_the_executors_need_not_agree_to_a_part_of_it(monkeypatch, largest):
    """At a stage of a planted model no head mattered; float32 was off by 2.7e-5 logits, its floor being 5.8e-6."""
    result = sweep()
    effects = result.found.per_prompt / result.found.effects.abs().max() * largest

    def off_by(error: float, noise_floor: float = 1e-9) -> bool:
        small = replace(result.found, per_prompt=effects, noise_floor=noise_floor)
        wrong = {"window": error, "full": 0.0}
        monkeypatch.setattr(
            circuitdiff.study.checks,
            "path_effects",
            lambda *_, executor: replace(small, per_prompt=small.per_prompt + wrong[executor]),
        )
        return checked(replace(result, found=small))[1]

    assert off_by(7e-6)
    assert off_by(2.7e-5, noise_floor=5.8e-6)
    assert not off_by(1.3e-4 + 1.1e-3 * largest, noise_floor=5.8e-6)
    assert not off_by(1.1e-3 * max(largest, 0.02)), "what matters, or a thousandth of what is heard, is not let pass"


@pytest.mark.parametrize(("steps", "passes"), [(1.9, True), (2.1, False)])
def test_the_executors_need_not_agree_below_the_noise_floor(monkeypatch, steps, passes):
    """As in 16 bits, where one step between two logits is a large part of an effect."""
    result = sweep()
    found = result.found
    coarse = replace(found, noise_floor=float(found.effects.abs().max()) / 3)
    off_by = {"window": steps * coarse.noise_floor, "full": 0.0}
    monkeypatch.setattr(
        circuitdiff.study.checks,
        "path_effects",
        lambda *_, executor: replace(coarse, per_prompt=coarse.per_prompt + off_by[executor]),
    )
    assert checked(replace(result, found=coarse))[1] == passes


def test_a_second_run_that_is_a_little_off_fails(monkeypatch):
    result, right = sweep("q"), WindowExecutor.run
    monkeypatch.setattr(WindowExecutor, "run", lambda *args: right(*args) + 0.01)
    assert not checked(result)[1]


def test_a_frozen_run_that_skips_a_layer_fails(monkeypatch):
    result, advance = sweep(), FrozenRun._advance
    monkeypatch.setattr(FrozenRun, "_advance", lambda run, layer: None if layer == 2 else advance(run, layer))
    assert not checked(result)[1]


def test_circuits_alone_pass_and_a_wrong_mean_fails(monkeypatch):
    model, pairs = subject("llama").model, fake_pairs()
    given = GivenModel(model, pairs)
    means = Needed("means", slot_means(given, prompts=PromptsOf("means")))

    def passes() -> bool:
        few = PromptsOf("evaluation", first=2)
        value, allowed = executors_on_circuits(given, prompts=few, circuits=(CIRCUIT,), means=means, by="slot")
        return value <= allowed

    assert passes()
    right = WindowExecutor.ablated

    def shifted(executor, batch, ablation, readout):
        wrong = dataclasses.replace(ablation, constants=ablation.constants + 0.1, remembered=None)
        return right(executor, batch, wrong, readout)

    monkeypatch.setattr(WindowExecutor, "ablated", shifted)
    assert not passes()


def test_buckets_and_padded_batches_pass_and_a_forward_that_depends_on_the_batch_fails(monkeypatch):
    given = GivenModel(subject("qwen2").model, fake_pairs())

    def passing() -> list[bool]:
        worst = batching(given, prompts=PromptsOf("evaluation"))
        return [worst[name] <= worst["allowed"] for name in ("together", "padded")]

    assert passing() == [True, True]
    right = Model.forward
    monkeypatch.setattr(Model, "forward", lambda self, tokens: right(self, tokens) * (1 + 0.01 * (len(tokens) > 1)))
    assert passing() == [False, True]
    monkeypatch.setattr(Model, "forward", lambda self, tokens: right(self, tokens) * 1.01)
    assert passing() == [True, False]


def test_the_checks_leave_the_models_attention_as_it_was():
    model, pairs = subject("llama").model, fake_pairs()
    before = model.forward(pairs.clean[:1, :9])
    batching(GivenModel(model, pairs), prompts=PromptsOf("evaluation"))
    assert torch.equal(model.forward(pairs.clean[:1, :9]), before)
