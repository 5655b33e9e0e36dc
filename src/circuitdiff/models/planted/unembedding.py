"""From names in the residual stream to logits, and two places outside all heads that can make the task easier."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.models.planted.assemble import Weights
from circuitdiff.models.planted.randomness import unit_rows
from circuitdiff.models.planted.space import D_MODEL, SIZES, Space
from circuitdiff.models.planted.vocabulary import Vocabulary
from circuitdiff.models.planted.wiring import Wiring

_LOGIT_OF_A_NAME = 20.0
_LOGIT_OF_OTHERS = 4.0  # tokens that are no object
_NOTICED, _STEEPNESS = 0.05, 100.0  # how much of a name must be there for the MLP to act, and how abruptly it begins
_CLEARLY_NOTICED = 0.08  # more than means hold of any name


def unembedding_weights(space: Space, vocabulary: Vocabulary, wiring: Wiring, seed: int) -> Weights:
    """A token's logit is how much of its name is in the stream, times a constant."""
    rows = _LOGIT_OF_OTHERS * unit_rows(len(vocabulary.tokens), SIZES["output"], key=(seed, "unembedding"))
    correction = _correction(space, wiring, wiring.unembedding_correction)
    rows[vocabulary.object_ids] = _LOGIT_OF_A_NAME * correction[:, None] * space.names
    return {"lm_head.weight": rows @ _to_output(space)}


def mlp_weights(space: Space, wiring: Wiring) -> Weights:
    """MLPs of zero, but the last where it corrects, and the one before it where a backup waits; a unit per object."""
    names = space.names @ _to_output(space)
    weights: dict[str, Tensor] = {}
    for layer in range(wiring.n_layers):
        weights |= _mlp(layer, names, 0.0, torch.zeros_like(names))
    if wiring.mlp_correction != 0:
        change = _correction(space, wiring, wiring.mlp_correction) - 1
        weights |= _mlp(wiring.n_layers - 1, names, _NOTICED, change[:, None] * names)
    if wiring.n_heads.get("backup"):
        weights |= watching_mlp(space, wiring, names)
    return weights


def watching_mlp(space: Space, wiring: Wiring, names: Float[Tensor, "object d_model"]) -> Weights:
    """After all fetchers: says how much of names is written, whichever they are.

    Heads that are silent write nothing; at their mean, a little of every name. Neither is noticed.
    """
    written = (space.basis @ space.of("written")).T.expand(len(names), -1)
    return _mlp(wiring.n_layers - 2, names, _CLEARLY_NOTICED, written)


def _mlp(
    layer: int, names: Float[Tensor, "object d_model"], noticed: float, write: Float[Tensor, "object d_model"]
) -> Weights:
    """Units that notice each object's name in the stream, and write so much of theirs as there is beyond `noticed`."""
    acts, mlp = float(write.any()), f"transformer.h.{layer}.mlp"
    return {
        f"{mlp}.c_fc.weight": acts * _STEEPNESS * names.T,
        f"{mlp}.c_fc.bias": torch.full((len(names),), -acts * _STEEPNESS * noticed, dtype=torch.float64),
        f"{mlp}.c_proj.weight": write / _STEEPNESS,
        f"{mlp}.c_proj.bias": torch.zeros(D_MODEL, dtype=torch.float64),
    }


def _to_output(space: Space) -> Float[Tensor, "d_name d_model"]:
    """Puts a name's code where the unembedding reads."""
    return space.of("output").T @ space.basis.T


def _correction(space: Space, wiring: Wiring, share: float) -> Float[Tensor, " object"]:
    """What undoes `share` of the advantage that attention gives to salient objects.

    Salient ones are turned down and all are turned up alike: turning up the dull ones would let objects win that
    the prompt does not name.
    """
    return torch.exp(share * wiring.salience * (1 - space.leaning().clamp(min=0.0)))
