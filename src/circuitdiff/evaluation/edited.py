"""What a model answers while it is edited: many variants of a run on the same prompts, such as heads taken out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Circuit, Head
from circuitdiff.engine import Batch, Edit, Model, executor_named
from circuitdiff.engine.edits import AnyEdit, SenderEdit
from circuitdiff.engine.executor import Readout
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB, ROWS_SHARE, check_pairs, clean_batches, rows_at_once
from circuitdiff.engine.window import branched
from circuitdiff.evaluation.answers import Evaluation, answers_readout, evaluate_model, evaluation_of
from circuitdiff.evaluation.circuits import Progress, checked_roles
from circuitdiff.evaluation.constants import Replacement, replacement_at
from circuitdiff.prompts import Bucket, Pairs

V = TypeVar("V")
_FEWEST_PROMPTS = 8  # a clean run of fewer wastes the machine


@dataclass(frozen=True)
class Editing(Generic[V]):
    """How variants of a run become edits of a bucket of prompts.

    `split`: what a variant does at its first position, which must be hashable, and the rest. Variants with the same
    first part then share the run of it; None: they do not, as where keys or values are edited.
    """

    roles: Sequence[str]  # whose positions all prompts of a bucket share
    begins: Callable[[V, Bucket], int]  # the first position that a variant changes
    edits: Callable[[Sequence[V], Bucket], Sequence[AnyEdit]]  # of these variants, numbered from 0
    split: Callable[[V, Bucket], tuple[V, V]] | None = None


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
    check_pairs(model, pairs, "an edited run")
    runner = executor_named(executor)
    rows = rows_at_once(model, ROWS_SHARE * memory_gb, int(pairs.lengths.max()))
    found: Tensor | None = None
    done, width = 0, int(pairs.lengths.max() - min(int(pairs.positions[role].min()) for role in editing.roles))
    largest = max(_FEWEST_PROMPTS, rows // max(1, len(variants) * width))
    for bucket in clean_batches(model, pairs.clean_prompts, editing.roles, memory_gb, largest):
        readout = readout_of(bucket) if readout_of else answers_readout(pairs.select(bucket.prompts), model.device)
        begin = (editing.begins(variant, bucket) for variant in variants)
        tokens = pairs.clean[bucket.prompts, : bucket.length].to(model.device)
        batch = Batch(model, tokens, min(begin, default=bucket.length - 1))
        numbered = list(enumerate(variants))
        for clean, part in _parts(batch, numbered, editing, bucket, rows, branches=executor == "window"):
            edits = editing.edits([variant for _, variant in part], bucket)
            values = runner.run(clean, edits, len(part), readout).cpu()
            if found is None:
                found = values.new_empty(len(variants), len(pairs), values.shape[-1])
            found[torch.tensor([number for number, _ in part])[:, None], bucket.prompts] = values
            done += len(part) * len(bucket.prompts)
            if progress:
                progress(done, len(variants) * len(pairs))
    assert found is not None, "there is a variant and a prompt"
    return found


def _parts(
    batch: Batch, variants: Sequence[tuple[int, V]], editing: Editing[V], bucket: Bucket, rows: int, *, branches: bool
) -> Iterator[tuple[Batch, list[tuple[int, V]]]]:
    """Variants that begin at the same position, which sets the window; as many together as the memory takes.

    Those that do the same there build on one run of it.
    """
    by_start: dict[int, list[tuple[int, V]]] = {}
    for number, variant in variants:
        by_start.setdefault(editing.begins(variant, bucket), []).append((number, variant))
    for start, mine in sorted(by_start.items()):
        alike: dict[Hashable, list[tuple[int, V, V]]] = {}  # by the first part, or the number of one that shares none
        for number, variant in mine:
            first, rest = editing.split(variant, bucket) if branches and editing.split else (None, variant)
            alike.setdefault(first or number, []).append((number, variant, rest))
        alone = [(number, variant) for its in alike.values() for number, variant, _ in its if len(its) == 1]
        at_once = max(1, rows // (len(bucket.prompts) * (bucket.length - start)))
        for i in range(0, len(alone), at_once):
            yield batch, alone[i : i + at_once]
        for first, its in alike.items():
            if len(its) > 1:
                rests = [(number, rest) for number, _, rest in its]
                edits = [edit for edit in editing.edits([first], bucket) if isinstance(edit, SenderEdit)]  # pyright: ignore
                branch = branched(batch, edits, min(editing.begins(rest, bucket) for _, rest in rests))
                yield from _parts(branch, rests, editing, bucket, rows, branches=True)


@torch.no_grad()
def evaluate_without(
    model: Model,
    removed: Sequence[Circuit],
    pairs: Pairs,
    means: Replacement,
    executor: str = "window",
    progress: Progress | None = None,
    *,
    memory_gb: float = DEFAULT_MEMORY_GB,
) -> list[Evaluation]:
    """What the model answers with the heads of each of `removed` at their mean, each at its own role only.

    Nothing else is touched: all other heads, and these heads at other positions, compute what follows.

    Raises: InputError if the model lacks a head or the task a role.
    """
    roles = checked_roles(model, removed, pairs, means)
    if not roles:
        return [evaluate_model(model, pairs)] * len(removed)
    constants = {role: replacement_at(model, pairs, role, means) for role in roles}
    editing = Editing[Circuit](
        roles,
        begins=lambda gone, bucket: min((bucket.positions[role] for role in gone.roles), default=bucket.length - 1),
        edits=lambda variants, bucket: removal_edits(variants, bucket, constants),
    )
    values = run_edited(model, pairs, removed, editing, executor=executor, memory_gb=memory_gb, progress=progress)
    return [evaluation_of(value, pairs) for value in values]


def removal_edits(
    removed: Sequence[Circuit], bucket: Bucket, constants: Mapping[str, Float[Tensor, " layer prompt head d_head"]]
) -> list[Edit]:
    """One edit for each head and role, of all variants that remove it; `constants` are all prompts'."""
    variants: dict[tuple[str, Head], list[int]] = {}
    for i, circuit in enumerate(removed):
        for role in circuit.roles:
            for head in circuit.heads_at(role):
                variants.setdefault((role, head), []).append(i)
    return [
        Edit(
            head.layer,
            "z",
            bucket.positions[role],
            torch.tensor([head.index], device=constants[role].device),
            torch.tensor(some),
            constants[role][head.layer, bucket.prompts][None, :, [head.index]],
        )
        for (role, head), some in sorted(variants.items())
    ]
