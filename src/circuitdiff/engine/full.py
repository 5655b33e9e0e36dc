"""The full executor: the whole model on the whole prompt, once per variant. Slow, obvious, the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace as with_fields
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.engine.attention import (
    AttentionCall,
    Handler,
    attend,
    block,
    edited_output,
    expand_kv,
    handled_by,
    pattern_as_z,
    without_contribution,
)
from circuitdiff.engine.edits import Edit, Knockout, Site, What
from circuitdiff.engine.executor import Ablation, Batch, Readout

Values = Float[Tensor, "variant prompt value"]
AnyEdit = Edit | Knockout


def _put(x: Float[Tensor, "prompt head pos d"], edit: Edit, variant: int) -> Float[Tensor, "prompt head pos d"]:
    """`x` with one variant's part of the edit in it, out of place."""
    row = int((edit.variants == variant).nonzero())
    new = edit.replacement[0 if len(edit.replacement) == 1 else row]
    prompts = torch.arange(len(x), device=x.device)
    index = (prompts[:, None], edit.heads[None, :], torch.tensor(edit.at, device=x.device))
    if edit.keep is not None:
        keep = edit.keep[row if len(edit.keep) > 1 else 0][..., None]
        new = keep * x[index] + (1 - keep) * new
    return x.index_put(index, new.expand_as(x[index]))


def _edited_attention(call: AttentionCall, edits: Sequence[AnyEdit], variant: int) -> Tensor:
    """z of one layer, all positions, after knockouts and the edits of q, k, v, then of patterns, then of z."""
    call = _without_blocked(call, [e for e in edits if isinstance(e, Knockout)], variant)
    of = {what: [e for e in edits if isinstance(e, Edit) and e.what == what] for what in get_args(What)}
    n_heads, q = call.q.shape[1], call.q
    for edit in of["q"]:
        q = _put(q, edit, variant)

    def seen_at(read_at: int | None) -> AttentionCall:
        kv = {"k": expand_kv(call.k, n_heads), "v": expand_kv(call.v, n_heads)}
        for edit in (*of["k"], *of["v"]):
            if edit.read_at in (None, read_at):
                kv[edit.what] = _put(kv[edit.what], edit, variant)
        return with_fields(call, q=q, **kv)

    z = attend(seen_at(None))
    for position in {edit.read_at for edit in (*of["k"], *of["v"]) if edit.read_at is not None}:
        z = z.select_scatter(attend(seen_at(position))[:, position], dim=1, index=position)
    for edit in of["pattern"]:
        as_z = pattern_as_z(edit, seen_at(edit.at).v[None, :, edit.heads])
        z = _put(z.transpose(1, 2), as_z, variant).transpose(1, 2)
    for edit in [*of["z"], *(without_contribution(edit, z) for edit in of["contribution"])]:
        z = _put(z.transpose(1, 2), edit, variant).transpose(1, 2)
    return z


def _without_blocked(call: AttentionCall, knockouts: Sequence[Knockout], variant: int) -> AttentionCall:
    if not knockouts:
        return call
    n_prompts, n_heads = call.q.shape[:2]
    allowed = call.allowed.expand(n_prompts, n_heads, -1, -1)[None]
    for knockout in knockouts:
        row = 0 if len(knockout.blocked) == 1 else int((knockout.variants == variant).nonzero())
        mine = with_fields(knockout, blocked=knockout.blocked[[row]])
        allowed = block(allowed, mine, torch.zeros(1, dtype=torch.long, device=allowed.device), knockout.at)
    return with_fields(call, allowed=allowed[0])


@contextmanager
def _outputs_edited(batch: Batch, edits: Sequence[AnyEdit], variant: int) -> Iterator[None]:
    with ExitStack() as stack:
        for edit in edits:
            if isinstance(edit, Edit) and edit.what == "contribution" and variant in edit.variants:
                row = 0 if len(edit.replacement) == 1 else int((edit.variants == variant).nonzero())
                total = edit.replacement[row].sum(1)

                def edited(written: Tensor, at: int = edit.at, added: Tensor = total) -> Tensor:
                    return written.select_scatter(written[:, at] + added, dim=1, index=at)

                stack.enter_context(edited_output(batch.model.attentions[edit.layer], edited))
        yield


