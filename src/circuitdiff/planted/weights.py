"""A GPT-2 with given heads, from embedding to unembedding: features become the stream's own coordinates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPTBigCodeConfig, PreTrainedModel

from circuitdiff.circuit import Head
from circuitdiff.planted.harmless import moved_rest, with_noise
from circuitdiff.planted.heads import D_HEAD, HeadWeights
from circuitdiff.planted.space import CONSTANT, D_MODEL, N_POSITIONS, SIZES, Space, position_features, token_features
from circuitdiff.planted.vocabulary import END, N_OBJECTS, OBJECT_IDS, PADDING, TOKENS
from circuitdiff.planted.wiring import N_HEADS, Wiring, unit_rows

Weights = Mapping[str, Tensor]  # by the model's own names


def make_model(
    space: Space, wiring: Wiring, heads: Mapping[Head, HeadWeights], seed: int, dtype: torch.dtype
) -> PreTrainedModel:
    """The GPT-2 with these heads; where they share keys and values, the GPT-BigCode."""
    kind = GPTBigCodeConfig if wiring.shared_kv else GPT2Config
    config = kind(
        vocab_size=len(TOKENS),
        n_positions=N_POSITIONS,
        n_embd=D_MODEL,
        n_layer=wiring.n_layers,
        n_head=N_HEADS,
        n_inner=N_OBJECTS,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=TOKENS.index(END),
        pad_token_id=TOKENS.index(PADDING),
        tie_word_embeddings=False,
        dtype=dtype,
    )
    with torch.random.fork_rng(devices=[]):  # its initial weights are thrown away, and must not cost random numbers
        model = AutoModelForCausalLM.from_config(config)
    weights = {
        "transformer.wte.weight": token_features(space, seed) @ space.basis.T,
        "transformer.wpe.weight": position_features() @ space.basis.T,
        **_norm_weights(wiring.n_layers),
        **_attention_weights(space, heads, wiring.n_layers),
        **_mlp_weights(space, wiring),
        "lm_head.weight": _unembedding(space, wiring, seed),
    }
    if wiring.harmless:
        weights = moved_rest(weights, space, seed)
    if wiring.shared_kv:
        weights = _sharing(weights)
    model.load_state_dict(with_noise(weights, seed) if wiring.noise else weights, strict=True)
    return model.eval()


def _norm_weights(n_layers: int) -> Weights:
    """LayerNorms that leave features as they are: they multiply by the deviation of a stream of the constant alone."""
    scale = torch.full((D_MODEL,), CONSTANT / D_MODEL**0.5, dtype=torch.float64)
    names = [f"transformer.h.{layer}.ln_{i}" for layer in range(n_layers) for i in (1, 2)]
    weights = {f"{name}.weight": scale for name in (*names, "transformer.ln_f")}
    return weights | {name.replace("weight", "bias"): torch.zeros_like(scale) for name in weights}


def _attention_weights(space: Space, heads: Mapping[Head, HeadWeights], n_layers: int) -> Weights:
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


def _sharing(weights: Weights) -> Weights:
    """As GPT-BigCode has them: linear maps from the left, one head's keys and values for all heads of a layer."""
    shared = dict(weights)
    for name in weights:
        if "c_attn" in name:
            q, k, v = weights[name].split(D_MODEL, dim=-1)
            shared[name] = torch.cat([q, k[..., :D_HEAD], v[..., :D_HEAD]], dim=-1)
        if ".h." in name and ".c_" in name and name.endswith("weight"):
            shared[name] = shared[name].T
    return shared


_LOGIT_OF_A_NAME = 20.0
_LOGIT_OF_OTHERS = 4.0  # tokens that are no object
_NOTICED, _STEEPNESS = 0.05, 100.0  # how much of a name must be there for the MLP to act, and how abruptly it begins
_CLEARLY_NOTICED = 0.08  # more than means hold of any name


def _unembedding(space: Space, wiring: Wiring, seed: int) -> Float[Tensor, "d_vocab d_model"]:
    """A token's logit is how much of its name is in the stream, times a constant."""
    rows = _LOGIT_OF_OTHERS * unit_rows(len(TOKENS), SIZES["output"], key=(seed, "unembedding"))
    correction = _correction(space, wiring, wiring.unembedding_correction)
    rows[OBJECT_IDS] = _LOGIT_OF_A_NAME * correction[:, None] * space.names
    return rows @ _to_output(space)


def _mlp_weights(space: Space, wiring: Wiring) -> Weights:
    """MLPs of zero, but the last where it corrects, and the one before it where a backup waits; a unit per object."""
    names = space.names @ _to_output(space)
    weights: dict[str, Tensor] = {}
    for layer in range(wiring.n_layers):
        weights |= _mlp(layer, names, 0.0, torch.zeros_like(names))
    if wiring.mlp_correction != 0:
        change = _correction(space, wiring, wiring.mlp_correction) - 1
        weights |= _mlp(wiring.n_layers - 1, names, _NOTICED, change[:, None] * names)
    if wiring.n_heads.get("backup"):
        # After all fetchers, it says how much of names is written, whichever they are. Heads that are silent write
        # nothing; at their mean, a little of every name. Neither is noticed.
        written = (space.basis @ space.of("written")).T.expand(len(names), -1)
        weights |= _mlp(wiring.n_layers - 2, names, _CLEARLY_NOTICED, written)
    return weights


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
    return torch.exp(share * wiring.salience * (1 - space.saliences[:, 0].clamp(min=0.0)))
