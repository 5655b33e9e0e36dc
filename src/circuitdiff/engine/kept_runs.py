"""Clean runs of many prompts, kept as far as later window runs need them, within a given memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine.clean import CleanRun, run_clean
from circuitdiff.engine.executor import Batch
from circuitdiff.engine.fits import check_prompts
from circuitdiff.engine.memory import RUN_SHARE, batches, held_by_clean_run
from circuitdiff.engine.model import Model
from circuitdiff.engine.replay import Keywords, embed
from circuitdiff.prompts import Bucket, PromptSet, buckets

Progress = Callable[[int, int], None]  # done, of how many

_ENOUGH_PROMPTS = 16


class Need(NamedTuple):
    """Runs will change `role` and later positions, from `layer` on."""

    role: str
    layer: int


@dataclass(frozen=True)
class _OneLength:
    """What is kept of the prompts of one length. Layers below every need are left out."""

    row: Int[Tensor, " prompt"]  # of each prompt of the set; -1 elsewhere
    k: Mapping[int, Float[Tensor, "row kv_head pos d_head"]]
    v: Mapping[int, Float[Tensor, "row kv_head pos d_head"]]
    start: Mapping[Need, int]
    resid_pre: Mapping[Need, Float[Tensor, "row kept d_model"]]  # entering the need's layer, from `start` on
    logits: Float[Tensor, "row d_vocab"]
    keywords: list[Keywords]


@dataclass(frozen=True)
class KeptRuns:
    """Batches of prompts whose clean runs are there already; those that did not fit are run anew each time.

    The first prompts are the ones that are kept.
    """

    model: Model
    prompts: PromptSet
    n_kept: int
    _by_length: Mapping[int, _OneLength]

    def buckets(self, role: str, rows: Int[Tensor, " chosen"], largest: int) -> list[Bucket]:
        """The chosen prompts by length, position of `role`, and whether they are kept."""
        parts = (part for part in (rows[rows < self.n_kept], rows[rows >= self.n_kept]) if len(part))
        return [
            replace(bucket, prompts=part[bucket.prompts])
            for part in parts
            for bucket in buckets(self.prompts.select(part), [role], largest)
        ]

    def batch(self, need: Need, bucket: Bucket) -> Batch:
        """The bucket's prompts, ready for edits from its position of the need's role, and from the need's layer, on."""
        start, tokens = bucket.positions[need.role], self.prompts.tokens[bucket.prompts, : bucket.length]
        tokens = tokens.to(self.model.device)
        known = self._clean(need, bucket, tokens) if self.are_kept(bucket) else None
        return Batch(self.model, tokens, start, known)

    def are_kept(self, bucket: Bucket) -> bool:
        """Whether all of the bucket's prompts are."""
        return bool((bucket.prompts < self.n_kept).all())

    def _clean(self, need: Need, bucket: Bucket, tokens: Int[Tensor, "prompt pos"]) -> CleanRun:
        """A clean run that holds what the need asks for, and nan where it is not to be read."""
        model, kept, n_prompts = self.model, self._by_length[bucket.length], len(bucket.prompts)
        row, start = kept.row[bucket.prompts].to(model.device), bucket.positions[need.role]
        nan = torch.full((), torch.nan, dtype=model.dtype, device=model.device)
        resid = kept.resid_pre[need][row, start - kept.start[need] :]
        n_kept, layers = resid.shape[1], range(model.n_layers)
        kv = nan.expand(n_prompts, model.n_kv_heads, bucket.length, model.d_head)
        q = nan.expand(n_prompts, model.n_heads, n_kept, model.d_head)
        return CleanRun(
            tokens=tokens,
            start=start,
            resid_pre=[resid if layer == need.layer else nan.expand(resid.shape) for layer in layers],
            q=[q for _ in layers],
            k=[kept.k[layer][row] if layer >= need.layer else kv for layer in layers],
            v=[kept.v[layer][row] if layer >= need.layer else kv for layer in layers],
            z=[q.transpose(1, 2) for _ in layers],
            attention_output=[nan.expand(resid.shape) for _ in layers],
            keywords=kept.keywords,
            logits=kept.logits[row],
        )