class FullExecutor:
    """See `Executor`."""

    def run(self, batch: Batch, edits: Sequence[AnyEdit], n_variants: int, readout: Readout) -> Values:
        def handler_of(variant: int) -> Handler:
            mine = _edits_of(edits, variant)
            return lambda call: _edited_attention(call, mine.get(call.layer, []), variant)

        return _every_variant(batch, n_variants, handler_of, readout, lambda v: _outputs_edited(batch, edits, v))

    def frozen(self, batch: Batch, edits: Sequence[Edit], n_variants: int, at: int, readout: Readout) -> Values:
        return _every_variant(batch, n_variants, lambda v: _freezing(batch, edits, v, at), readout)

    def received(
        self, batch: Batch, edits: Sequence[Edit], n_variants: int, at: int, sites: Sequence[Site]
    ) -> list[Edit]:
        seen: list[list[Tensor]] = [[] for _ in sites]

        def handler_of(variant: int) -> Handler:
            freeze = _freezing(batch, edits, variant, at)

            def handler(call: AttentionCall) -> Tensor:
                for site, values in zip(sites, seen, strict=True):
                    if site.layer == call.layer:
                        whole = getattr(call, site.what)
                        values.append(expand_kv(whole, call.q.shape[1])[:, site.heads, site.at])
                return freeze(call)

            return handler

        _every_variant(batch, n_variants, handler_of, lambda logits, _: logits[:, :0])
        everyone = torch.arange(n_variants)
        return [
            Edit(site.layer, site.what, site.at, site.heads, everyone, torch.stack(values))
            for site, values in zip(sites, seen, strict=True)
        ]

    def ablated(self, batch: Batch, ablation: Ablation, readout: Readout) -> Values:
        def handler_of(variant: int) -> Handler:
            def handler(call: AttentionCall) -> Tensor:
                own, constant = attend(call), ablation.constants[call.layer]
                kept = torch.zeros(batch.length, own.shape[2], dtype=torch.bool, device=own.device)
                kept[list(ablation.positions)] = ablation.kept[variant, call.layer]
                return torch.where(kept[:, :, None], own, constant)

            return handler

        return _every_variant(batch, len(ablation.kept), handler_of, readout)


def _freezing(batch: Batch, edits: Sequence[Edit], variant: int, at: int) -> Handler:
    mine = _edits_of(edits, variant)
    clean = batch.clean

    def handler(call: AttentionCall) -> Tensor:
        own = attend(call)
        z = torch.cat([own[:, :at], clean.z[call.layer][:, at - clean.start :]], dim=1).transpose(1, 2)
        for edit in mine.get(call.layer, []):
            assert isinstance(edit, Edit), "a frozen run has edits of z"
            z = _put(z, edit, variant)
        return z.transpose(1, 2)

    return handler


def _edits_of(edits: Sequence[AnyEdit], variant: int) -> dict[int, list[AnyEdit]]:
    by_layer: dict[int, list[AnyEdit]] = {}
    for edit in edits:
        if variant in edit.variants:
            by_layer.setdefault(edit.layer, []).append(edit)
    return by_layer


def _every_variant(
    batch: Batch,
    n_variants: int,
    handler_of: Callable[[int], Handler],
    readout: Readout,
    while_running: Callable[[int], AbstractContextManager[None]] = lambda variant: nullcontext(),
) -> Values:
    prompts = torch.arange(batch.n_prompts, device=batch.model.device)
    values = []
    for variant in range(n_variants):
        with handled_by(handler_of(variant)), while_running(variant):
            values.append(readout(batch.model.forward(batch.tokens), prompts))
    return torch.stack(values)
