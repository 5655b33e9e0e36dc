"""A GPT-2 with given heads: features become the residual stream's own coordinates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from circuitdiff.heads import Head
from circuitdiff.models.planted.head_weights import D_HEAD, HeadWeights
from circuitdiff.models.planted.placement import N_HEADS
from circuitdiff.models.planted.space import CONSTANT, D_MODEL, N_POSITIONS, Space, position_features, token_features
from circuitdiff.models.planted.vocabulary import END, PADDING, Vocabulary

Weights = Mapping[str, Tensor]  # by the model's own names


def make_model(vocabulary: Vocabulary, weights: Weights, n_layers: int, dtype: torch.dtype) -> GPT2LMHeadModel:
    """A GPT-2 with these weights, of which none may be missing."""
    config = GPT2Config(
        vocab_size=len(vocabulary.tokens),
        n_positions=N_POSITIONS,
        n_embd=D_MODEL,
        n_layer=n_layers,
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
        dtype=dtype,
    )
    with torch.random.fork_rng(devices=[]):  # its initial weights are thrown away, and must not cost random numbers
        model = GPT2LMHeadModel._from_config(config)
    model.load_state_dict(dict(weights), strict=True)
    return model.eval()


def embedding_weights(space: Space, vocabulary: Vocabulary, seed: int) -> Weights:
    return {
        "transformer.wte.weight": token_features(space, vocabulary, seed) @ space.basis.T,
        "transformer.wpe.weight": position_features() @ space.basis.T,
    }


def norm_weights(n_layers: int) -> Weights:
    """LayerNorms that leave features as they are: they multiply by the deviation of a stream of the constant alone."""
    scale = torch.full((D_MODEL,), CONSTANT / D_MODEL**0.5, dtype=torch.float64)
    names = [f"transformer.h.{layer}.ln_{i}" for layer in range(n_layers) for i in (1, 2)]
    weights = {f"{name}.weight": scale for name in (*names, "transformer.ln_f")}
    return weights | {name.replace("weight", "bias"): torch.zeros_like(scale) for name in weights}


def attention_weights(space: Space, heads: Mapping[Head, HeadWeights], n_layers: int) -> Weights:
    """All heads' weights side by side. GPT-2 multiplies from the right: columns are outputs."""
    weights: dict[str, Tensor] = {}
    none = torch.zeros(D_MODEL, dtype=torch.float64)
    for layer in range(n_layers):
        here = [heads[Head(layer, i)] for i in range(N_HEADS)]
        attention = f"transformer.h.{layer}.attn"
        read = [torch.cat([getattr(head, what) for head in here], dim=1) for what in ("q", "k", "v")]
        weights[f"{attention}.c_attn.weight"] = space.basis @ torch.cat(read, dim=1)
        weights[f"{attention}.c_attn.bias"] = torch.cat([*(head.q_bias for head in here), none, none])
        weights[f"{attention}.c_proj.weight"] = torch.cat([head.o for head in here]) @ space.basis.T
        weights[f"{attention}.c_proj.bias"] = none
    assert D_HEAD * N_HEADS == D_MODEL
    return weights
