"""From names in the residual stream to logits, and two places outside all heads that can make the task easier."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2LMHeadModel

from circuitdiff.models.planted.randomness import unit_rows
from circuitdiff.models.planted.space import SIZES, Space
from circuitdiff.models.planted.vocabulary import Vocabulary
from circuitdiff.models.planted.wiring import Wiring

_LOGIT_OF_A_NAME = 20.0
_LOGIT_OF_OTHERS = 4.0  # tokens that are no object
_NOTICED, _STEEPNESS = 0.05, 100.0  # how much of a name must be there for the MLP to act, and how abruptly it begins


@torch.no_grad()
def write_unembedding(model: GPT2LMHeadModel, space: Space, vocabulary: Vocabulary, wiring: Wiring, seed: int) -> None:
    """A token's logit is how much of its name is in the stream, times a constant."""
    rows = _LOGIT_OF_OTHERS * unit_rows(len(vocabulary.tokens), SIZES["output"], key=(seed, "unembedding"))
    rows[vocabulary.object_ids] = _LOGIT_OF_A_NAME * space.names
    rows[vocabulary.object_ids] *= _correction(space, wiring, wiring.unembedding_correction)[:, None]
    model.lm_head.weight.copy_(rows @ space.of("output").T @ space.basis.T)


@torch.no_grad()
def write_last_mlp(model: GPT2LMHeadModel, space: Space, wiring: Wiring) -> None:
    """One hidden unit for each object: it notices the name in the stream and makes it more or less of it."""
    mlp = model.transformer.h[-1].mlp
    names = space.names @ space.of("output").T @ space.basis.T
    change = _correction(space, wiring, wiring.mlp_correction) - 1
    mlp.c_fc.weight.copy_(_STEEPNESS * names.T)
    mlp.c_fc.bias.fill_(-_STEEPNESS * _NOTICED)
    mlp.c_proj.weight.copy_(change[:, None] * names / _STEEPNESS)


def _correction(space: Space, wiring: Wiring, share: float) -> Float[Tensor, " object"]:
    """What undoes `share` of the advantage that attention gives to salient objects.

    Salient ones are turned down and all are turned up alike: turning up the dull ones would let objects win that
    the prompt does not name.
    """
    return torch.exp(share * wiring.salience * (1 - space.leaning().clamp(min=0.0)))
