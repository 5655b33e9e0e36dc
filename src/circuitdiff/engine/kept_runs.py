"""Clean runs that are kept for later runs, as many as a given memory holds; other prompts are run anew each time.

They are made in batches of their own, whichever run asks first, so that a study which is continued gives the same
numbers as one that was not interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine.capture import stream_at_positions, z_at_positions
from circuitdiff.engine.executor import Batch, Progress
from circuitdiff.engine.fits import KEPT_SHARE, RUN_SHARE, clean_batches
from circuitdiff.engine.model import Model
from circuitdiff.engine.replay import CleanRun, Keywords, run_clean
from circuitdiff.prompts import Bucket, Pairs, PromptSet, buckets

_ENOUGH_PROMPTS = 16


class Need(NamedTuple):
    """Runs will change `role` and later positions, from `layer` on; in frozen ones heads keep what they carry."""

    role: str
    layer: int
    frozen: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """What is kept of the layer from the role on, as `CleanRun` names it."""
        return ("resid_pre", "z", "attention_output") if self.frozen else ("resid_pre",)


@dataclass(frozen=True)
class _OneLength:
    """What is kept of the prompts of one length. Keys and values of layers below every need are left out."""

    row: Int[Tensor, " prompt"]  # of each prompt of the set; -1 elsewhere
    start: Mapping[str, int]  # by role, the first position of `windows`
    windows: Mapping[tuple[str, Need], Float[Tensor, "row kept *any"]]
    kv: Mapping[tuple[str, int], Float[Tensor, "row kv_head pos width"]]  # by "k" or "v" and layer
    logits: Float[Tensor, "row d_vocab"]
    keywords: list[Keywords]

    def fill(self, clean: CleanRun, prompts: Int[Tensor, " prompt"]) -> None:
        row = self.row[prompts].to(clean.logits.device)
        for (name, need), kept in self.windows.items():
            kept[row] = getattr(clean, name)[need.layer][:, self.start[need.role] - clean.start :]
        for (name, layer), kept in self.kv.items():
            kept[row] = getattr(clean, name)[layer]
        self.logits[row] = clean.logits


@dataclass(frozen=True)
class KeptRuns:
    """Batches of prompts whose clean runs are there already, for the first `n_kept` prompts."""

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

    def batch(self, bucket: Bucket, start: int, needs: Sequence[Need]) -> Batch:
        """The bucket's prompts, ready for edits from `start` on, which meet some of the kept needs, all of one role."""
        tokens = self.prompts.tokens[bucket.prompts, : bucket.length].to(self.model.device)
        known = self._clean(bucket, tokens, start, needs) if self.are_kept(bucket) else None
        return Batch(self.model, tokens, start, known)

    def are_kept(self, bucket: Bucket) -> bool:
        """Whether all of the bucket's prompts are."""
        return bool((bucket.prompts < self.n_kept).all())

    def _clean(self, bucket: Bucket, tokens: Int[Tensor, "prompt pos"], start: int, needs: Sequence[Need]) -> CleanRun:
        """A clean run that holds what the needs ask for, and nan or nothing where it is not to be read."""
        model, kept, first = self.model, self._by_length[bucket.length], min(need.layer for need in needs)
        row, window = kept.row[bucket.prompts].to(model.device), slice(start - kept.start[needs[0].role], None)
        windows = {(name, need.layer): kept.windows[name, need][row, window] for need in needs for name in need.parts}
        kv = {(name, layer): both[row] for (name, layer), both in kept.kv.items() if layer >= first}

        def of_layers(parts: Mapping[tuple[str, int], Tensor], name: str) -> list[Tensor]:
            nan = parts[name, first].new_full((), torch.nan).expand_as(parts[name, first])
            return [parts.get((name, layer), nan) for layer in range(model.n_layers)]

        return CleanRun(
            tokens=tokens,
            start=start,
            resid_pre=of_layers(windows, "resid_pre"),
            q=[],  # an edited q replaces it, and no other is looked at
            k=of_layers(kv, "k"),
            v=of_layers(kv, "v"),
            z=[windows["z", need.layer] for need in needs if need.frozen],
            attention_output=[windows["attention_output", need.layer] for need in needs if need.frozen],
            keywords=kept.keywords,
            logits=kept.logits[row],
        )


@torch.no_grad()
def keep_runs(
    model: Model,
    prompts: PromptSet,
    needs: Sequence[Need],
    kept_gb: float,
    memory_gb: float,
    progress: Progress | None = None,
) -> KeptRuns:
    """Runs as many of the prompts, from the first on, as can be kept in `kept_gb`; each batch in its `memory_gb`."""
    needs, by_length = list(dict.fromkeys(needs)), dict[int, _OneLength]()
    n_kept = min(len(prompts), int(kept_gb * 2**30 / _bytes_per_prompt(model, prompts, needs)))
    few, done = prompts.select(torch.arange(n_kept)), 0
    for bucket in clean_batches(model, few, (), memory_gb, _ENOUGH_PROMPTS) if n_kept else ():
        alike = few.lengths == bucket.length
        start = {need.role: int(few.positions[need.role][alike].clamp(min=0).min()) for need in needs}
        clean = run_clean(model, few.tokens[bucket.prompts, : bucket.length], min(start.values()))
        if bucket.length not in by_length:
            by_length[bucket.length] = _room(clean, torch.where(alike, alike.cumsum(0) - 1, -1), start, needs)
        by_length[bucket.length].fill(clean, bucket.prompts)
        done += len(bucket.prompts)
        if progress:
            progress(done, n_kept)
    return KeptRuns(model, prompts, n_kept, by_length)


