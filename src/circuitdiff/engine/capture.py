"""Reading activations off plain runs of many prompts, keeping only what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine.attention import AttentionCall, attend, edited_output, expand_kv, handled_by, pattern_of
from circuitdiff.engine.edits import What
from circuitdiff.engine.executor import Readout
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB, RUN_SHARE, batches
from circuitdiff.engine.mlp import mlps_of
from circuitdiff.engine.model import Model
from circuitdiff.engine.replay import edited_input
from circuitdiff.prompts import Bucket, PromptSet

Wanted = Mapping[int, Sequence[int]]  # by layer, the heads
Carried = Mapping[int, Float[Tensor, "prompt wanted width"]]
# Is shown what a layer's attention is about to do, its z [prompt pos head d_head], and whose these are.
Seen = Callable[[AttentionCall, Tensor, Bucket], None]


@torch.no_grad()
def capture(
    model: Model,
    prompts: PromptSet,
    seen: Seen = lambda call, z, bucket: None,
    readout: Readout = lambda logits, prompt: logits[:, :0],
    *,
    roles: Sequence[str] = (),
    more: Int[Tensor, "prompt t"] | None = None,
    memory_gb: float = RUN_SHARE * DEFAULT_MEMORY_GB,
) -> Float[Tensor, "prompt value"]:
    """What `readout` says of the unedited model's logits after each prompt, and `more` tokens that follow it.

    `seen` is shown every layer of every run; prompts of one run have `roles` at the same positions.
    """
    order, values = [], []
    for bucket in batches(model, prompts, roles, memory_gb):

        def handler(call: AttentionCall, bucket: Bucket = bucket) -> Tensor:
            z = attend(call)
            seen(call, z, bucket)
            return z

        tokens = prompts.tokens[bucket.prompts, : bucket.length]
        with handled_by(handler):
            logits = model.forward(tokens if more is None else torch.cat([tokens, more[bucket.prompts]], dim=1))
        values.append(readout(logits, bucket.prompts.to(logits.device)).cpu())
        order.append(bucket.prompts)
    return torch.cat(values)[torch.cat(order).argsort()]


def z_at_positions(
    model: Model,
    prompts: PromptSet,
    positions: Int[Tensor, "prompt wanted"],
    memory_gb: float = RUN_SHARE * DEFAULT_MEMORY_GB,
) -> Float[Tensor, "layer prompt wanted head d_head"]:
    """Every head's z at some positions of each prompt."""
    shape = (model.n_layers, *positions.shape, model.n_heads, model.d_head)
    result = torch.empty(shape, dtype=model.dtype, device=model.device)

    def seen(call: AttentionCall, z: Tensor, bucket: Bucket) -> None:
        rows = torch.arange(len(bucket.prompts))[:, None]
        result[call.layer, bucket.prompts] = z[rows, positions[bucket.prompts]]

    capture(model, prompts, seen, memory_gb=memory_gb)
    return result


@torch.no_grad()
def stream_at_positions(
    model: Model,
    what: Literal["resid_pre", "mlp_out"],
    prompts: PromptSet,
    positions: Int[Tensor, "prompt wanted"],
    layers: Sequence[int],
    readout: Readout = lambda logits, prompt: logits[:, :0],
    memory_gb: float = RUN_SHARE * DEFAULT_MEMORY_GB,
) -> tuple[Float[Tensor, "layer prompt wanted d_model"], Float[Tensor, "prompt value"]]:
    """The residual stream that enters each of the layers, or what its MLP adds, at some positions of each prompt.

    Also what `readout` says of the logits after each prompt, off the same runs.
    """
    shape = (len(layers), *positions.shape, model.module.config.get_text_config().hidden_size)
    found = torch.empty(shape, dtype=model.dtype, device=model.device)
    order, values = [], []
    for bucket in batches(model, prompts, (), memory_gb):
        tokens, at = prompts.tokens[bucket.prompts, : bucket.length], positions[bucket.prompts]
        with ExitStack() as stack:
            for i, layer in enumerate(layers):

                def keep(stream: Tensor, i: int = i, bucket: Bucket = bucket, at: Tensor = at) -> Tensor:
                    rows = torch.arange(len(at))[:, None]
                    found[i, bucket.prompts] = stream.reshape(len(at), bucket.length, -1)[rows, at]
                    return stream

                seen = edited_input(model.layers[layer], keep)
                stack.enter_context(edited_output(mlps_of(model)[layer].module, keep) if what == "mlp_out" else seen)
            logits = model.forward(tokens)
        values.append(readout(logits, bucket.prompts.to(logits.device)).cpu())
        order.append(bucket.prompts)
    if what == "mlp_out":
        found *= found.new_tensor([mlps_of(model)[layer].scale for layer in layers])[:, None, None, None]
    return found, torch.cat(values)[torch.cat(order).argsort()]


