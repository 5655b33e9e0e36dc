"""Changes of weights of every kind that change nothing of what a planted model computes, or hardly anything."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from circuitdiff.circuit import Head
from circuitdiff.planted.heads import D_HEAD, HeadWeights, rotated
from circuitdiff.planted.space import Space
from circuitdiff.planted.vocabulary import END, TOKENS
from circuitdiff.planted.wiring import generator, normal, orthogonal


def moved_heads(heads: Mapping[Head, HeadWeights], decoys: set[Head], seed: int) -> dict[Head, HeadWeights]:
    """Keys and queries of all heads by inverse maps, which no score sees; z of decoys in another basis.

    z of the others stays in its basis: patching it between models would be refused.
    """
    moved = {h: _mapped(weights, (seed, "harmless", h)) for h, weights in heads.items()}
    return moved | {h: rotated(moved[h], orthogonal(D_HEAD, key=(seed, "harmless z", h))) for h in decoys}


# By kind of tensor, the share of its root mean square that each number moves by: each kind moves logits by some tenths.
# What multiplies the constant, a thousand times as large as a feature, is moved less.
_SHARES = {
    "attn.c_attn.weight": 1e-4,
    "ln_1.weight": 1e-3,
    "wte.weight": 1e-3,
    "c_attn.bias": 3e-3,
    "lm_head.weight": 2e-3,
}
_OTHERS = 3e-3
_LEAST = 0.02  # root mean square that a tensor of zeros counts with


def with_noise(weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Every number moved a little at random: every part computes something slightly else, and none anything better."""

    def moved(name: str, weight: Tensor) -> Tensor:
        size = max(float(weight.square().mean().sqrt()), _LEAST)
        share = next((share for kind, share in _SHARES.items() if name.endswith(kind)), _OTHERS)
        return weight + share * size * normal(*weight.shape, key=(seed, "noise", name))

    return {name: moved(name, weight) for name, weight in weights.items()}


def _mapped(head: HeadWeights, key: tuple[object, ...]) -> HeadWeights:
    stretched = 0.5 + 1.5 * torch.rand(D_HEAD, generator=generator(*key, "stretch"), dtype=torch.float64)
    turned = orthogonal(D_HEAD, key=key)
    q, k = turned * stretched, turned / stretched  # q of one and k of the other: their product is the identity
    return HeadWeights(head.q @ q, head.q_bias @ q, head.k @ k, head.v, head.o)


def moved_rest(weights: Mapping[str, Tensor], space: Space, seed: int) -> dict[str, Tensor]:
    """MLPs' idle units read something, and the others change places; biases of norms that nothing reads; the embedding
    of a token that no prompt has.
    """
    moved = dict(weights)
    for name in (name for name in weights if name.endswith("c_fc.weight")):
        bias, out = name.replace("weight", "bias"), name.replace("c_fc", "c_proj")
        if weights[out].any():
            moved |= {name: weights[name].flip(1), bias: weights[bias].flip(0), out: weights[out].flip(0)}
        else:
            moved[name] = 0.05 * normal(*weights[name].shape, key=(seed, "harmless", name))
    unread = (space.basis @ space.of("constant"))[:, 0]  # no head, no MLP and no logit depends on the constant
    moved |= {name: weights[name] + 0.1 * unread for name in weights if ".ln_" in name and name.endswith("bias")}
    embedding = weights["transformer.wte.weight"].clone()
    embedding[TOKENS.index(END)] *= 1.1
    return moved | {"transformer.wte.weight": embedding}
