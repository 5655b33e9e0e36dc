"""Two models' weights token by token, against each weight's own module mixing what either model makes of a token."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from circuitdiff.engine.by_token import run_by_token
from circuitdiff.engine.capture import capture
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import subject
from helpers.two_tiny_models import donor_of

ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "phi3", "qwen3", "gemma2"]


def everything(logits, _):
    return logits


def some_masks(n_prompts: int, length: int) -> Tensor:
    """None, all, the first token, all but the last, the last, and two drawn at random."""
    masks = torch.zeros(7, n_prompts, length, dtype=torch.bool)
    masks[1] = True
    masks[2, :, 0] = True
    masks[5:] = torch.rand(2, n_prompts, length, generator=torch.Generator().manual_seed(3)) < 0.4
    return masks


def mixed_by_hand(architecture: str, tokens: Tensor, mask: Tensor) -> Tensor:
    """Modules that hold weights see one token at a time: each gives the donor's output where the mask says so."""
    module = copy.deepcopy(subject(architecture).reference.module)
    donor = dict(donor_of(architecture).reference.module.named_modules())

    def mix(name: str):
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            theirs = donor[name](*args)
            return torch.where(mask.view(1, -1, *[1] * (output.dim() - 2)), theirs, output)

        return hook

    for name, part in module.named_modules():
        if list(part.parameters(recurse=False)):
            assert not list(part.children())
            part.register_forward_hook(mix(name))
    return module(tokens, use_cache=False).logits[0, -1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_each_token_has_the_weights_that_its_mask_says(architecture):
    model, other, prompts = subject(architecture).model, donor_of(architecture).model, fake_pairs().clean_prompts
    masks = some_masks(*prompts.tokens.shape)
    masks[3] = torch.arange(masks.shape[2]) < prompts.lengths[:, None] - 1
    masks[4] = ~masks[3]
    found = run_by_token(model, other, prompts, masks, everything)
    for i, length in enumerate(prompts.lengths.tolist()):
        for mask, values in zip(masks, found, strict=True):
            expected = mixed_by_hand(architecture, prompts.tokens[i : i + 1, :length], mask[i, :length])
            torch.testing.assert_close(values[i], expected, rtol=1e-10, atol=1e-10)
    for either, values in ((model, found[0]), (other, found[1])):
        torch.testing.assert_close(values, capture(either, prompts, readout=everything), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gpt_oss"])
@torch.no_grad()
def test_the_donors_last_token_reads_the_keys_and_values_that_the_recipient_left(architecture):
    """As transformers itself goes on from a cache; a sink, too, is of the token that asks."""
    model, other, prompts = subject(architecture).model, donor_of(architecture).model, fake_pairs().clean_prompts
    masks = torch.arange(prompts.tokens.shape[1]) == prompts.lengths[:, None] - 1
    found = run_by_token(model, other, prompts, masks[None], everything)[0]
    own, theirs = (copy.deepcopy(each.module) for each in (model, other))
    for module in (own, theirs):
        module.set_attn_implementation("eager")
    for i, length in enumerate(prompts.lengths.tolist()):
        tokens = prompts.tokens[i : i + 1, :length]
        cache = own(tokens[:, :-1], use_cache=True).past_key_values
        expected = theirs(tokens[:, -1:], past_key_values=cache, use_cache=True).logits[0, -1]
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-4)  # its softmax is in float32
