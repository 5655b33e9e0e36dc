"""The whole model with a few heads taken out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Circuit
from circuitdiff.engine import Batch, Edit, Model, executor_named
from circuitdiff.engine.memory import DEFAULT_MEMORY_GB, rows_at_once
from circuitdiff.evaluation.answers import N_VALUES, Evaluation, answers_readout, evaluation_of
from circuitdiff.evaluation.circuits import Progress, check_places
from circuitdiff.evaluation.constants import Replacement, check_replacement, prompts_at_once, replacement_at
from circuitdiff.heads import Head
from circuitdiff.prompts import Bucket, Pairs, buckets


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
    for heads in removed:
        heads.check_fits(model.n_layers, model.n_heads, pairs.positions)
    roles = list(dict.fromkeys(role for heads in removed for role in heads.roles))
    check_places(pairs, roles)
    check_replacement(pairs, means)
    at_once = prompts_at_once(model, pairs, means, memory_gb)
    values = torch.empty(len(removed), len(pairs), N_VALUES, dtype=torch.promote_types(model.dtype, torch.float32))
    done = 0
    for bucket in buckets(pairs.clean_prompts, roles, at_once, same_slots=True):
        start = min(bucket.positions.values(), default=bucket.length - 1)
        batch = Batch(model, pairs.clean[bucket.prompts, : bucket.length].to(model.device), start)
        constants = {role: replacement_at(model, pairs, bucket, at, means) for role, at in bucket.positions.items()}
        readout = answers_readout(pairs.select(bucket.prompts), model.device)
        for part in _parts(removed, bucket, rows_at_once(model, memory_gb)):
            edits = removal_edits([removed[i] for i in part.tolist()], bucket, constants)
            values[part[:, None], bucket.prompts] = executor_named(executor).run(batch, edits, len(part), readout).cpu()
        done += len(bucket.prompts)
        if progress:
            progress(done, len(pairs))
    return [evaluation_of(value, pairs) for value in values]


def removal_edits(
    removed: Sequence[Circuit], bucket: Bucket, constants: dict[str, Float[Tensor, " layer #prompt head d_head"]]
) -> list[Edit]:
    """One edit for each head and role, of all variants that remove it."""
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
            constants[role][None, head.layer, :, [head.index]],
        )
        for (role, head), some in sorted(variants.items())
    ]


def _parts(removed: Sequence[Circuit], bucket: Bucket, most_rows: int) -> Iterator[Tensor]:
    """The variants by the position where they begin, which sets the window; as many together as the memory takes."""
    begin = [min((bucket.positions[role] for role in each.roles), default=bucket.length - 1) for each in removed]
    for start in sorted(set(begin)):
        mine = torch.tensor([i for i, at in enumerate(begin) if at == start])
        yield from mine.split(max(1, most_rows // (len(bucket.prompts) * (bucket.length - start))))