@torch.no_grad()
def keep_runs(
    model: Model, prompts: PromptSet, needs: Sequence[Need], memory_gb: float, progress: Progress | None = None
) -> KeptRuns:
    """Runs as many of the prompts, from the first on, as can be kept in `memory_gb`."""
    check_prompts(model, prompts)
    needs, held = list(dict.fromkeys(needs)), held_by_clean_run(model)
    n_kept = min(len(prompts), int(memory_gb * 2**30 / _bytes_per_prompt(model, prompts, needs)))
    few, done = prompts.select(torch.arange(n_kept)), 0
    by_length = {int(n): _room(model, few, needs, int(n), len(prompts)) for n in few.lengths.unique()}
    run_gb = RUN_SHARE * memory_gb
    for bucket in batches(model, few, (), run_gb, largest=_ENOUGH_PROMPTS, held=held) if n_kept else ():
        kept = by_length[bucket.length]
        clean = run_clean(model, few.tokens[bucket.prompts, : bucket.length], min(kept.start.values(), default=0))
        _fill(kept, clean, bucket)
        done += len(bucket.prompts)
        if progress:
            progress(done, n_kept)
    return KeptRuns(model, prompts, n_kept, by_length)


def _fill(kept: _OneLength, clean: CleanRun, bucket: Bucket) -> None:
    row = kept.row[bucket.prompts].to(clean.logits.device)
    for layer in kept.k:
        kept.k[layer][row] = clean.k[layer]
        kept.v[layer][row] = clean.v[layer]
    for need, resid in kept.resid_pre.items():
        resid[row] = clean.resid_pre[need.layer][:, kept.start[need] - clean.start :]
    kept.logits[row] = clean.logits


def _room(model: Model, prompts: PromptSet, needs: Sequence[Need], length: int, n_all: int) -> _OneLength:
    """Empty tensors for the prompts of one length."""
    mine = (prompts.lengths == length).nonzero()[:, 0]
    row = torch.full((n_all,), -1)
    row[mine] = torch.arange(len(mine))
    start = {need: int(prompts.positions[need.role][mine].min()) for need in needs}
    first = min((need.layer for need in needs), default=model.n_layers)

    def room(*shape: int) -> Tensor:
        return torch.empty(len(mine), *shape, dtype=model.dtype, device=model.device)

    kv = (model.n_kv_heads, length, model.d_head)
    resid, keywords = embed(model, prompts.tokens[mine[:1], :length])
    return _OneLength(
        row=row,
        k={layer: room(*kv) for layer in range(first, model.n_layers)},
        v={layer: room(*kv) for layer in range(first, model.n_layers)},
        start=start,
        resid_pre={need: room(length - start[need], resid.shape[-1]) for need in needs},
        logits=room(_d_vocab(model, resid)),
        keywords=keywords,
    )


def _bytes_per_prompt(model: Model, prompts: PromptSet, needs: Sequence[Need]) -> float:
    """Of the longest prompt."""
    first = min((need.layer for need in needs), default=model.n_layers)
    longest = int(prompts.lengths.argmax())
    length = int(prompts.lengths[longest])
    resid, _ = embed(model, prompts.tokens[longest : longest + 1, :length])
    widest = sum(int((prompts.lengths - prompts.positions[need.role]).max()) for need in needs)
    kv = 2 * (model.n_layers - first) * model.n_kv_heads * length * model.d_head
    return model.dtype.itemsize * (kv + widest * resid.shape[-1] + _d_vocab(model, resid))


def _d_vocab(model: Model, resid: Float[Tensor, "prompt pos d_model"]) -> int:
    return model.unembed(resid[:1, -1]).shape[1]
