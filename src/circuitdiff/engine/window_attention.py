"""Attention of a few positions of many variants over keys and values that the variants share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdiff.engine.attention import AttentionCall, Sinks, probabilities
from circuitdiff.engine.edits import Edit, replace

# Which keys a query may attend to: [query, key], or [variant, prompt, head, query, key] where they differ.
Allowed = Bool[Tensor, "*any query prefix_and_key"]


@dataclass(frozen=True)
class Prefix:
    """Keys and values outside the window, one set per prompt for all variants."""

    k: Float[Tensor, "prompt kv_head prefix d_query"]
    v: Float[Tensor, "prompt kv_head prefix d_head"]


@dataclass(frozen=True)
class Window:
    """What the attention of a few positions is about to do: q, k and v inside the window, per variant, and the rest."""

    q: Float[Tensor, "variant prompt head query d_query"]
    k: Float[Tensor, "variant prompt kv_head key d_query"]
    v: Float[Tensor, "variant prompt kv_head key d_head"]
    prefix: Prefix
    allowed: Allowed
    scaling: float
    softcap: float | None
    sinks: Sinks | None = None

    @classmethod
    def of(cls, call: AttentionCall, n_variants: int, prefix: Prefix, allowed: Allowed) -> Window:
        q, k, v = (x.unflatten(0, (n_variants, -1)) for x in (call.q, call.k, call.v))
        return cls(q, k, v, prefix, allowed, call.scaling, call.softcap, call.sinks)


def attend_window(window: Window) -> Float[Tensor, "variant prompt query head d_head"]:
    """z at the window's queries, over the prefix's keys followed by the window's own.

    Scores against the prefix are one matrix product per prompt and key head, with all variants as its queries: the
    prefix is never copied.
    """
    prefix, allowed = window.prefix, window.allowed
    n_kv, n_prefix = prefix.k.shape[1:3]
    q = window.q.unflatten(2, (n_kv, -1))  # variant prompt kv_head group query d_query
    n_variants, _, _, n_group, n_query, _ = q.shape

    def per_prompt(x: Tensor) -> Tensor:
        return x.permute(1, 2, 0, 3, 4, 5).flatten(2, 4)

    def per_variant(x: Tensor) -> Tensor:
        return x.unflatten(2, (n_variants, n_group, n_query)).permute(2, 0, 1, 3, 4, 5)

    to_prefix = per_variant(per_prompt(q) @ prefix.k.transpose(-1, -2))
    to_window = (q.flatten(3, 4) @ window.k.transpose(-1, -2)).unflatten(3, (n_group, n_query))
    grouped = allowed.unflatten(2, (n_kv, n_group)) if allowed.dim() == 5 else allowed
    scores = torch.cat([to_prefix, to_window], dim=-1) * window.scaling
    sinks = None if window.sinks is None else window.sinks.unflatten(1, (n_kv, n_group))
    pattern = probabilities(scores, grouped, window.softcap, sinks)
    from_prefix = per_variant(per_prompt(pattern[..., :n_prefix]) @ prefix.v)
    from_window = (pattern[..., n_prefix:].flatten(3, 4) @ window.v).unflatten(3, (n_group, n_query))
    return (from_prefix + from_window).flatten(2, 3).transpose(2, 3)


def attend_edited_heads(
    window: Window, start: int, edits: Sequence[tuple[Edit, Int[Tensor, " _some"]]], heads: Int[Tensor, " edited"]
) -> Float[Tensor, "variant prompt query edited d_head"]:
    """z of `heads` only, whose keys and values are edited (each with the rows of its variants).

    A key or value edited inside the prefix, before `start`, becomes an extra column of every variant's own, and the
    prefix's column is masked.
    """
    prefix, n_window = window.prefix, window.k.shape[3]
    kv_head = heads // (window.q.shape[2] // window.k.shape[2])
    columns = sorted({edit.at for edit, _ in edits if edit.at < start})

    def with_extra(own: Tensor, shared: Tensor) -> Tensor:
        extra = shared[:, kv_head][:, :, columns].expand(len(own), -1, -1, -1, -1)
        return torch.cat([own[:, :, kv_head], extra], dim=3)

    kv = {"k": with_extra(window.k, prefix.k), "v": with_extra(window.v, prefix.v)}
    for edit, rows in edits:
        column = edit.at - start if edit.at >= start else n_window + columns.index(edit.at)
        local = with_fields(edit, heads=torch.searchsorted(heads, edit.heads))
        new = replace(kv[edit.what].select(3, column), local, rows)
        kv[edit.what] = kv[edit.what].select_scatter(new, dim=3, index=column)
    own = window.allowed[:, :, heads] if window.allowed.dim() == 5 else window.allowed
    seen = torch.cat([own, own[..., columns]], dim=-1)
    seen = seen.index_fill(-1, torch.tensor(columns, dtype=torch.long, device=seen.device), False)
    shared = Prefix(prefix.k[:, kv_head], prefix.v[:, kv_head])
    sinks = None if window.sinks is None else window.sinks[:, heads]
    of_heads = with_fields(window, q=window.q[:, :, heads], **kv, prefix=shared, allowed=seen, sinks=sinks)
    return attend_window(of_heads)


def values_seen(
    window: Window, heads: Int[Tensor, " edited"], rows: Int[Tensor, " some"]
) -> Float[Tensor, "some prompt edited pos d_head"]:
    """The values of some heads at all positions of the prompt, in the variants at `rows`."""
    kv_head = heads // (window.q.shape[2] // window.v.shape[2])
    own, shared = window.v[rows][:, :, kv_head], window.prefix.v[:, kv_head]
    return torch.cat([shared.expand(len(rows), *shared.shape), own], dim=3)