def sum_z_by_slot(
    model: Model, prompts: PromptSet
) -> tuple[Float[Tensor, "slot layer head d_head"], Float[Tensor, " slot"]]:
    """The sum of every head's z over all tokens of each slot, in float64, and the number of those tokens."""
    n_slots = len(prompts.slot_names)
    total = torch.zeros(n_slots, model.n_layers, model.n_heads, model.d_head, dtype=torch.float64, device=model.device)

    def seen(call: AttentionCall, z: Tensor, bucket: Bucket) -> None:
        slots = prompts.slots[bucket.prompts, : bucket.length].flatten().to(model.device)
        total[:, call.layer].index_add_(0, slots, z.flatten(0, 1).double())

    capture(model, prompts, seen)
    count = torch.bincount(prompts.slots[prompts.slots >= 0], minlength=n_slots).double()
    return total, count.to(model.device)


def read_heads(
    model: Model,
    prompts: PromptSet,
    whats: Sequence[What],
    wanted: Mapping[str, Wanted],
    readout: Readout = lambda logits, prompt: logits[:, :0],
) -> tuple[Mapping[What, Mapping[str, Carried]], Float[Tensor, "prompt value"]]:
    """By kind, role and layer, what the wanted heads carry: an edit with it changes nothing in this model.

    The width is d_head; of patterns that of the padded prompts (0 beyond a prompt's end), of contributions d_model.
    Also what `readout` says of the logits after each prompt, off the same runs.
    """
    heads = {at: {n: torch.tensor(these, device=model.device) for n, these in of.items()} for at, of in wanted.items()}
    found: dict[What, dict[str, dict[int, Tensor]]] = {what: {role: {} for role in wanted} for what in whats}

    def seen(call: AttentionCall, z: Tensor, bucket: Bucket) -> None:
        for what, (role, layers) in product(whats, heads.items()):
            if call.layer in layers:
                carried = _carried(model, call, what, z, layers[call.layer], bucket.positions[role])
                width = prompts.tokens.shape[1] if what == "pattern" else carried.shape[-1]
                nothing = carried.new_zeros(len(prompts), carried.shape[1], width)
                whole = found[what][role].setdefault(call.layer, nothing)
                whole[bucket.prompts.to(whole.device), :, : carried.shape[-1]] = carried

    return found, capture(model, prompts, seen, readout, roles=list(wanted))


def _carried(
    model: Model,
    call: AttentionCall,
    what: What,
    z: Float[Tensor, "prompt pos head d_head"],
    heads: Int[Tensor, " wanted"],
    at: int,
) -> Float[Tensor, "prompt wanted width"]:
    if what == "pattern":
        return pattern_of(call)[:, heads, at]
    if what == "contribution":
        return contributions(model, call.layer, z[:, at], heads)
    if what == "z":
        return z[:, at, heads]
    return expand_kv(getattr(call, what), call.q.shape[1])[:, heads, at]


def contributions(
    model: Model, layer: int, z: Float[Tensor, "prompt head d_head"], heads: Int[Tensor, " wanted"]
) -> Float[Tensor, "prompt wanted d_model"]:
    """What each head writes into the residual stream, by the model's own projection; the bias is nobody's."""
    only = torch.zeros(len(z), len(heads), *z.shape[1:], dtype=z.dtype, device=z.device)
    places = torch.arange(len(heads), device=z.device)
    only[:, places, heads] = z[:, heads]
    projection = model.projections[layer]
    return projection(only.flatten(2)) - projection(torch.zeros_like(only[:1, :1]).flatten(2))
