"""From names in the residual stream to logits, and two places outside all heads that can make the task easier."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.models.planted.assemble import Weights
from circuitdiff.models.planted.placement import N_LAYERS
from circuitdiff.models.planted.randomness import unit_rows
from circuitdiff.models.planted.space import D_MODEL, SIZES, Space
from circuitdiff.models.planted.vocabulary import Vocabulary
from circuitdiff.models.planted.wiring import Wiring

_LOGIT_OF_A_NAME = 20.0
_LOGIT_OF_OTHERS = 4.0  # tokens that are no object
_NOTICED, _STEEPNESS = 0.05, 100.0  # how much of a name must be there for the MLP to act, and how abruptly it begins


def unembedding_weights(space: Space, vocabulary: Vocabulary, wiring: Wiring, seed: int) -> Weights:
    """A token's logit is how much of its name is in the stream, times a constant."""
    rows = _LOGIT_OF_OTHERS * unit_rows(len(vocabulary.tokens), SIZES["output"], key=(seed, "unembedding"))
    correction = _correction(space, wiring, wiring.unembedding_correction)
    rows[vocabulary.object_ids] = _LOGIT_OF_A_NAME * correction[:, None] * space.names
    return {"lm_head.weight": rows @ _to_output(space)}


def mlp_weights(space: Space, wiring: Wiring) -> Weights:
    """MLPs of zero but the last, with one hidden unit for each object.

    It notices the object's name in the stream, and makes it more or less of it.
    """
    names = space.names @ _to_output(space)
    change = _correction(space, wiring, wiring.mlp_correction) - 1
    weights: dict[str, Tensor] = {}
    for layer in range(N_LAYERS):
        acts = float(layer == N_LAYERS - 1 and wiring.mlp_correction != 0)
        mlp = f"transformer.h.{layer}.mlp"
        weights[f"{mlp}.c_fc.weight"] = acts * _STEEPNESS * names.T
        weights[f"{mlp}.c_fc.bias"] = torch.full((len(names),), -acts * _STEEPNESS * _NOTICED, dtype=torch.float64)
        weights[f"{mlp}.c_proj.weight"] = acts * change[:, None] * names / _STEEPNESS
        weights[f"{mlp}.c_proj.bias"] = torch.zeros(D_MODEL, dtype=torch.float64)
    return weights


def _to_output(space: Space) -> Float[Tensor, "d_name d_model"]:
    """Puts a name's code where the unembedding reads."""
    return space.of("output").T @ space.basis.T


def _correction(space: Space, wiring: Wiring, share: float) -> Float[Tensor, " object"]:
    """What undoes `share` of the advantage that attention gives to salient objects.

    Salient ones are turned down and all are turned up alike: turning up the dull ones would let objects win that
    the prompt does not name.
    """
    return torch.exp(share * wiring.salience * (1 - space.leaning().clamp(min=0.0)))
