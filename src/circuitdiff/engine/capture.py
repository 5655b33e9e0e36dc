"""Reading activations off plain runs of many prompts, keeping only what is asked for."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine.attention import AttentionCall, attend, handled_by
from circuitdiff.engine.executor import Readout
from circuitdiff.engine.memory import DEFAULT_MEMORY_GB, RUN_SHARE, batches
from circuitdiff.engine.model import Model
from circuitdiff.prompts import Bucket, PromptSet


def z_at_role(model: Model, prompts: PromptSet, role: str) -> Float[Tensor, "layer prompt head d_head"]:
    """Every head's z at one role of each prompt."""
    return z_at_positions(model, prompts, prompts.positions[role][:, None])[:, :, 0]


@torch.no_grad()
def z_at_positions(
    model: Model,
    prompts: PromptSet,
    positions: Int[Tensor, "prompt wanted"],
    memory_gb: float = RUN_SHARE * DEFAULT_MEMORY_GB,
) -> Float[Tensor, "layer prompt wanted head d_head"]:
    """Every head's z at some positions of each prompt."""
    shape = (model.n_layers, *positions.shape, model.n_heads, model.d_head)
    result = torch.empty(shape, dtype=model.dtype, device=model.device)
    for bucket in batches(model, prompts, memory_gb=memory_gb):
        rows, wanted = torch.arange(len(bucket.prompts))[:, None], positions[bucket.prompts]

        def handler(
            call: AttentionCall, bucket: Bucket = bucket, rows: Tensor = rows, wanted: Tensor = wanted
        ) -> Tensor:
            z = attend(call)
            result[call.layer, bucket.prompts] = z[rows, wanted]
            return z

        with handled_by(handler):
            model.forward(prompts.tokens[bucket.prompts, : bucket.length])
    return result


@torch.no_grad()
def sum_z_by_slot(
    model: Model, prompts: PromptSet
) -> tuple[Float[Tensor, "slot layer head d_head"], Float[Tensor, " slot"]]:
    """The sum of every head's z over all tokens of each slot, in float64, and the number of those tokens."""
    n_slots = len(prompts.slot_names)
    total = torch.zeros(n_slots, model.n_layers, model.n_heads, model.d_head, dtype=torch.float64, device=model.device)
    for bucket in batches(model, prompts):
        slots = prompts.slots[bucket.prompts, : bucket.length].flatten().to(model.device)

        def handler(call: AttentionCall, slots: Tensor = slots) -> Tensor:
            z = attend(call)
            total[:, call.layer].index_add_(0, slots, z.flatten(0, 1).double())
            return z

        with handled_by(handler):
            model.forward(prompts.tokens[bucket.prompts, : bucket.length])
    count = torch.bincount(prompts.slots[prompts.slots >= 0], minlength=n_slots).double()
    return total, count.to(model.device)


@torch.no_grad()
def read_model(model: Model, prompts: PromptSet, readout: Readout) -> Float[Tensor, "prompt value"]:
    """What `readout` says of the unedited model's logits after each prompt."""
    order, values = [], []
    for bucket in batches(model, prompts):
        logits = model.forward(prompts.tokens[bucket.prompts, : bucket.length])
        values.append(readout(logits, bucket.prompts.to(logits.device)).cpu())
        order.append(bucket.prompts)
    return torch.cat(values)[torch.cat(order).argsort()]
