"""A run with edits as the ground on which further edits build.

Variants that do the same at early positions share that part: it is run once, and each of them then costs only what it
changes later on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from circuitdiff.engine.attention import AttentionCall
from circuitdiff.engine.clean import CleanRun
from circuitdiff.engine.edits import Edit, What
from circuitdiff.engine.executor import Batch
from circuitdiff.engine.variants import LiveVariants
from circuitdiff.engine.window import run_window_layer

# Where query heads share a key or value, an edit of it is seen by one head: no run has such keys.
BRANCHING: frozenset[What] = frozenset(["z", "q", "pattern", "contribution"])


@torch.no_grad()
def branched(batch: Batch, edits: Sequence[Edit], start: int) -> Batch:
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
    return Batch(batch.model, batch.tokens, start, _as_clean(batch, start, resid_pre, k, v, live))


def _as_clean(
    batch: Batch,
    start: int,
    resid_pre: list[torch.Tensor],
    k: list[torch.Tensor],
    v: list[torch.Tensor],
    live: LiveVariants,
) -> CleanRun:
    """What window runs read; nan where only frozen runs would."""
    clean, model = batch.clean, batch.model
    nan = torch.full((), torch.nan, dtype=model.dtype, device=model.device)
    q = nan.expand(batch.n_prompts, model.n_heads, batch.length - start, model.d_head)
    return CleanRun(
        tokens=clean.tokens,
        start=start,
        resid_pre=resid_pre,
        q=[q] * model.n_layers,
        k=k,
        v=v,
        z=[q.transpose(1, 2)] * model.n_layers,
        attention_output=[nan.expand(resid.shape) for resid in resid_pre],
        keywords=clean.keywords,
        logits=model.unembed(live.hidden[0][:, -1]),
    )
