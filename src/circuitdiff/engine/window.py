"""The window executor: computes only what can differ from the clean run. The default."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdiff.engine.attention import AttentionCall, handled_by
from circuitdiff.engine.attention_edits import block, edited_output, pattern_as_z, without_contribution
from circuitdiff.engine.edits import Edit, Knockout, Site, What, replace
from circuitdiff.engine.executor import Ablation, Batch, Readout
from circuitdiff.engine.frozen import FrozenRun
from circuitdiff.engine.replay import cut, run_layer
from circuitdiff.engine.variants import LiveVariants
from circuitdiff.engine.window_ablation import ablated_in_window
from circuitdiff.engine.window_attention import Prefix, Window, attend_edited_heads, attend_window, values_seen

Values = Float[Tensor, "variant prompt value"]
AnyEdit = Edit | Knockout


class WindowExecutor:
    """See `Executor`.

    Nothing frozen: positions from the first edited one on, layers from the first edited one on; earlier positions
    enter through the clean run's keys and values only.
    """

    def run(self, batch: Batch, edits: Sequence[AnyEdit], n_variants: int, readout: Readout) -> Values:
        start = min((edit.first_changed for edit in edits), default=batch.length - 1)
        live = LiveVariants(batch.clean, edits, n_variants, start)
        for layer in range(live.first_layer, batch.model.n_layers):
            live.join(layer)
            run_window_layer(batch, live, layer, edits)
        return live.read_out(batch, readout)

    def frozen(self, batch: Batch, edits: Sequence[Edit], n_variants: int, at: int, readout: Readout) -> Values:
        assert at == batch.length - 1, "with every later head frozen, no other position reaches the logits"
        run = FrozenRun(batch, edits, n_variants, at)
        run.to_the_end()
        return run.live.read_out(batch, readout)

    def received(
        self, batch: Batch, edits: Sequence[Edit], n_variants: int, at: int, sites: Sequence[Site]
    ) -> list[Edit]:
        return FrozenRun(batch, edits, n_variants, at).up_to(sites)

    def ablated(self, batch: Batch, ablation: Ablation, readout: Readout) -> Values:
        return ablated_in_window(batch, ablation, readout)


def run_window_layer(
    batch: Batch,
    live: LiveVariants,
    layer: int,
    edits: Sequence[AnyEdit],
    seen: Callable[[AttentionCall], None] = lambda call: None,
) -> None:
    """One layer of all live variants, with those of the edits that are in it; `seen` is shown the attention's input."""
    clean, start = batch.clean, live.start
    positions = torch.arange(start, clean.length, device=live.hidden.device)
    prefix = Prefix(clean.k[layer][:, :, :start], clean.v[layer][:, :, :start])
    with_rows = [(edit, live.rows_of(edit)) for edit in edits if edit.layer == layer]

    def handler(call: AttentionCall) -> Tensor:
        seen(call)
        per_variant = live.shape[:2]
        window = Window(*(x.unflatten(0, per_variant) for x in (call.q, call.k, call.v)))
        return attend_with_edits(call, window, prefix, start, with_rows).flatten(0, 1)

    with handled_by(handler), _outputs_edited(batch, live, with_rows):
        keywords = cut(clean.keywords[layer], positions)
        live.hidden = run_layer(batch.model.layers[layer], live.hidden.flatten(0, 1), keywords).unflatten(
            0, live.shape[:2]
        )


@contextmanager
def _outputs_edited(
    batch: Batch, live: LiveVariants, edits: Sequence[tuple[AnyEdit, Int[Tensor, " _some"]]]
) -> Iterator[None]:
    with ExitStack() as stack:
        for edit, rows in edits:
            if isinstance(edit, Edit) and edit.what == "contribution":

                def edited(written: Tensor, edit: Edit = edit, rows: Tensor = rows) -> Tensor:
                    own, row = written.unflatten(0, live.shape[:2]), edit.at - live.start
                    added = edit.replacement.sum(2).expand(len(rows), own.shape[1], -1)
                    new = own[:, :, row].index_add(0, rows, added)
                    return own.select_scatter(new, dim=2, index=row).flatten(0, 1)

                stack.enter_context(edited_output(batch.model.attentions[edit.layer], edited))
        yield


def attend_with_edits(
    call: AttentionCall,
    window: Window,
    prefix: Prefix,
    start: int,
    edits: Sequence[tuple[AnyEdit, Int[Tensor, " _some"]]],
) -> Float[Tensor, "variant prompt query head d_head"]:
    """z of the window after knockouts and the edits of q, k, v, then of patterns, then of z and contributions.

    `edits` come with the rows of their variants.
    """
    allowed = _allowed(call, window, start, [(e, rows) for e, rows in edits if isinstance(e, Knockout)])
    replaced = [(edit, rows) for edit, rows in edits if isinstance(edit, Edit)]
    of = {what: [(e, rows) for e, rows in replaced if e.what == what] for what in get_args(What)}
    for edit, rows in of["q"]:
        new = replace(window.q[:, :, :, edit.at - start], edit, rows)
        window = Window(window.q.select_scatter(new, dim=3, index=edit.at - start), window.k, window.v)
    z = attend_window(window, prefix, allowed, call.scaling, call.softcap)

    kv_edits = [*of["k"], *of["v"]]
    for read_at in sorted({edit.read_at for edit, _ in kv_edits}, key=lambda at: -1 if at is None else at):
        seen = [(edit, rows) for edit, rows in kv_edits if edit.read_at in (None, read_at)]
        heads = torch.cat([edit.heads for edit, _ in seen]).unique()
        changed = attend_edited_heads(
            window, prefix, allowed, call.scaling, call.softcap, start=start, edits=seen, heads=heads
        )
        if read_at is None:
            z = z.index_copy(3, heads, changed)
        else:
            row = read_at - start
            z = z.select_scatter(z[:, :, row].index_copy(2, heads, changed[:, :, row]), dim=2, index=row)

    assert not (of["pattern"] and of["v"]), "a pattern is weighed with the run's own values"
    patterns = [(pattern_as_z(e, values_seen(window, prefix, e.heads, rows)), rows) for e, rows in of["pattern"]]
    taken = [(without_contribution(edit, z), rows) for edit, rows in of["contribution"]]
    for edit, rows in [*patterns, *of["z"], *taken]:
        z = z.select_scatter(replace(z[:, :, edit.at - start], edit, rows), dim=2, index=edit.at - start)
    return z


def _allowed(
    call: AttentionCall,
    window: Window,
    start: int,
    knockouts: Sequence[tuple[Knockout, Int[Tensor, " _some"]]],
) -> Bool[Tensor, "*any query pos"]:
    """The model's own mask for the window's queries, without the keys that are knocked out."""
    allowed = call.allowed[0, 0]
    if not knockouts:
        return allowed
    n_variants, _, n_heads = window.q.shape[:3]
    allowed = allowed.expand(n_variants, 1, n_heads, *allowed.shape)
    for knockout, rows in knockouts:
        allowed = block(allowed, knockout, rows, knockout.at - start)
    return allowed
