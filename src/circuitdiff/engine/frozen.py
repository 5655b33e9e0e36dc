"""The window executor's frozen run: one position, no attention.

With every other head frozen at its clean z from the edited position on, only the residual stream at that one position
changes, through the MLPs. A layer's attention then writes what it wrote in the clean run, but for the edited heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.engine.attention import AttentionCall, expand_kv, handled_by
from circuitdiff.engine.edits import Edit, Site, replace
from circuitdiff.engine.executor import Batch
from circuitdiff.engine.model import replaced_forward
from circuitdiff.engine.replay import cut, run_layer
from circuitdiff.engine.variants import LiveVariants


class FrozenRun:
    """Edits of z at position `at`, all other heads frozen."""

    def __init__(self, batch: Batch, edits: Sequence[Edit], n_variants: int, at: int):
        assert all(edit.what == "z" and edit.at == at for edit in edits), "a frozen run has edits of z at one position"
        self._batch, self._edits, self._at = batch, edits, at
        self.live = LiveVariants(batch.clean, edits, n_variants, start=at, n_rows=1)

    def to_the_end(self) -> None:
        """Runs every layer."""
        for layer in range(self.live.first_layer, self._batch.model.n_layers):
            self.live.join(layer)
            self._advance(layer)

    def up_to(self, sites: Sequence[Site]) -> list[Edit]:
        """Runs as far as the last site; what arrives at each, as an edit of the variants that had begun before."""
        assert all(site.what != "z" and site.at == self._at for site in sites), "one position is run, up to q, k and v"
        found: list[Edit] = []
        last = max(site.layer for site in sites)
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
        with replaced_forward(model.attentions[layer], lambda *_, **__: (output, None)):
            hidden = run_layer(model.layers[layer], live.hidden.flatten(0, 1), self._keywords(layer))
        live.hidden = hidden.unflatten(0, live.shape[:2])

    def _attention_output(self, layer: int) -> Float[Tensor, "live prompt 1 d_model"]:
        """What the clean run's attention wrote, but for the variants that edit this layer."""
        clean, live = self._batch.clean, self.live
        row = self._at - clean.start
        output = clean.attention_output[layer][:, row : row + 1].expand(live.shape)
        here = [edit for edit in self._edits if edit.layer == layer]
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
        return [Edit(layer, site.what, site.at, site.heads, live.ids, self._values(seen[0], site)) for site in sites]

    def _values(self, call: AttentionCall, site: Site) -> Float[Tensor, "live prompt wanted d_head"]:
        whole = expand_kv(getattr(call, site.what), call.q.shape[1])
        return whole[:, site.heads, 0].unflatten(0, self.live.shape[:2])

    def _keywords(self, layer: int) -> dict[str, object]:
        position = torch.tensor([self._at], device=self.live.hidden.device)
        return cut(self._batch.clean.keywords[layer], position)
