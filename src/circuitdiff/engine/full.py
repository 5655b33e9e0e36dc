"""The full executor: the whole model on the whole prompt, once per variant. Slow, obvious, the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace as with_fields
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.engine.attention import AttentionCall, Handler, attend, block, edited_output, expand_kv, handled_by
from circuitdiff.engine.edits import (
    AnyEdit,
    Edit,
    Knockout,
    MlpEdit,
    ResidualEdit,
    SenderEdit,
    Site,
    What,
    pattern_as_z,
    replace,
    replace_residual,
    without_contribution,
)
from circuitdiff.engine.executor import Ablation, Batch, Readout, Values
from circuitdiff.engine.mlp import edited_mlp
from circuitdiff.engine.replay import edited_input


def _of_variant(edits: Sequence[AnyEdit], variant: int) -> Iterator[AnyEdit]:
    """The edits of one variant, as those of a run that has no other."""
    one = torch.zeros(1, dtype=torch.long)
    for edit in edits:
        if variant in edit.variants:
            row = (edit.variants == variant).nonzero()[:, 0]
            names = ("blocked", "replacement", "keep")
            values = {name: value for name in names if (value := getattr(edit, name, None)) is not None}
            own = {name: value if len(value) == 1 else value[row] for name, value in values.items()}
            yield with_fields(edit, variants=one, **own)


def _put(x: Float[Tensor, "prompt head pos d"], edit: Edit) -> Float[Tensor, "prompt head pos d"]:
    """`x` with one variant's edit in it, out of place."""
    new = replace(x[None, :, :, edit.at], edit, edit.variants.to(x.device))[0]
    return x.select_scatter(new, dim=2, index=edit.at)


def _edited_attention(call: AttentionCall, edits: Sequence[AnyEdit]) -> Tensor:
    """z of one layer, all positions, after knockouts and the edits of q, k, v, then of patterns, then of z."""
    call = _without_blocked(call, [edit for edit in edits if isinstance(edit, Knockout)])
    of = {what: [e for e in edits if isinstance(e, Edit) and e.what == what] for what in get_args(What)}
    n_heads, q = call.q.shape[1], call.q
    for edit in of["q"]:
        q = _put(q, edit)

    def seen_at(read_at: int | None) -> AttentionCall:
        kv = {"k": expand_kv(call.k, n_heads), "v": expand_kv(call.v, n_heads)}
        for edit in (*of["k"], *of["v"]):
            if edit.read_at in (None, read_at):
                kv[edit.what] = _put(kv[edit.what], edit)
        return with_fields(call, q=q, **kv)

    z = attend(seen_at(None))
    for position in {edit.read_at for edit in (*of["k"], *of["v"]) if edit.read_at is not None}:
        z = z.select_scatter(attend(seen_at(position))[:, position], dim=1, index=position)
    z = z.transpose(1, 2)
    for edit in of["pattern"]:
        z = _put(z, pattern_as_z(edit, seen_at(edit.at).v[None, :, edit.heads]))
    for edit in [*of["z"], *(without_contribution(edit, z) for edit in of["contribution"])]:
        z = _put(z, edit)
    return z.transpose(1, 2)


def _without_blocked(call: AttentionCall, knockouts: Sequence[Knockout]) -> AttentionCall:
    if not knockouts:
        return call
    allowed = call.allowed.expand(*call.q.shape[:2], -1, -1)[None]
    for knockout in knockouts:
        allowed = block(allowed, knockout, knockout.variants.to(allowed.device), knockout.at)
    return with_fields(call, allowed=allowed[0])


@contextmanager
def _handled(batch: Batch, handler: Handler, edits: Sequence[AnyEdit]) -> Iterator[None]:
    """While this lasts, `handler` computes z, and MLPs add what the edits of one variant say."""
    with ExitStack() as stack:
        stack.enter_context(handled_by(handler))
        shape = (1, *batch.tokens.shape, -1)
        for edit in edits:
            if isinstance(edit, MlpEdit):
                rows = edit.variants.to(batch.model.device)
                stack.enter_context(edited_mlp(batch.model, edit, shape, rows, edit.at))
        yield