def kept_gb(model: Model, prompts: PromptSet, needs: Sequence[Need], memory_gb: float) -> float:
    """The memory that `keep_runs` takes."""
    return min(memory_gb, len(prompts) * _bytes_per_prompt(model, prompts, list(dict.fromkeys(needs))) / 2**30)


def _room(clean: CleanRun, row: Int[Tensor, " prompt"], start: Mapping[str, int], needs: Sequence[Need]) -> _OneLength:
    """Empty tensors for the prompts of one length, like those of a clean run of some."""
    n_rows, first = int(row.max()) + 1, min(need.layer for need in needs)

    def room(like: Tensor, n_skipped: int = 0) -> Tensor:
        return like.new_empty(n_rows, like.shape[1] - n_skipped, *like.shape[2:])

    windows = {
        (name, need): room(getattr(clean, name)[need.layer], start[need.role] - clean.start)
        for need in needs
        for name in need.parts
    }
    kv = {(name, n): room(getattr(clean, name)[n]) for name in ("k", "v") for n in range(first, len(clean.k))}
    return _OneLength(row, start, windows, kv, room(clean.logits), clean.keywords)


def _bytes_per_prompt(model: Model, prompts: PromptSet, needs: Sequence[Need]) -> int:
    """Of the longest prompt, with every need's longest window."""
    hidden, length = model.module.config.get_text_config().hidden_size, int(prompts.lengths.max())
    width = {need.role: int((prompts.lengths - prompts.positions[need.role]).max()) for need in needs}
    per_row = {True: 2 * hidden + model.n_heads * model.d_head, False: hidden}
    windows = sum(width[need.role] * per_row[need.frozen] for need in needs)
    n_layers = model.n_layers - min(need.layer for need in needs)
    kv = n_layers * model.n_kv_heads * length * (model.d_query + model.d_head)
    return model.dtype.itemsize * (windows + kv + model.d_vocab)


class PairRuns:
    """Serves sweeps at `roles` with clean runs, and with what heads carry in the counterfactual prompts.

    With `keep=False`, for a sweep that shares with none, no clean run is kept.
    """

    def __init__(
        self, model: Model, pairs: Pairs, roles: Sequence[str], memory_gb: float, *, keep: bool = True
    ) -> None:
        self.model, self.pairs = model, pairs
        self._roles = [role for role in dict.fromkeys(roles) if role in pairs.positions]
        self._memory_gb, self._kept_gb = memory_gb, KEPT_SHARE * memory_gb if keep else 0.0
        self._needs = [Need("first", layer, frozen=True) for layer in range(model.n_layers)]

    @property
    def may_take_gb(self) -> float:
        """The memory of what is kept, once it is there, and of the sources."""
        model, n_sources = self.model, len(self.pairs) * len(self._roles)
        sources = n_sources * model.n_layers * model.n_heads * model.d_head * model.dtype.itemsize
        return kept_gb(model, self._clean_prompts, self._needs, self._kept_gb) + sources / 2**30

    def source(self, role: str) -> Float[Tensor, "layer prompt head d_head"]:
        """Every head's z at a role of each counterfactual prompt."""
        return self._sources[:, :, self._roles.index(role)]

    def mlp_source(self, role: str) -> Float[Tensor, "layer prompt d_model"]:
        """What every MLP adds at a role of each counterfactual prompt."""
        return self._mlp_sources[:, :, self._roles.index(role)]

    def batch(self, bucket: Bucket, start: int) -> Batch:
        """The clean prompts of a bucket; no position before `start` will be edited."""
        return self._runs.batch(bucket, start, self._needs)

    @cached_property
    def _sources(self) -> Float[Tensor, "layer prompt role head d_head"]:
        prompts = self.pairs.counterfactual_prompts
        return z_at_positions(self.model, prompts, self._places, RUN_SHARE * self._memory_gb)

    @cached_property
    def _mlp_sources(self) -> Float[Tensor, "layer prompt role d_model"]:
        prompts, layers = self.pairs.counterfactual_prompts, range(self.model.n_layers)
        memory_gb = RUN_SHARE * self._memory_gb
        return stream_at_positions(self.model, "mlp_out", prompts, self._places, layers, memory_gb=memory_gb)[0]

    @property
    def _places(self) -> Int[Tensor, "prompt role"]:
        positions = self.pairs.counterfactual_prompts.positions
        return torch.stack([positions[role] for role in self._roles], dim=1).clamp(min=0)

    @cached_property
    def _runs(self) -> KeptRuns:
        return keep_runs(self.model, self._clean_prompts, self._needs, self._kept_gb, self._memory_gb)

    @cached_property
    def _clean_prompts(self) -> PromptSet:
        """With the first position that a sweep may change as a role."""
        at = torch.stack([self.pairs.positions[role] for role in self._roles]).amin(0).clamp(min=0)
        return replace(self.pairs.clean_prompts, positions={"first": at})
