"""Clean runs that are kept for later runs, as many as a given memory holds: for window runs, and for sweeps over pairs.

Sweeps over the same prompt pairs also share what heads carry in the counterfactual prompts. Their clean runs are made
in batches of their own, whichever sweep asks first, so that a study which is continued gives the same numbers as one
that was not interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine.capture import z_at_positions
from circuitdiff.engine.executor import Batch
from circuitdiff.engine.fits import KEPT_SHARE, RUN_SHARE, batches, check_prompts, held_by_clean_run
from circuitdiff.engine.model import Model
from circuitdiff.engine.replay import CleanRun, Keywords, embed, run_clean
from circuitdiff.prompts import Bucket, Pairs, PromptSet, buckets

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


@torch.no_grad()
def kept_gb(model: Model, prompts: PromptSet, needs: Sequence[Need], memory_gb: float) -> float:
    """The memory that `keep_runs` takes."""
    needs = list(dict.fromkeys(needs))
    return min(memory_gb, len(prompts) * _bytes_per_prompt(model, prompts, needs) / 2**30)


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


class PairRuns:
    """Serves sweeps at `roles`. The first prompts' clean runs are kept, as many as fit; the others are run anew.

    With `keep=False`, for a sweep that shares with none, all are.
    """

    def __init__(
        self, model: Model, pairs: Pairs, roles: Sequence[str], memory_gb: float, *, keep: bool = True
    ) -> None:
        self.model, self.pairs = model, pairs
        self._roles = [role for role in dict.fromkeys(roles) if role in pairs.positions]
        self.memory_gb, self._keep = memory_gb, keep

    @property
    def may_take_gb(self) -> float:
        """The memory of what is kept, once it is there, and of the sources."""
        model, most = self.model, KEPT_SHARE * self.memory_gb if self._keep else 0.0
        sources = len(self._roles) * model.n_layers * model.n_heads * model.d_head * model.dtype.itemsize
        return min(most, len(self.pairs) * self._bytes_per_prompt() / 2**30) + len(self.pairs) * sources / 2**30

    def source(self, role: str) -> Float[Tensor, "layer prompt head d_head"]:
        """Every head's z at a role of each counterfactual prompt."""
        return self._sources[:, :, self._roles.index(role)]

    def batch(self, bucket: Bucket, start: int) -> Batch:
        """The clean prompts of a bucket; no position before `start` will be edited."""
        tokens = self.pairs.clean[bucket.prompts, : bucket.length].to(self.model.device)
        kept = bool((bucket.prompts < len(self._kept)).all())
        known = _joined([self._kept[i] for i in bucket.prompts.tolist()]) if kept else None
        return Batch(self.model, tokens, start, known)

    @cached_property
    def _sources(self) -> Float[Tensor, "layer prompt role head d_head"]:
        prompts = self.pairs.counterfactual_prompts
        places = torch.stack([prompts.positions[role] for role in self._roles], dim=1)
        return z_at_positions(self.model, prompts, places.clamp(min=0), RUN_SHARE * self.memory_gb)

    @cached_property
    def _start(self) -> Int[Tensor, " prompt"]:
        """The first position that a sweep may change."""
        return torch.stack([self.pairs.positions[role] for role in self._roles]).amin(0).clamp(min=0)

    @cached_property
    def _kept(self) -> list[CleanRun]:
        """Of the first prompts, each a batch of one."""
        n_kept = min(len(self.pairs), int(KEPT_SHARE * self.memory_gb * 2**30 / self._bytes_per_prompt()))
        if not self._keep or not n_kept:
            return []
        few, kept = self.pairs.clean_prompts.select(torch.arange(n_kept)), dict[int, CleanRun]()
        memory_gb, held = RUN_SHARE * self.memory_gb, held_by_clean_run(self.model)
        for bucket in batches(self.model, few, (), memory_gb, largest=_ENOUGH_PROMPTS, held=held):
            start = self._start[bucket.prompts]
            run = run_clean(self.model, few.tokens[bucket.prompts, : bucket.length], int(start.min()))
            for row, (prompt, first) in enumerate(zip(bucket.prompts.tolist(), start.tolist(), strict=True)):
                kept[prompt] = _of_one(run, row, first)
        return [kept[i] for i in range(n_kept)]

    def _bytes_per_prompt(self) -> int:
        model, text = self.model, self.model.module.config.get_text_config()
        length, rows = int(self.pairs.lengths.max()), int((self.pairs.lengths - self._start).max())
        per_layer = rows * (2 * text.hidden_size + model.n_heads * model.d_head)
        per_layer += 2 * length * model.n_kv_heads * model.d_head
        return model.dtype.itemsize * (model.n_layers * per_layer + text.vocab_size)


def _of_one(run: CleanRun, row: int, start: int) -> CleanRun:
    """What a sweep reads of one prompt's run. Its q is left out: an edited q replaces it, and no other is looked at."""
    one, rows = slice(row, row + 1), slice(start - run.start, None)

    def cut(layers: list[Tensor]) -> list[Tensor]:
        return [x[one, rows].clone() for x in layers]

    return CleanRun(
        tokens=run.tokens[one],
        start=start,
        resid_pre=cut(run.resid_pre),
        q=[],
        k=[x[one].clone() for x in run.k],
        v=[x[one].clone() for x in run.v],
        z=cut(run.z),
        attention_output=cut(run.attention_output),
        keywords=run.keywords,
        logits=run.logits[one].clone(),
    )


def _joined(runs: Sequence[CleanRun]) -> CleanRun:
    """One run of prompts of one length, from the last of their first kept positions on."""
    start = max(run.start for run in runs)

    def rows(name: str) -> list[Tensor]:
        each = [[x[:, start - run.start :] for x in getattr(run, name)] for run in runs]
        return [torch.cat(parts) for parts in zip(*each, strict=True)]

    return CleanRun(
        tokens=torch.cat([run.tokens for run in runs]),
        start=start,
        resid_pre=rows("resid_pre"),
        q=[],
        k=[torch.cat(parts) for parts in zip(*(run.k for run in runs), strict=True)],
        v=[torch.cat(parts) for parts in zip(*(run.v for run in runs), strict=True)],
        z=rows("z"),
        attention_output=rows("attention_output"),
        keywords=runs[0].keywords,
        logits=torch.cat([run.logits for run in runs]),
    )
