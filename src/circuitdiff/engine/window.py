"""The window executor: computes only what can differ from the clean run. The default.

- Variants (`LiveVariants`) join the batch at the layer of their first edit.
- A frozen run (`FrozenRun`) is one position, no attention: with every other head frozen at its clean z from the edited
  position on, only the residual stream at that one position changes, through the MLPs. A layer's attention then writes
  what it wrote in the clean run, but for the edited heads; an edited MLP adds what the edit says.
- Variants that do the same at early positions share that part (`branched`): it is run once, and each of them then costs
  only what it changes later on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace as with_fields
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine.attention import AttentionCall, block, edited_output, expand_kv, handled_by
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
from circuitdiff.engine.executor import Ablation, Batch, Readout, Values, read_out
from circuitdiff.engine.mlp import edited_mlp
from circuitdiff.engine.model import replaced_forward
from circuitdiff.engine.replay import CleanRun, cut, run_layer
from circuitdiff.engine.window_ablation import ablated_in_window
from circuitdiff.engine.window_attention import Prefix, Window, attend_edited_heads, attend_window, values_seen

# Where query heads share a key or value, an edit of it is seen by one head: no run has such keys.
BRANCHING: frozenset[str] = frozenset(["z", "q", "pattern", "contribution", "mlp_out"])
EditsWithRows = Sequence[tuple[AnyEdit, Int[Tensor, " _some"]]]  # where in the window's variants each edit's are


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

    def frozen(self, batch: Batch, edits: Sequence[SenderEdit], n_variants: int, at: int, readout: Readout) -> Values:
        assert at == batch.length - 1, "with every later head frozen, no other position reaches the logits"
        run = FrozenRun(batch, edits, n_variants, at)
        run.up_to(())
        return run.live.read_out(batch, readout)

    def received(
        self, batch: Batch, edits: Sequence[SenderEdit], n_variants: int, at: int, sites: Sequence[Site]
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
    model, clean, start = batch.model, batch.clean, live.start
    positions = torch.arange(start, clean.length, device=live.hidden.device)
    prefix = Prefix(clean.k[layer][:, :, :start], clean.v[layer][:, :, :start])
    with_rows = [(edit, live.rows_of(edit)) for edit in edits if edit.layer == layer]
    for edit, rows in with_rows:
        if isinstance(edit, ResidualEdit):
            live.hidden = replace_residual(live.hidden, edit, rows, edit.at - start)

    def handler(call: AttentionCall) -> Tensor:
        seen(call)
        window = Window.of(call, live.shape[0], prefix, call.allowed[0, 0])
        return attend_with_edits(window, start, with_rows).flatten(0, 1)

    with handled_by(handler), _outputs_edited(batch, live, with_rows):
        hidden = run_layer(model.layers[layer], live.hidden.flatten(0, 1), cut(clean.keywords[layer], positions))
    live.hidden = hidden.unflatten(0, live.shape[:2])


@contextmanager
def _outputs_edited(batch: Batch, live: LiveVariants, edits: EditsWithRows) -> Iterator[None]:
    with ExitStack() as stack:
        for edit, rows in edits:
            if isinstance(edit, Edit) and edit.what == "contribution":

                def edited(written: Tensor, edit: Edit = edit, rows: Tensor = rows) -> Tensor:
                    own, row = written.unflatten(0, live.shape[:2]), edit.at - live.start
                    added = edit.replacement.sum(2).expand(len(rows), own.shape[1], -1)
                    new = own[:, :, row].index_add(0, rows, added)
                    return own.select_scatter(new, dim=2, index=row).flatten(0, 1)

                stack.enter_context(edited_output(batch.model.attentions[edit.layer], edited))
            if isinstance(edit, MlpEdit):
                stack.enter_context(edited_mlp(batch.model, edit, live.shape, rows, edit.at - live.start))
        yield


def attend_with_edits(
    window: Window, start: int, edits: EditsWithRows
) -> Float[Tensor, "variant prompt query head d_head"]:
    """z of the window after knockouts and the edits of q, k, v, then of patterns, then of z and contributions."""
    knockouts = [(edit, rows) for edit, rows in edits if isinstance(edit, Knockout)]
    if knockouts:
        n_variants, _, n_heads = window.q.shape[:3]
        allowed = window.allowed.expand(n_variants, 1, n_heads, *window.allowed.shape)
        for knockout, rows in knockouts:
            allowed = block(allowed, knockout, rows, knockout.at - start)
        window = with_fields(window, allowed=allowed)
    replaced = [(edit, rows) for edit, rows in edits if isinstance(edit, Edit)]
    of = {what: [(e, rows) for e, rows in replaced if e.what == what] for what in get_args(What)}
    for edit, rows in of["q"]:
        new = replace(window.q[:, :, :, edit.at - start], edit, rows)
        window = with_fields(window, q=window.q.select_scatter(new, dim=3, index=edit.at - start))
    z = attend_window(window)

    kv_edits = [*of["k"], *of["v"]]
    for read_at in sorted({edit.read_at for edit, _ in kv_edits}, key=lambda at: -1 if at is None else at):
        seen = [(edit, rows) for edit, rows in kv_edits if edit.read_at in (None, read_at)]
        heads = torch.cat([edit.heads for edit, _ in seen]).unique()
        changed = attend_edited_heads(window, start, seen, heads)
        if read_at is None:
            z = z.index_copy(3, heads, changed)
        else:
            row = read_at - start
            z = z.select_scatter(z[:, :, row].index_copy(2, heads, changed[:, :, row]), dim=2, index=row)

    assert not (of["pattern"] and of["v"]), "a pattern is weighed with the run's own values"
    patterns = [(pattern_as_z(e, values_seen(window, e.heads, rows)), rows) for e, rows in of["pattern"]]
    taken = [(without_contribution(edit, z), rows) for edit, rows in of["contribution"]]
    for edit, rows in [*patterns, *of["z"], *taken]:
        z = z.select_scatter(replace(z[:, :, edit.at - start], edit, rows), dim=2, index=edit.at - start)
    return z


class LiveVariants:
    """The residual stream of the variants that have begun, at the window's positions."""

    hidden: Float[Tensor, "live prompt row d_model"]

    def __init__(
        self,
        clean: CleanRun,
        edits: Sequence[AnyEdit],
        n_variants: int,
        start: int,
        n_rows: int | None = None,
    ):
        assert start >= clean.start, "the clean run is kept from a later position on"
        self._clean = clean
        self._n_layers = len(clean.resid_pre)
        self.start = start
        self._rows = slice(start - clean.start, None if n_rows is None else start - clean.start + n_rows)
        begin = torch.full((n_variants,), self._n_layers)
        for edit in edits:
            begin[edit.variants] = begin[edit.variants].clamp(max=edit.layer)
        self._begin = begin
        self._row_of = torch.full((n_variants,), -1)
        self.ids = torch.empty(0, dtype=torch.long)
        self.hidden = clean.resid_pre[0][None, :, self._rows][:0]

    @property
    def first_layer(self) -> int:
        return int(self._begin.min()) if len(self._begin) else self._n_layers

    @property
    def shape(self) -> torch.Size:
        return self.hidden.shape

    def join(self, layer: int) -> None:
        """Adds the variants that begin at `layer`, with the clean residual stream."""
        new = (self._begin == layer).nonzero()[:, 0]
        if len(new) == 0:
            return
        self._row_of[new] = torch.arange(len(self.ids), len(self.ids) + len(new))
        self.ids = torch.cat([self.ids, new])
        clean = self._clean.resid_pre[layer][:, self._rows]
        self.hidden = torch.cat([self.hidden, clean.expand(len(new), *clean.shape)])

    def rows_of(self, edit: AnyEdit) -> Int[Tensor, " some"]:
        """Where in `hidden` the variants of an edit are."""
        return self._row_of[edit.variants].to(self.hidden.device)

    def read_out(self, batch: Batch, readout: Readout) -> Values:
        """What `readout` says at the last row; variants that never began are the clean run.

        The clean run's logits are not read where every variant began.
        """
        final, n_variants = self.hidden[:, :, -1], len(self._begin)
        if 0 < len(self.ids) == n_variants:
            return read_out(batch.model, final, readout).index_select(0, self._row_of.to(final.device))
        everyone = torch.arange(batch.n_prompts, device=final.device)
        clean = readout(batch.clean.logits, everyone)
        values = clean.expand(n_variants, *clean.shape)
        if len(self.ids) == 0:
            return values
        return values.index_copy(0, self.ids.to(values.device), read_out(batch.model, final, readout))


