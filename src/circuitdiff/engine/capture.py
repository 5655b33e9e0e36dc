"""Reading activations off plain runs of many prompts, keeping only what is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine.attention import AttentionCall, attend, expand_kv, handled_by, pattern_of
from circuitdiff.engine.edits import What
from circuitdiff.engine.executor import Readout
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB, RUN_SHARE, batches
from circuitdiff.engine.model import Model
from circuitdiff.prompts import Bucket, PromptSet

# By layer, the heads; and what each of them carries.
Wanted = Mapping[int, Int[Tensor, " wanted"]]
Carried = Mapping[int, Float[Tensor, "prompt wanted width"]]


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
def read_model(
    model: Model, prompts: PromptSet, readout: Readout, more: Int[Tensor, "prompt t"] | None = None
) -> Float[Tensor, "prompt value"]:
    """What `readout` says of the unedited model's logits after each prompt, and `more` tokens that follow it."""
    more = prompts.tokens[:, :0] if more is None else more
    order, values = [], []
    for bucket in batches(model, prompts):
        tokens = torch.cat([prompts.tokens[bucket.prompts, : bucket.length], more[bucket.prompts]], dim=1)
        logits = model.forward(tokens)
        values.append(readout(logits, bucket.prompts.to(logits.device)).cpu())
        order.append(bucket.prompts)
    return torch.cat(values)[torch.cat(order).argsort()]


def read_heads(model: Model, prompts: PromptSet, what: What, wanted: Mapping[str, Wanted]) -> dict[str, Carried]:
    """By role and layer, what the wanted heads carry there: an edit with it changes nothing in this model.

    The width is d_head; of patterns that of the padded prompts (0 beyond a prompt's end), of contributions d_model.
    """
    found, _ = read_heads_and_ends(model, prompts, [what], wanted, lambda logits, _: logits[:, :0])
    return found[what]


@torch.no_grad()
def read_heads_and_ends(
    model: Model, prompts: PromptSet, whats: Sequence[What], wanted: Mapping[str, Wanted], readout: Readout
) -> tuple[dict[What, dict[str, Carried]], Float[Tensor, "prompt value"]]:
    """`read_heads` of several kinds, and what `readout` says of the logits after each prompt, off the same runs."""
    found: dict[What, dict[str, dict[int, Tensor]]] = {what: {role: {} for role in wanted} for what in whats}
    ends: Tensor | None = None
    for bucket in batches(model, prompts, list(wanted)):

        def handler(call: AttentionCall, bucket: Bucket = bucket) -> Tensor:
            z = attend(call)
            for what, (role, layers) in product(whats, wanted.items()):
                if call.layer in layers:
                    carried = _carried(model, call, what, z, layers[call.layer], bucket.positions[role])
                    width = prompts.tokens.shape[1] if what == "pattern" else carried.shape[-1]
                    nothing = carried.new_zeros(len(prompts), carried.shape[1], width)
                    whole = found[what][role].setdefault(call.layer, nothing)
                    whole[bucket.prompts.to(whole.device), :, : carried.shape[-1]] = carried
            return z

        with handled_by(handler):
            logits = model.forward(prompts.tokens[bucket.prompts, : bucket.length])
        values = readout(logits, bucket.prompts.to(logits.device)).cpu()
        ends = values.new_empty(len(prompts), values.shape[1]) if ends is None else ends
        ends[bucket.prompts] = values
    assert ends is not None, "there is a prompt"
    return {what: {role: dict(layers) for role, layers in by_role.items()} for what, by_role in found.items()}, ends


def _carried(
    model: Model,
    call: AttentionCall,
    what: What,
    z: Float[Tensor, "prompt pos head d_head"],
    heads: Int[Tensor, " wanted"],
    at: int,
) -> Float[Tensor, "prompt wanted width"]:
    n_heads = call.q.shape[1]
    if what == "pattern":
        return pattern_of(call)[:, heads, at]
    if what == "contribution":
        return contributions(model, call.layer, z[:, at], heads)
    if what == "z":
        return z[:, at, heads]
    return (call.q if what == "q" else expand_kv(call.k if what == "k" else call.v, n_heads))[:, heads, at]


def contributions(
    model: Model, layer: int, z: Float[Tensor, "prompt head d_head"], heads: Int[Tensor, " wanted"]
) -> Float[Tensor, "prompt wanted d_model"]:
    """What each head writes into the residual stream, by the model's own projection; the bias is nobody's."""
    only = torch.zeros(len(z), len(heads), *z.shape[1:], dtype=z.dtype, device=z.device)
    places = torch.arange(len(heads), device=z.device)
    only[:, places, heads] = z[:, heads]
    projection = model.projections[layer]
    return projection(only.flatten(2)) - projection(torch.zeros_like(only[:1, :1]).flatten(2))
