"""The residual stream replaced before a layer: both executors do what the looped definition does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from circuitdiff.engine import Edit, FullExecutor, Knockout, ResidualEdit, WindowExecutor
from circuitdiff.engine.replay import edited_input
from helpers.tiny_models import (
    ARCHITECTURES,
    LENGTH,
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

EXECUTORS = (FullExecutor(), WindowExecutor())


def residual(
    draw: Draw, layer: int, at: int, variants: list[int], d_model: int, *, shared: bool = False
) -> ResidualEdit:
    """A random residual stream, of each variant and prompt its own, or `shared`."""
    shape = (1, 1, d_model) if shared else (len(variants), N_PROMPTS, d_model)
    return ResidualEdit(layer, at, torch.tensor(variants), 2 * draw.normal(*shape))


def one_by_one(draw: Draw, d_model: int) -> list[Edit | Knockout | ResidualEdit]:
    """Variants that begin at different layers and positions."""
    return [
        residual(draw, 0, 7, [1], d_model),
        residual(draw, 1, 12, [0, 3], d_model),
        residual(draw, 3, 10, [2], d_model),
        residual(draw, 2, 9, [4], d_model, shared=True),
    ]


def with_other_edits(draw: Draw, d_model: int) -> list[Edit | Knockout | ResidualEdit]:
    """Before, in and after the layer of other edits, and twice in one variant."""
    blocked = torch.zeros(1, 1, LENGTH, dtype=torch.bool)
    blocked[..., 9] = True
    return [
        residual(draw, 1, 9, [0, 2], d_model),
        draw.edit(1, "z", 9, [0, 4], [2, 1]),
        draw.edit(1, "q", 12, [3], [0, 3]),
        Knockout(1, 12, torch.arange(6), torch.tensor([0, 1]), blocked),
        draw.edit(0, "v", 8, [1, 5], [3, 4], read_at=12),
        residual(draw, 3, 11, [3, 0], d_model),
        residual(draw, 1, 12, [4, 2], d_model, shared=True),
    ]


CASES = [(a, s) for a in ARCHITECTURES for s in (one_by_one, with_other_edits)]


@pytest.mark.parametrize(("architecture", "scenario"), CASES, ids=[f"{a}-{s.__name__}" for a, s in CASES])
@torch.no_grad()
def test_both_executors_agree_with_the_looped_definition(architecture, scenario):
    chosen, tokens = subject(architecture), random_tokens()
    edits = scenario(Draw(), chosen.model.module.config.hidden_size)
    expected = chosen.reference.run(tokens, edits, N_VARIANTS)
    batch = batch_of(chosen, tokens)
    assert (expected - batch.clean.logits).abs().amax(dim=(1, 2)).min() > 1e-4, "the edits must show"
    for executor in EXECUTORS:
        assert_same(executor.run(batch, edits, N_VARIANTS, everything), expected)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "opt"])
@torch.no_grad()
def test_the_last_residual_stream_of_another_prompt_makes_its_logits_and_the_own_one_changes_nothing(architecture):
    chosen, tokens = subject(architecture), random_tokens()
    batch, other = batch_of(chosen, tokens), batch_of(chosen, random_tokens(seed=2))
    layer, last = N_LAYERS - 1, LENGTH - 1
    own, others = (each.clean.resid_pre[layer] for each in (batch, other))
    edits = [ResidualEdit(layer, at, torch.tensor([1]), others[None, :, at]) for at in range(LENGTH)]
    edits.append(ResidualEdit(layer, last, torch.tensor([0]), own[None, :, last]))
    for executor in EXECUTORS:
        values = executor.run(batch, edits, 2, everything)
        assert_same(values, torch.stack([batch.clean.logits, other.clean.logits]))


@torch.no_grad()
def test_as_many_prompts_as_positions_are_not_edited_along_the_wrong_axis():
    chosen, tokens = subject("mistral"), random_tokens(n_prompts=7, length=7)
    d_model = chosen.model.module.config.hidden_size
    edits = [
        ResidualEdit(2, 3, torch.tensor([0, 2]), Draw().normal(2, 7, d_model)),
        ResidualEdit(1, 6, torch.tensor([1]), Draw(1).normal(1, 7, d_model)),
    ]
    expected = chosen.reference.run(tokens, edits, 3)
    for executor in EXECUTORS:
        assert_same(executor.run(batch_of(chosen, tokens, start=3), edits, 3, everything), expected)


class _Doubled(nn.Module):
    def forward(self, hidden_states: Tensor, more: Tensor) -> Tensor:
        return 2 * hidden_states + more


def test_a_layers_input_is_edited_in_place_or_by_name_and_only_while_it_lasts():
    layer, one = _Doubled(), torch.ones(3)

    def fail_inside() -> None:
        with edited_input(layer, lambda hidden: hidden + 4):
            assert torch.equal(layer(one, one), torch.full((3,), 11.0))
            assert torch.equal(layer(hidden_states=one, more=one), torch.full((3,), 11.0))
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.equal(layer(one, one), torch.full((3,), 3.0))