class FrozenRun:
    """Edits of z and of what MLPs add at position `at`, all other heads frozen."""

    def __init__(self, batch: Batch, edits: Sequence[SenderEdit], n_variants: int, at: int):
        assert all(edit.what in ("z", "mlp_out") and edit.at == at for edit in edits), (
            "a frozen run has edits of z and of what MLPs add, at one position"
        )
        self._batch, self._edits, self._at = batch, edits, at
        self.live = LiveVariants(batch.clean, edits, n_variants, start=at, n_rows=1)

    def up_to(self, sites: Sequence[Site]) -> list[Edit]:
        """Runs as far as the last site; what arrives at each, as an edit of the variants that had begun before.

        Without sites to the end.
        """
        assert all(site.what != "z" and site.at == self._at for site in sites), "one position is run, up to q, k and v"
        found: list[Edit] = []
        last = max((site.layer for site in sites), default=self._batch.model.n_layers)
        for layer in range(self.live.first_layer, last + 1):
            here = [site for site in sites if site.layer == layer]
            if here and len(self.live.ids):
                found += self._read(layer, here)
            if layer < last:
                self.live.join(layer)
                self._advance(layer)
        return found

    def _advance(self, layer: int) -> None:
        """Runs one layer with its attention replaced by what the frozen heads write."""
        model, live = self._batch.model, self.live
        output = self._attention_output(layer).flatten(0, 1)
        with_rows = [(edit, live.rows_of(edit)) for edit in self._edits if edit.layer == layer]
        with (
            replaced_forward(model.attentions[layer], lambda *_, **__: (output, None)),
            _outputs_edited(self._batch, live, with_rows),
        ):
            hidden = run_layer(model.layers[layer], live.hidden.flatten(0, 1), self._keywords(layer))
        live.hidden = hidden.unflatten(0, live.shape[:2])

    def _attention_output(self, layer: int) -> Float[Tensor, "live prompt 1 d_model"]:
        """What the clean run's attention wrote, but for the variants that edit this layer."""
        clean, live = self._batch.clean, self.live
        row = self._at - clean.start
        output = clean.attention_output[layer][:, row : row + 1].expand(live.shape)
        here = [edit for edit in self._edits if edit.layer == layer and isinstance(edit, Edit)]
        if not here:
            return output
        edited = torch.cat([live.rows_of(edit) for edit in here]).unique()
        frozen = clean.z_at(layer, self._at)
        z = frozen.expand(len(edited), *frozen.shape)
        for edit in here:
            z = replace(z, edit, torch.searchsorted(edited, live.rows_of(edit)))
        written = self._batch.model.projections[layer](z.flatten(2))
        return output.index_copy(0, edited, written[:, :, None])

    def _read(self, layer: int, sites: Sequence[Site]) -> list[Edit]:
        """What arrives at the sites of one layer, before its attention."""
        model, live = self._batch.model, self.live
        seen: list[AttentionCall] = []
        frozen = self._batch.clean.z_at(layer, self._at)

        def handler(call: AttentionCall) -> Tensor:
            seen.append(call)
            return frozen.repeat(live.shape[0], 1, 1)[:, None]

        with handled_by(handler):
            run_layer(model.layers[layer], live.hidden.flatten(0, 1), self._keywords(layer))
        whole = {site.what: expand_kv(getattr(seen[0], site.what), model.n_heads) for site in sites}
        arrived = [whole[site.what][:, site.heads, 0].unflatten(0, live.shape[:2]) for site in sites]
        return [Edit(layer, s.what, s.at, s.heads, live.ids, x) for s, x in zip(sites, arrived, strict=True)]

    def _keywords(self, layer: int) -> dict[str, object]:
        position = torch.tensor([self._at], device=self.live.hidden.device)
        return cut(self._batch.clean.keywords[layer], position)


