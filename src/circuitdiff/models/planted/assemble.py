"""A GPT-2 with given heads: features become the residual stream's own coordinates, and all else is zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from circuitdiff.heads import Head
from circuitdiff.models.planted.head_weights import D_HEAD, HeadWeights
from circuitdiff.models.planted.placement import N_HEADS, N_LAYERS
from circuitdiff.models.planted.space import CONSTANT, D_MODEL, N_POSITIONS, Space, position_features, token_features
from circuitdiff.models.planted.vocabulary import END, PADDING, Vocabulary


@torch.no_grad()
def empty_model(vocabulary: Vocabulary) -> GPT2LMHeadModel:
    """A GPT-2 of the right size in float64 with weights of zero, except that LayerNorm leaves features as they are."""
    config = GPT2Config(
        vocab_size=len(vocabulary.tokens),
        n_positions=N_POSITIONS,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_inner=len(vocabulary.objects),
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=vocabulary.tokens.index(END),
        pad_token_id=vocabulary.tokens.index(PADDING),
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):  # its initial weights are thrown away, and must not cost random numbers
        model = GPT2LMHeadModel(config).to(torch.float64).eval()
    for name, parameter in model.named_parameters():
        norm_scale = CONSTANT / D_MODEL**0.5  # the deviation of a stream that holds the constant alone
        parameter.fill_(norm_scale if "ln_" in name and name.endswith("weight") else 0.0)
    return model


@torch.no_grad()
def write_embeddings(model: GPT2LMHeadModel, space: Space, vocabulary: Vocabulary, seed: int) -> None:
    model.transformer.wte.weight.copy_(token_features(space, vocabulary, seed) @ space.basis.T)
    model.transformer.wpe.weight.copy_(position_features() @ space.basis.T)


@torch.no_grad()
def write_heads(model: GPT2LMHeadModel, space: Space, heads: Mapping[Head, HeadWeights]) -> None:
    for head, weights in heads.items():
        attention = model.transformer.h[head.layer].attn
        here = slice(head.index * D_HEAD, (head.index + 1) * D_HEAD)
        for i, part in enumerate((weights.q, weights.k, weights.v)):
            attention.c_attn.weight[:, _part(here, i)] = space.basis @ part
        attention.c_attn.bias[here] = weights.q_bias
        attention.c_proj.weight[here] = weights.o @ space.basis.T


def _part(here: slice, i: int) -> slice:
    """The head's columns among those of q (0), k (1) or v (2)."""
    return slice(i * D_MODEL + here.start, i * D_MODEL + here.stop)
