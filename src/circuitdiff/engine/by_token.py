"""Runs of one model with another's weights at some tokens of each prompt, its own at the others.

What a layer computes of a token, its queries, keys and values and what it writes, depends on that token's residual
stream and on weights; attention alone brings tokens together, and has none. So each layer is run with either model's
weights on the same residual stream, queries, keys and values are put together token by token, attention is done once,
and what both write is put together again. So are the embeddings; the last token's weights read the answer off.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitdiff.engine.attention import AttentionCall, attend, handled_by
from circuitdiff.engine.executor import Progress, Readout
from circuitdiff.engine.fits import batches
from circuitdiff.engine.model import Model
from circuitdiff.engine.replay import Keywords, embed, run_layer
from circuitdiff.prompts import PromptSet

BY_TOKEN = 2.25  # times a forward pass: either model's layers, and the other's queries, keys and values once more
_AT_ONCE = 32  # rows


class _Enough(Exception):
    """The layer's queries, keys and values are known."""


@torch.no_grad()
def run_by_token(
    model: Model,
    other: Model,
    prompts: PromptSet,
    masks: Bool[Tensor, "mask prompt pos"],
    readout: Readout,
    progress: Progress | None = None,
) -> Float[Tensor, "mask prompt value"]:
    """What `readout` says of the logits after each prompt, for each mask.

    `masks`: the tokens at which `other`'s weights are used; positions are those of `prompts.tokens`.

    Raises: InputError if a model cannot take the prompts.
    """
    found: Tensor | None = None
    rows = [(bucket, mask) for bucket in batches(model, prompts, largest=_AT_ONCE) for mask in range(len(masks))]
    for done, (bucket, mask) in enumerate(rows, start=1):
        tokens = prompts.tokens[bucket.prompts, : bucket.length]
        logits = _logits(model, other, tokens, masks[mask, bucket.prompts, : bucket.length])
        values = readout(logits, bucket.prompts.to(logits.device)).cpu()
        found = values.new_empty(len(masks), len(prompts), values.shape[-1]) if found is None else found
        found[mask, bucket.prompts] = values
        if progress:
            progress(done, len(rows))
    assert found is not None, "there is a mask and a prompt"
    return found


def _logits(
    model: Model, other: Model, tokens: Int[Tensor, "prompt pos"], others: Bool[Tensor, "prompt pos"]
) -> Float[Tensor, "prompt d_vocab"]:
    others = others.to(model.device)
    both = [embed(each, tokens) for each in (model, other)]
    hidden = _joined(others, both[0][0], both[1][0])
    for layer, keywords in enumerate(zip(both[0][1], both[1][1], strict=True)):
        hidden = _layer(model, other, layer, hidden, keywords, others)
    last = hidden[:, -1]
    own, theirs = model.unembed(last), other.unembed(last.to(other.device)).to(last.device)
    most = max(own.shape[1], theirs.shape[1])  # a tuned model may have tokens that the other has not
    own, theirs = (nn.functional.pad(each, (0, most - each.shape[1]), value=-torch.inf) for each in (own, theirs))
    return torch.where(others[:, -1:], theirs, own)


def _layer(
    model: Model,
    other: Model,
    layer: int,
    hidden: Float[Tensor, "prompt pos d_model"],
    keywords: tuple[Keywords, Keywords],
    others: Bool[Tensor, "prompt pos"],
) -> Float[Tensor, "prompt pos d_model"]:
    its_call, z = _call(other, layer, hidden, keywords[1]), list[Tensor]()

    def together(own: AttentionCall) -> Tensor:
        q, k, v = (_joined(others, getattr(own, name), getattr(its_call, name), 2) for name in ("q", "k", "v"))
        sinks = None
        if own.sinks is not None and its_call.sinks is not None:
            each = [sinks.expand(-1, -1, hidden.shape[1], -1) for sinks in (own.sinks, its_call.sinks)]
            sinks = _joined(others, each[0], each[1], 2)
        z.append(attend(replace(own, q=q, k=k, v=v, sinks=sinks)))
        return z[0]

    with handled_by(together):
        own = run_layer(model.layers[layer], hidden, keywords[0])
    with handled_by(lambda call: z[0].to(call.q.device)):
        theirs = run_layer(other.layers[layer], hidden.to(other.device), keywords[1])
    return _joined(others, own, theirs)


def _call(model: Model, layer: int, hidden: Float[Tensor, "prompt pos d_model"], keywords: Keywords) -> AttentionCall:
    """What the layer's attention is about to do with this residual stream."""
    calls: list[AttentionCall] = []

    def keep(call: AttentionCall) -> Tensor:
        calls.append(call)
        raise _Enough

    with suppress(_Enough), handled_by(keep):
        run_layer(model.layers[layer], hidden.to(model.device), keywords)
    return calls[0]


def _joined(others: Bool[Tensor, "prompt pos"], own: Tensor, theirs: Tensor, axis: int = 1) -> Tensor:
    """`theirs` at the tokens of `others`, else `own`; tokens lie along this axis."""
    shape = [len(others), *[1] * (own.dim() - 1)]
    shape[axis] = others.shape[1]
    return torch.where(others.view(shape), theirs.to(own.device), own)