@torch.no_grad()
def branched(batch: Batch, edits: Sequence[SenderEdit], start: int) -> Batch:
    """The batch whose clean run is the run with these edits, for window runs that change positions >= `start`.

    The edits are of one variant, number 0, all before `start`.
    """
    assert all(edit.what in BRANCHING and edit.at < start for edit in edits), "later edits would not build on these"
    clean, first = batch.clean, min(edit.first_changed for edit in edits)
    live = LiveVariants(clean, edits, 1, first)
    resid_pre = [resid[:, start - clean.start :] for resid in clean.resid_pre]
    k, v = list(clean.k), list(clean.v)

    def keep(call: AttentionCall) -> None:
        k[call.layer] = torch.cat([clean.k[call.layer][:, :, :first], call.k], dim=2)
        v[call.layer] = torch.cat([clean.v[call.layer][:, :, :first], call.v], dim=2)

    for layer in range(live.first_layer, batch.model.n_layers):
        live.join(layer)
        resid_pre[layer] = live.hidden[0][:, start - first :]
        run_window_layer(batch, live, layer, edits, keep)
    logits = batch.model.unembed(live.hidden[0][:, -1])
    known = with_fields(  # what window runs read, and nothing of what only frozen runs would
        clean, start=start, resid_pre=resid_pre, q=[], k=k, v=v, z=[], attention_output=[], logits=logits
    )
    return Batch(batch.model, batch.tokens, start, known)
