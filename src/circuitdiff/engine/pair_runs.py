"""What sweeps over the same prompt pairs share: clean runs, and what heads carry in the counterfactual prompts.

The clean runs are made in batches of their own, whichever sweep asks first, so that a study which is continued gives
the same numbers as one that was not interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine.capture import z_at_positions
from circuitdiff.engine.clean import CleanRun, run_clean
from circuitdiff.engine.executor import Batch
from circuitdiff.engine.memory import KEPT_SHARE, RUN_SHARE, batches, held_by_clean_run
from circuitdiff.engine.model import Model
from circuitdiff.prompts import Bucket, Pairs

_ENOUGH_PROMPTS = 16


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