@contextmanager
def _edited(batch: Batch, edits: Sequence[AnyEdit]) -> Iterator[None]:
    """While this lasts, the model runs with the edits of one variant."""
    with ExitStack() as stack:
        of_layer = [[edit for edit in edits if edit.layer == layer] for layer in range(batch.model.n_layers)]
        stack.enter_context(_handled(batch, lambda call: _edited_attention(call, of_layer[call.layer]), edits))
        for edit in edits:
            if isinstance(edit, ResidualEdit):

                def with_replaced(hidden: Tensor, edit: ResidualEdit = edit) -> Tensor:
                    return replace_residual(hidden[None], edit, edit.variants.to(hidden.device), edit.at)[0]

                stack.enter_context(edited_input(batch.model.layers[edit.layer], with_replaced))
            if isinstance(edit, Edit) and edit.what == "contribution":

                def with_added(written: Tensor, edit: Edit = edit) -> Tensor:
                    added = written[:, edit.at] + edit.replacement[0].sum(1)
                    return written.select_scatter(added, dim=1, index=edit.at)

                stack.enter_context(edited_output(batch.model.attentions[edit.layer], with_added))
        yield


class FullExecutor:
    """See `Executor`."""

    def run(self, batch: Batch, edits: Sequence[AnyEdit], n_variants: int, readout: Readout) -> Values:
        return _every_variant(batch, n_variants, lambda v: _edited(batch, list(_of_variant(edits, v))), readout)

    def frozen(self, batch: Batch, edits: Sequence[SenderEdit], n_variants: int, at: int, readout: Readout) -> Values:
        def freezing(variant: int) -> AbstractContextManager[None]:
            of_variant = list(_of_variant(edits, variant))
            return _handled(batch, _freezing(batch, of_variant, at), of_variant)

        return _every_variant(batch, n_variants, freezing, readout)

    def received(
        self, batch: Batch, edits: Sequence[SenderEdit], n_variants: int, at: int, sites: Sequence[Site]
    ) -> list[Edit]:
        seen: list[list[Tensor]] = [[] for _ in sites]

        def reading(variant: int) -> AbstractContextManager[None]:
            of_variant = list(_of_variant(edits, variant))
            freeze = _freezing(batch, of_variant, at)

            def handler(call: AttentionCall) -> Tensor:
                for site, values in zip(sites, seen, strict=True):
                    if site.layer == call.layer:
                        whole = expand_kv(getattr(call, site.what), call.q.shape[1])
                        values.append(whole[:, site.heads, site.at])
                return freeze(call)

            return _handled(batch, handler, of_variant)

        _every_variant(batch, n_variants, reading, lambda logits, _: logits[:, :0])
        everyone = torch.arange(n_variants)
        return [
            Edit(site.layer, site.what, site.at, site.heads, everyone, torch.stack(values))
            for site, values in zip(sites, seen, strict=True)
        ]

    def ablated(self, batch: Batch, ablation: Ablation, readout: Readout) -> Values:
        def ablating(variant: int) -> AbstractContextManager[None]:
            def handler(call: AttentionCall) -> Tensor:
                own, constant = attend(call), ablation.constants[call.layer]
                kept = torch.zeros(batch.length, own.shape[2], dtype=torch.bool, device=own.device)
                kept[list(ablation.positions)] = ablation.kept[variant, call.layer]
                return torch.where(kept[:, :, None], own, constant)

            return handled_by(handler)

        return _every_variant(batch, len(ablation.kept), ablating, readout)


def _freezing(batch: Batch, edits: Sequence[AnyEdit], at: int) -> Handler:
    """Every head at its clean z from `at` on, but for the edits of one variant."""
    clean = batch.clean

    def handler(call: AttentionCall) -> Tensor:
        own = attend(call)
        z = torch.cat([own[:, :at], clean.z[call.layer][:, at - clean.start :]], dim=1).transpose(1, 2)
        for edit in edits:
            if edit.layer == call.layer and isinstance(edit, Edit):
                assert edit.what == "z", "a frozen run has edits of z and of what MLPs add"
                z = _put(z, edit)
        return z.transpose(1, 2)

    return handler


def _every_variant(
    batch: Batch, n_variants: int, running: Callable[[int], AbstractContextManager[None]], readout: Readout
) -> Values:
    """What `readout` says of the logits of each variant, while `running` it."""
    prompts = torch.arange(batch.n_prompts, device=batch.model.device)
    values = []
    for variant in range(n_variants):
        with running(variant):
            values.append(readout(batch.model.forward(batch.tokens), prompts))
    return torch.stack(values)
