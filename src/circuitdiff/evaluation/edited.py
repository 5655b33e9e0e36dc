"""What a model answers while it is edited: many variants of a run on the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.engine import Batch, Edit, Knockout, Model, executor_named
from circuitdiff.engine.executor import Readout
from circuitdiff.engine.memory import DEFAULT_MEMORY_GB, rows_at_once
from circuitdiff.evaluation.answers import answers_readout
from circuitdiff.evaluation.circuits import Progress
from circuitdiff.prompts import Bucket, Pairs, buckets

V = TypeVar("V")
_FEWEST_PROMPTS = 8  # a clean run of fewer wastes the machine


@dataclass(frozen=True)
class Editing(Generic[V]):
    """How variants of a run become edits of a bucket of prompts."""

    roles: Sequence[str]  # whose positions all prompts of a bucket share
    begins: Callable[[V, Bucket], int]  # the first position that a variant changes
    edits: Callable[[Sequence[V], Bucket], Sequence[Edit | Knockout]]  # of these variants, numbered from 0


@torch.no_grad()
def run_edited(
    model: Model,
    pairs: Pairs,
    variants: Sequence[V],
    editing: Editing[V],
    *,
    readout_of: Callable[[Bucket], Readout] | None = None,
    executor: str = "window",
    memory_gb: float = DEFAULT_MEMORY_GB,
    progress: Progress | None = None,
) -> Float[Tensor, "variant prompt value"]:
    """What a readout (by default `answers_readout`) says of each variant's logits after each prompt."""
    runner, rows = executor_named(executor), rows_at_once(model, memory_gb)
    found: Tensor | None = None
    done, width = 0, int(pairs.lengths.max() - min(int(pairs.positions[role].min()) for role in editing.roles))
    at_once = max(_FEWEST_PROMPTS, rows // max(1, len(variants) * width))
    for bucket in buckets(pairs.clean_prompts, editing.roles, at_once):
        readout = readout_of(bucket) if readout_of else answers_readout(pairs.select(bucket.prompts), model.device)
        begin = [editing.begins(variant, bucket) for variant in variants]
        tokens = pairs.clean[bucket.prompts, : bucket.length].to(model.device)
        batch = Batch(model, tokens, min(begin, default=bucket.length - 1))
        for part in _parts(begin, bucket, rows):
            edits = editing.edits([variants[i] for i in part.tolist()], bucket)
            values = runner.run(batch, edits, len(part), readout).cpu()
            if found is None:
                found = values.new_empty(len(variants), len(pairs), values.shape[-1])
            found[part[:, None], bucket.prompts] = values
            done += len(part) * len(bucket.prompts)
            if progress:
                progress(done, len(variants) * len(pairs))
    assert found is not None, "there is a variant and a prompt"
    return found


def _parts(begin: Sequence[int], bucket: Bucket, rows: int) -> Iterator[Tensor]:
    """Variants that begin at the same position, which sets the window; as many together as the memory takes."""
    for start in sorted(set(begin)):
        mine = torch.tensor([i for i, at in enumerate(begin) if at == start])
        yield from mine.split(max(1, rows // (len(bucket.prompts) * (bucket.length - start))))
