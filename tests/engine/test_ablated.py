"""A circuit alone, everything else constant: both executors against the looped definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circuitdiff.engine import Ablation, FullExecutor, WindowExecutor
from circuitdiff.engine.constant_tokens import ConstantTokens
from helpers.tiny_models import (
    ARCHITECTURES,
    D_HEAD,
    D_VOCAB,
    LENGTH,
    N_HEADS,
    N_LAYERS,
    N_PROMPTS,
    N_VARIANTS,
    Draw,
    assert_same,
    batch_of,
    everything,
    random_tokens,
    subject,
)

POSITIONS = (6, 9, 12)


def constants(n_prompts: int, length: int = LENGTH) -> Tensor:
    return Draw(5).normal(N_LAYERS, n_prompts, length, N_HEADS, D_HEAD)


def circuits(n_positions: int = len(POSITIONS), n_variants: int = N_VARIANTS) -> Tensor:
    g = torch.Generator().manual_seed(6)
    return torch.rand(n_variants, N_LAYERS, n_positions, N_HEADS, generator=g) < 0.5


def assert_agrees(chosen, tokens, ablation: Ablation) -> Tensor:
    expected = chosen.reference.ablated(tokens, ablation.positions, ablation.kept, ablation.constants)
    for executor in (FullExecutor(), WindowExecutor()):
        assert_same(executor.ablated(batch_of(chosen, tokens), ablation, everything), expected)
    return expected


@pytest.mark.parametrize("shared", [True, False], ids=["shared_constants", "constants_per_prompt"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_both_executors_agree_with_the_looped_definition(architecture, shared):
    kept = circuits()[:3]
    ablation = Ablation(POSITIONS, kept, constants(1 if shared else N_PROMPTS))
    values = assert_agrees(subject(architecture), random_tokens(), ablation)
    assert (values[0] - values[1:]).abs().amax(dim=(1, 2)).min() > 1e-4, "circuits must differ"


@torch.no_grad()
def test_circuits_that_differ_only_late_agree_with_the_looped_definition():
    kept = circuits()
    kept[:, :2] = kept[0, :2]
    assert_agrees(subject("mistral"), random_tokens(), Ablation(POSITIONS, kept, constants(1)))


@torch.no_grad()
def test_circuits_that_differ_in_one_layer_agree_with_the_looped_definition():
    kept = circuits(n_variants=1).repeat(3, 1, 1, 1)
    kept[1, 1, 0, 2] ^= True
    kept[2, 1, 2, 5] ^= True
    values = assert_agrees(subject("llama"), random_tokens(), Ablation(POSITIONS, kept, constants(1)))
    assert (values[0] - values[1:]).abs().amax(dim=(1, 2)).min() > 1e-4, "circuits must differ"


@torch.no_grad()
def test_the_same_circuit_many_times_and_once_are_the_same():
    kept = circuits(n_variants=1)
    chosen, tokens = subject("qwen2"), random_tokens()
    once = assert_agrees(chosen, tokens, Ablation(POSITIONS, kept, constants(1)))
    many = WindowExecutor().ablated(
        batch_of(chosen, tokens), Ablation(POSITIONS, kept.expand(4, -1, -1, -1), constants(1)), everything
    )
    assert_same(many, once.expand(4, -1, -1))


@pytest.mark.parametrize("kept", [False, True], ids=["nothing", "everything"])
@torch.no_grad()
def test_keeping_nothing_or_everything_agrees_with_the_looped_definition(kept):
    chosen, tokens = subject("gemma2"), random_tokens()
    whole = torch.full((2, N_LAYERS, len(POSITIONS), N_HEADS), kept)
    assert_agrees(chosen, tokens, Ablation(POSITIONS, whole, constants(N_PROMPTS)))


@torch.no_grad()
def test_keeping_every_head_at_every_position_is_the_clean_run():
    chosen, tokens = subject("llama"), random_tokens()
    whole = torch.ones(1, N_LAYERS, LENGTH, N_HEADS, dtype=torch.bool)
    values = assert_agrees(chosen, tokens, Ablation(tuple(range(LENGTH)), whole, constants(1)))
    assert_same(values[0], chosen.reference.logits(tokens))


@torch.no_grad()
def test_the_last_position_alone_agrees_with_the_looped_definition():
    assert_agrees(subject("gemma3"), random_tokens(), Ablation((12,), circuits(1), constants(1)))


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_as_many_prompts_as_positions_are_not_cut_along_the_wrong_axis(shared):
    tokens = random_tokens(n_prompts=7, length=7)
    ablation = Ablation((2, 6), circuits(2, 2), constants(1 if shared else 7, length=7))
    assert_agrees(subject("smollm3"), tokens, ablation)


@torch.no_grad()
def test_prompts_that_share_tokens_share_what_is_constant(monkeypatch):
    monkeypatch.setattr("circuitdiff.engine.constant_tokens.ROWS", 6 + 4 * 3)  # so many run at once, never fewer
    chosen, tokens = subject("llama"), random_tokens()
    tokens[:, :6] = tokens[0, :6]  # six columns in common; four, 7 8 10 11, in which the three prompts differ
    tokens[:, 6:] = (tokens[0, 6:] + torch.tensor([0, 1, 2])[:, None]) % D_VOCAB
    rows = []
    hook = chosen.model.layers[0].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    ablation = Ablation(POSITIONS, circuits(), constants(1))
    values = WindowExecutor().ablated(batch_of(chosen, tokens), ablation, everything)
    hook.remove()
    assert rows.count(6 + 4 * 3) == 1
    assert_same(values, chosen.reference.ablated(tokens, POSITIONS, ablation.kept, ablation.constants))


@torch.no_grad()
def test_circuits_run_in_parts_give_what_they_give_together(monkeypatch):
    chosen, tokens = subject("llama"), random_tokens()
    ablation = Ablation(POSITIONS, circuits(), constants(N_PROMPTS))
    whole = WindowExecutor().ablated(batch_of(chosen, tokens), ablation, everything)
    monkeypatch.setattr("circuitdiff.engine.window_ablation.rows_at_once", lambda *_: 2 * N_PROMPTS * len(POSITIONS))
    assert_same(WindowExecutor().ablated(batch_of(chosen, tokens), ablation, everything), whole)


@pytest.mark.parametrize("architecture", ["gpt_neox", "qwen3", "opt"])
@torch.no_grad()
def test_circuits_that_begin_at_different_positions_and_layers_agree_with_the_looped_definition(architecture):
    kept = circuits(n_variants=1).repeat(6, 1, 1, 1)
    for variant, place in enumerate([(3, 2, 5), (1, 2, 0), (2, 1, 4), (0, 1, 1), (2, 0, 3)]):  # layer, position, head
        kept[(variant, *place)] ^= True
    kept[1, 3, 2, 1] ^= True
    kept[3, 2, 2, 2] ^= True  # begins at the middle position, and differs at the last one, too
    values = assert_agrees(subject(architecture), random_tokens(), Ablation(POSITIONS, kept, constants(N_PROMPTS)))
    assert (values[5] - values[:5]).abs().amax(dim=(1, 2)).min() > 1e-6, "every branch must differ from the trunk"


@torch.no_grad()
def test_a_branch_at_the_last_position_runs_one_token_from_its_first_layer_on():
    chosen, tokens, rows = subject("llama"), random_tokens(), []
    kept = circuits(n_variants=1).repeat(3, 1, 1, 1)
    kept[0, 2, 2, 1] ^= True
    layers = chosen.model.layers
    hooks = [
        layers[i].register_forward_pre_hook(lambda _, args, i=i: rows.append((i, args[0].shape[1]))) for i in (1, 2)
    ]
    WindowExecutor().ablated(batch_of(chosen, tokens), Ablation(POSITIONS, kept, constants(1)), everything)
    for hook in hooks:
        hook.remove()
    assert (2, 1) in rows[-4:]
    widths = [[width for layer, width in rows if layer == i] for i in (1, 2)]
    assert len(widths[1]) == len(widths[0]) + 1, "the branch joins at layer 2"


@torch.no_grad()
def test_what_is_remembered_serves_other_prompts_and_other_positions():
    chosen, shared = subject("mistral"), constants(1)
    remembered = ConstantTokens(chosen.model, shared)
    for seed, positions in [(1, POSITIONS), (1, (3, 12)), (2, POSITIONS), (1, (3, 12))]:
        tokens, kept = random_tokens(seed=seed), circuits(len(positions))
        values = WindowExecutor().ablated(
            batch_of(chosen, tokens), Ablation(positions, kept, shared, remembered), everything
        )
        assert_same(values, chosen.reference.ablated(tokens, positions, kept, shared))


@torch.no_grad()
def test_a_memory_too_small_to_remember_anything_changes_no_number():
    chosen, shared = subject("llama"), constants(1)
    remembered = ConstantTokens(chosen.model, shared, memory_gb=1e-9)
    for seed in (1, 2):
        tokens, kept = random_tokens(seed=seed), circuits()
        ablation = Ablation(POSITIONS, kept, shared, remembered, memory_gb=1e-9)
        values = WindowExecutor().ablated(batch_of(chosen, tokens), ablation, everything)
        assert_same(values, chosen.reference.ablated(tokens, POSITIONS, kept, shared))


def test_what_was_remembered_for_other_constants_is_refused():
    chosen = subject("llama")
    with pytest.raises(AssertionError, match="remembered for other constants"):
        Ablation(POSITIONS, circuits(), constants(1), ConstantTokens(chosen.model, constants(1)))
