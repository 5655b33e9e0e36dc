"""The self-checks at load pass on a sound model, and each fails when what it guards is broken."""

from __future__ import annotations

import copy

import pytest
import torch

from circuitdiff.engine import attention
from circuitdiff.engine.full import _put
from circuitdiff.engine.window import FrozenRun
from circuitdiff.models import checks
from circuitdiff.models.checks import CheckError, checks_at_load, refuse_failures
from helpers.tiny_models import ARCHITECTURES, as_model, subject


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sound_model_passes_every_check(architecture):
    found = checks_at_load(subject(architecture).model)
    refuse_failures(found)
    assert len({check.name for check in found}) == len(found) == 8


def failing(model) -> set[str]:
    found = checks_at_load(model)
    with pytest.raises(CheckError, match=f"self-check failed for {model.name}") as refusal:
        refuse_failures(found)
    assert "\n" not in str(refusal.value)
    failed = {check.name for check in found if not check.passed}
    assert all(name in str(refusal.value) for name in failed)
    return failed


def test_an_attention_a_thousandth_too_large_is_noticed(monkeypatch):
    own = attention.attend
    token = attention._handler.set(lambda call: own(call) * 1.001)
    try:
        assert "same logits as own attention" in failing(subject("llama").model)
    finally:
        attention._handler.reset(token)


def test_an_edit_of_the_wrong_head_is_noticed(monkeypatch):
    def put(x, edit):
        return _put(x.roll(1, dims=1), edit).roll(-1, dims=1)

    monkeypatch.setattr("circuitdiff.engine.full._put", put)
    assert "an edit that changes nothing" in failing(subject("llama").model)


@pytest.mark.parametrize("what", ["z", "q", "k", "v"])
def test_an_edit_that_is_not_carried_out_is_noticed(monkeypatch, what):
    monkeypatch.setattr("circuitdiff.engine.full._put", lambda x, edit: x if edit.what == what else _put(x, edit))
    expected = {f"an edit of {what} changes the logits", "window executor vs full executor"}
    assert failing(subject("gemma2").model) == expected


def test_a_window_executor_that_leaves_a_layer_out_is_noticed_without_any_study(monkeypatch):
    advance = FrozenRun._advance
    monkeypatch.setattr(FrozenRun, "_advance", lambda run, layer: None if layer == 3 else advance(run, layer))
    assert failing(subject("llama").model) == {"window executor vs full executor"}


def test_an_output_projection_in_which_heads_do_not_add_up_is_noticed():
    module = copy.deepcopy(subject("qwen2").model.module)
    model = as_model("qwen2", module)
    hooks = [p.register_forward_hook(lambda _, __, out: out + 0.01 * out**2) for p in model.projections]
    assert "heads add up at the output projection" in failing(model)
    for hook in hooks:
        hook.remove()


def test_the_model_gets_our_attention_back_after_it_was_compared_with_its_own():
    model = subject("llama").model
    checks_at_load(model)
    assert model.module.config._attn_implementation == attention.IMPLEMENTATION


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 0.0625), (torch.float16, 3e-2)],
)
def test_the_tolerance_follows_the_precision(dtype, tolerance):
    assert checks.tolerance_of(dtype) == tolerance


def test_only_scores_of_thousands_loosen_what_executors_may_differ_by():
    """eps x |q| |k| / sqrt(d_head): float32's steps at a score."""

    def allowed(dtype, bias=0.0):
        module = copy.deepcopy(subject("qwen2").model.module).to(dtype)
        for layer in module.model.layers:
            layer.self_attn.k_proj.bias += bias
        (check,) = (c for c in checks_at_load(as_model("m", module)) if c.name == "window executor vs full executor")
        assert check.passed
        return check.tolerance

    assert allowed(torch.float32) == 1e-4
    assert 1e-4 < allowed(torch.float32, bias=300.0) < allowed(torch.float32, bias=1e5) == 1e-3
    assert allowed(torch.float64, bias=300.0) == 1e-10
