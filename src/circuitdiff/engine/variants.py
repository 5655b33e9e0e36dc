"""The variants of a window run: each joins the batch at the layer of its first edit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine.clean import CleanRun
from circuitdiff.engine.edits import Edit, Knockout
from circuitdiff.engine.executor import Batch, Readout, read_out


class LiveVariants:
    """The residual stream of the variants that have begun, at the window's positions."""

    hidden: Float[Tensor, "live prompt row d_model"]

    def __init__(
        self,
        clean: CleanRun,
        edits: Sequence[Edit | Knockout],
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

    def rows_of(self, edit: Edit | Knockout) -> Int[Tensor, " some"]:
        """Where in `hidden` the variants of an edit are."""
        return self._row_of[edit.variants].to(self.hidden.device)

    def read_out(self, batch: Batch, readout: Readout) -> Float[Tensor, "variant prompt value"]:
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
