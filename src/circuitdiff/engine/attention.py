"""The one attention function: every q, k, v and z of every model passes through here, and is edited here.

transformers sends the attention of every modern decoder through its `AttentionInterface`. We register one function
there, and one mask function, so that what an executor wants done to q, k, v or z needs no code per architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from circuitdiff.engine.edits import Knockout
from circuitdiff.errors import InputError

IMPLEMENTATION = "circuitdiff"

# Keywords that change nothing here: bookkeeping, and what the mask already holds (sliding_window, is_causal).
_HARMLESS = frozenset(
    [
        "dropout",
        "is_causal",
        "position_ids",
        "sliding_window",
        "use_cache",
        "output_attentions",
        "cache_position",
        "output_router_logits",
    ]
)


# A score of each head beside those of the keys: it takes its share of the softmax and gives no value.
Sinks = Float[Tensor, "#batch head #query 1"]


@dataclass(frozen=True)
class AttentionCall:
    """What one layer's attention is about to do. q has the query heads, k and v the key/value heads."""

    module: nn.Module
    layer: int
    q: Float[Tensor, "batch head query d_query"]
    k: Float[Tensor, "batch kv_head key d_query"]
    v: Float[Tensor, "batch kv_head key d_head"]  # d_query, but where latent attention gives q and k more
    allowed: Bool[Tensor, "#batch #head query key_all"]  # key_all > key when the queries are a window
    scaling: float
    softcap: float | None
    sinks: Sinks | None = None


Handler = Callable[[AttentionCall], Float[Tensor, "batch query head d_head"]]


def probabilities(
    scores: Float[Tensor, "*any key"],
    allowed: Bool[Tensor, "*#any key"],
    softcap: float | None,
    sinks: Float[Tensor, "*#any 1"] | None = None,
) -> Float[Tensor, "*any key"]:
    """Attention pattern from scaled scores. Half precision is summed in float32, float64 stays float64.

    It sums to 1 over the keys, less what a sink takes.
    """
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~allowed, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)], dim=-1)
    wide = torch.promote_types(scores.dtype, torch.float32)
    pattern = torch.softmax(scores, dim=-1, dtype=wide).to(scores.dtype)
    return pattern if sinks is None else pattern[..., :-1]


def expand_kv(kv: Float[Tensor, "*any kv_head pos d"], n_heads: int) -> Float[Tensor, "*any head pos d"]:
    """Keys or values with one entry per query head."""
    return kv.repeat_interleave(n_heads // kv.shape[-3], dim=-3)


def pattern_of(call: AttentionCall) -> Float[Tensor, "batch head query key"]:
    """How much each head's query gives to each key; sums to 1 over the keys, less what a sink takes."""
    scores = call.q @ expand_kv(call.k, call.q.shape[1]).transpose(-1, -2) * call.scaling
    return probabilities(scores, call.allowed, call.softcap, call.sinks)


def attend(call: AttentionCall) -> Float[Tensor, "batch query head d_head"]:
    """z, per head and before the output projection, of an attention that nobody edits."""
    return (pattern_of(call) @ expand_kv(call.v, call.q.shape[1])).transpose(1, 2)


_handler: ContextVar[Handler] = ContextVar("circuitdiff_attention_handler", default=attend)


@contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """While this lasts, `handler` computes z in every attention layer."""
    token = _handler.set(handler)
    try:
        yield
    finally:
        _handler.reset(token)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **keywords: object,
) -> tuple[Tensor, None]:
    unknown = [name for name, value in keywords.items() if name not in _HARMLESS and value is not None]
    if unknown:
        raise InputError(
            f"{type(module).__name__} calls its attention with {', '.join(sorted(unknown))}, which circuitdiff "
            f"does not know and would silently leave out; this architecture is not supported"
        )
    if attention_mask is None or scaling is None:
        raise InputError(
            f"{type(module).__name__} gives its attention no mask or no scaling; this architecture does not "
            f"follow transformers' attention interface and is not supported"
        )
    if attention_mask.dtype != torch.bool:
        raise InputError(
            f"{type(module).__name__} turns the attention mask into numbers that it adds to the scores, which "
            f"circuitdiff does not do; this architecture is not supported"
        )
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
    sinks = None if s_aux is None else s_aux.view(1, -1, 1, 1)
    call = AttentionCall(module, layer, query, key, value, attention_mask, scaling, softcap, sinks)
    return _handler.get()(call).contiguous(), None  # some models take a view of it


def _mask(*args: object, **keywords: object) -> Tensor:
    """The model's own mask, always given and always boolean (True: may attend)."""
    keywords |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask = sdpa_mask(*args, **keywords)  # pyright: ignore[reportArgumentType]
    assert mask is not None
    return mask


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)


def block(
    allowed: Bool[Tensor, " variant #prompt head query pos"],  # the leading space keeps ruff from unquoting it
    knockout: Knockout,
    rows: Int[Tensor, " some"],
    query: int,
) -> Bool[Tensor, "variant prompt head query pos"]:
    """`allowed` without the knockout's keys; `rows` says where its variants are, `query` where its query is.

    Raises: InputError if the query sees no key any more: its softmax would have nothing to share out.
    """
    n_prompts = max(allowed.shape[1], knockout.blocked.shape[1])
    allowed = allowed.expand(-1, n_prompts, -1, -1, -1)
    index = (
        rows[:, None, None],
        torch.arange(n_prompts, device=rows.device)[None, :, None],
        knockout.heads.to(rows.device)[None, None, :],
        torch.tensor(query, device=rows.device),
    )
    seen = allowed[index] & ~knockout.blocked.to(rows.device)[:, :, None]
    if not seen.any(-1).all():
        raise InputError(
            f"the query at position {knockout.at} sees no key any more in layer {knockout.layer}: it cannot attend to "
            f"nothing; block fewer keys"
        )
    return allowed.index_put(index, seen)


@contextmanager
def edited_output(module: nn.Module, edited: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While this lasts, `edited` changes what a module gives out; of an attention's tuple the first, what it writes."""

    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return (edited(output[0]), *output[1:]) if isinstance(output, tuple) else edited(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
