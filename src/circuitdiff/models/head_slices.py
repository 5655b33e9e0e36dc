"""Which rows or columns of a projection belong to a head, where q, k, v and o are layers of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuitdiff.errors import InputError
from circuitdiff.heads import Head

QUERY, OUTPUT = "q_proj", "o_proj"
SHARED = ("k_proj", "v_proj")  # of several query heads, where there are fewer key/value heads
PROJECTIONS = (QUERY, *SHARED, OUTPUT)


def channels_of(model: PreTrainedModel, projection: str, layer: int, heads: Sequence[Head]) -> Bool[Tensor, " channel"]:
    """Which of a projection's outputs (of o_proj: inputs) in one layer belong to some of `heads`.

    Of k_proj and v_proj those of the key/value head that the query heads read, which others may read, too.

    Raises: InputError if a head does not exist, or the model's projections are not layers of their own.
    """
    config = model.config.get_text_config()
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    if beyond := [head for head in heads if not (0 <= head.layer < config.num_hidden_layers and head.index < n_heads)]:
        raise InputError(f"the model has no head {beyond[0]}; it has {config.num_hidden_layers} layers of {n_heads}")
    here = {head.index for head in heads if head.layer == layer}
    n = n_kv_heads if projection in SHARED else n_heads
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[[index * n // n_heads for index in here]] = True
    return chosen.repeat_interleave(d_head)


@torch.no_grad()
def silence(model: PreTrainedModel, heads: Sequence[Head]) -> None:
    """Takes heads out of a model for good: what they write is multiplied by 0.

    Raises: InputError if a head does not exist, or the output projection is not called o_proj.
    """
    projections = {layer: part for layer, name, part in projections_of(model) if name == OUTPUT}
    for layer in {head.layer for head in heads}:
        if layer not in projections:
            raise InputError(
                f"heads can be ablated where a layer has an {OUTPUT}; layer {layer} of this model has none"
            )
        projections[layer].weight[:, channels_of(model, OUTPUT, layer, heads)] = 0


def projections_of(model: nn.Module) -> list[tuple[int, str, nn.Linear]]:
    """Every q, k, v and o projection that is a layer of its own, with the number of its decoder layer."""
    found = []
    for path, part in model.named_modules():
        parts = path.split(".")
        if parts[-1] in PROJECTIONS and isinstance(getattr(part, "weight", None), Tensor):
            found.append((next(int(p) for p in reversed(parts) if p.isdigit()), parts[-1], part))
    return found
