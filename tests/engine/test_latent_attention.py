"""Queries and keys that are wider than values (MLA): every kind of run against the looped definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circuitdiff.engine import Ablation, Edit, FullExecutor, Site, WindowExecutor
from circuitdiff.engine.capture import read_heads
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import (
    D_HEAD,
    D_QUERY,
    LAST,
    LENGTH,
    N_HEADS,
    N_LAYERS,
    N_VARIANTS,
    Draw,
    assert_same,
    batch_of,
    everything,
    random_tokens,
    subject,
)

EXECUTORS = [pytest.param(FullExecutor(), id="full"), pytest.param(WindowExecutor(), id="window")]


def edits(draw: Draw) -> list[Edit]:
    return [
        draw.edit(1, "q", 7, [4, 1], [1, 0], width=D_QUERY),
        draw.edit(1, "k", 8, [1], [0, 2], width=D_QUERY),
        draw.edit(1, "v", 8, [4, 0], [2, 1]),
        draw.edit(2, "k", 10, [0, 3], [3], read_at=11, width=D_QUERY, kept=True),
        draw.edit(2, "v", 10, [0], [3], read_at=11),
        draw.edit(3, "z", 9, [5, 0], [4], kept=True),
    ]


def senders(draw: Draw) -> list[Edit]:
    return [draw.edit(1, "z", LAST, [0, 3], [0, 2]), draw.edit(0, "z", LAST, [4], [1, 3, 4])]


@pytest.mark.parametrize("executor", EXECUTORS)
@torch.no_grad()
def test_edits_of_all_that_a_head_carries_agree_with_the_looped_definition(executor):
    chosen, tokens = subject("deepseek_v3"), random_tokens()
    expected = chosen.reference.run(tokens, edits(Draw()), N_VARIANTS)
    assert_same(executor.run(batch_of(chosen, tokens), edits(Draw()), N_VARIANTS, everything), expected)


@pytest.mark.parametrize("executor", EXECUTORS)
@torch.no_grad()
def test_frozen_runs_and_what_receivers_receive_agree_with_the_looped_definition(executor):
    chosen, tokens = subject("deepseek_v3"), random_tokens()
    expected = chosen.reference.frozen(tokens, senders(Draw()), N_VARIANTS, LAST)
    batch = batch_of(chosen, tokens, start=LAST)
    assert_same(executor.frozen(batch, senders(Draw()), N_VARIANTS, LAST, everything), expected)
    sites = [Site(2, what, LAST, torch.tensor([1, 5])) for what in ("q", "k", "v")]
    for site in sites:
        expected = chosen.reference.path_patched(tokens, senders(Draw()), N_VARIANTS, LAST, [site], None)
        received = executor.received(batch, senders(Draw()), N_VARIANTS, LAST, [site])
        assert_same(executor.run(batch, received, N_VARIANTS, everything), expected)


@pytest.mark.parametrize("executor", EXECUTORS)
@torch.no_grad()
def test_circuits_alone_agree_with_the_looped_definition(executor):
    chosen, tokens = subject("deepseek_v3"), random_tokens()
    kept = torch.rand(3, N_LAYERS, 3, N_HEADS, generator=torch.Generator().manual_seed(6)) < 0.5
    ablation = Ablation((6, 9, LAST), kept, Draw(5).normal(N_LAYERS, 1, LENGTH, N_HEADS, D_HEAD))
    expected = chosen.reference.ablated(tokens, ablation.positions, ablation.kept, ablation.constants)
    assert_same(executor.ablated(batch_of(chosen, tokens), ablation, everything), expected)


@torch.no_grad()
def test_what_heads_carry_is_read_in_its_own_width():
    model, prompts = subject("deepseek_v3").model, fake_pairs().clean_prompts
    found, _ = read_heads(model, prompts, ["q", "k", "v", "z"], {"last": {1: [0, 2], 3: [5]}})
    widths = {what: {layer: carried.shape[-1] for layer, carried in of["last"].items()} for what, of in found.items()}
    wide, narrow = {1: D_QUERY, 3: D_QUERY}, {1: D_HEAD, 3: D_HEAD}
    assert widths == {"q": wide, "k": wide, "v": narrow, "z": narrow}
    assert isinstance(found["q"]["last"][1], Tensor)
