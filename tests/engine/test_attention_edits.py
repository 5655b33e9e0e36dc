"""Knockouts, patterns and contributions: both executors do what the looped definition does."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.engine import Edit, FullExecutor, Knockout, WindowExecutor
from circuitdiff.engine.attention import edited_output
from circuitdiff.errors import InputError
from helpers.tiny_models import (
    ARCHITECTURES,
    LENGTH,
    N_HEADS,
    N_PROMPTS,
    N_VARIANTS,
    Draw,
    assert_same,
    batch_of,
    everything,
    random_tokens,
    subject,
)

ALL = torch.arange(N_HEADS)


def knockout(layer: int, at: int, keys: list[list[int]], variants: list[int], heads: list[int] | None = None):
    """`keys`: for each prompt, or one list for all."""
    blocked = torch.zeros(1, len(keys), LENGTH, dtype=torch.bool)
    for prompt, mine in enumerate(keys):
        blocked[0, prompt, mine] = True
    return Knockout(layer, at, ALL if heads is None else torch.tensor(heads), torch.tensor(variants), blocked)


def pattern(draw: Draw, layer: int, at: int, heads: list[int], variants: list[int], *, kept: bool = False) -> Edit:
    weights = draw.normal(len(variants), N_PROMPTS, len(heads), LENGTH).masked_fill(torch.arange(LENGTH) > at, -1e9)
    keep = draw.normal(len(variants), N_PROMPTS, len(heads)).sigmoid() if kept else None
    return Edit(layer, "pattern", at, torch.tensor(heads), torch.tensor(variants), weights.softmax(-1), keep)


def contribution(draw: Draw, layer: int, at: int, heads: list[int], variants: list[int], d_model: int) -> Edit:
    replacement = draw.normal(len(variants), N_PROMPTS, len(heads), d_model)
    return Edit(layer, "contribution", at, torch.tensor(heads), torch.tensor(variants), replacement)


def knocked_out(draw: Draw, _: int) -> list[Edit | Knockout]:
    return [
        knockout(1, 12, [[11]], [0, 2]),
        knockout(2, 12, [[10, 9], [11], [12, 8]], [2, 1], [4, 1]),
        knockout(0, 9, [[8], [7], [9]], [3]),
        knockout(3, 12, [[12]], [4, 3], [5]),
    ]


def knocked_out_where_keys_are_edited(draw: Draw, _: int) -> list[Edit | Knockout]:
    return [
        knockout(1, 12, [[11], [10], [9]], [0, 2]),
        draw.edit(1, "k", 10, [1, 4], [0, 1]),
        draw.edit(1, "v", 9, [1], [2, 3], read_at=12),
        knockout(1, 12, [[9]], [1, 3], [1, 2]),
        draw.edit(1, "q", 12, [0, 5], [4, 0]),
    ]


def patterns_replaced(draw: Draw, _: int) -> list[Edit | Knockout]:
    return [
        pattern(draw, 1, 12, [4, 0], [0, 2]),
        pattern(draw, 2, 9, [1], [1, 3]),
        pattern(draw, 2, 11, [3, 5], [4, 1], kept=True),
        knockout(2, 11, [[11]], [4]),
        draw.edit(2, "k", 8, [3], [1, 4]),
    ]


def contributions_replaced(draw: Draw, d_model: int) -> list[Edit | Knockout]:
    return [
        contribution(draw, 1, 12, [4, 1], [0, 2], d_model),
        contribution(draw, 2, 9, [0], [1, 3], d_model),
        contribution(draw, 0, 10, list(range(N_HEADS)), [4], d_model),
        draw.edit(2, "z", 9, [1, 2], [3, 4]),
    ]


SCENARIOS = [knocked_out, knocked_out_where_keys_are_edited, patterns_replaced, contributions_replaced]
THOROUGH = ("llama", "mistral", "gemma2", "gpt_neox")
CASES = [(a, s) for a in ARCHITECTURES for s in (SCENARIOS if a in THOROUGH else SCENARIOS[2:])]


@pytest.mark.parametrize(("architecture", "scenario"), CASES, ids=[f"{a}-{s.__name__}" for a, s in CASES])
@torch.no_grad()
def test_both_executors_agree_with_the_looped_definition(architecture, scenario):
    chosen, tokens = subject(architecture), random_tokens()
    edits = scenario(Draw(), chosen.model.module.config.hidden_size)
    expected = chosen.reference.run(tokens, edits, N_VARIANTS)
    batch = batch_of(chosen, tokens)
    edited = torch.cat([edit.variants for edit in edits]).unique()
    assert (expected - batch.clean.logits)[edited].abs().amax(dim=(1, 2)).min() > 1e-5, "the edits must show"
    for executor in (FullExecutor(), WindowExecutor()):
        assert_same(executor.run(batch, edits, N_VARIANTS, everything), expected)


@pytest.mark.parametrize("executor", [FullExecutor(), WindowExecutor()], ids=["full", "window"])
@torch.no_grad()
def test_a_query_left_without_keys_is_an_error(executor):
    everywhere = knockout(2, 12, [list(range(LENGTH))], [0])
    with pytest.raises(InputError, match=r"position 12 sees no key any more in layer 2.*block fewer"):
        executor.run(batch_of(subject("llama"), random_tokens()), [everywhere], 1, everything)


@pytest.mark.parametrize("executor", [FullExecutor(), WindowExecutor()], ids=["full", "window"])
@torch.no_grad()
def test_a_sliding_window_counts_as_not_seen(executor):
    """mistral's layers see five positions: blocking these leaves nothing."""
    near = knockout(2, 12, [[8, 9, 10, 11, 12]], [0])
    with pytest.raises(InputError, match="sees no key"):
        executor.run(batch_of(subject("mistral"), random_tokens()), [near], 1, everything)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@torch.no_grad()
def test_keys_that_come_later_may_be_blocked_and_change_nothing(architecture):
    chosen, tokens = subject(architecture), random_tokens()
    batch = batch_of(chosen, tokens)
    later = knockout(1, 9, [[10, 11, 12]], [0])
    for executor in (FullExecutor(), WindowExecutor()):
        assert_same(executor.run(batch, [later], 1, everything)[0], batch.clean.logits)


@torch.no_grad()
def test_an_output_is_only_edited_while_it_lasts_even_if_the_block_fails():
    chosen, tokens = subject("llama"), random_tokens()
    before = chosen.model.forward(tokens)

    def fail_inside():
        with edited_output(chosen.model.attentions[1], torch.zeros_like):
            assert not torch.equal(chosen.model.forward(tokens), before)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.equal(chosen.model.forward(tokens), before)
