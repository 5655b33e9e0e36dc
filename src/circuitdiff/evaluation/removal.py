"""The whole model with a few heads taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Circuit, Head
from circuitdiff.engine import Edit, Model
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB, check_pairs
from circuitdiff.evaluation.answers import Evaluation, evaluate_model, evaluation_of
from circuitdiff.evaluation.circuits import Progress, check_places
from circuitdiff.evaluation.constants import Replacement, check_replacement, replacement_at
from circuitdiff.evaluation.edited import Editing, run_edited
from circuitdiff.prompts import Bucket, Pairs


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
    check_pairs(model, pairs)
    for heads in removed:
        heads.check_fits(model.n_layers, model.n_heads, pairs.positions)
    roles = list(dict.fromkeys(role for heads in removed for role in heads.roles))
    check_places(pairs, roles)
    check_replacement(pairs, means)
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
