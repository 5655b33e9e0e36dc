"""Where the output of a group of heads matters, whichever heads it has.

A mechanism can move to other heads. Two groups that attend alike (`attention`) and matter alike do the same job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Circuit, Group
from circuitdiff.engine import Batch, Edit, Model, executor_named
from circuitdiff.engine.capture import z_at_positions
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB, ROWS_SHARE, check_pairs, clean_batches, rows_at_once
from circuitdiff.errors import InputError
from circuitdiff.evaluation.circuits import check_roles
from circuitdiff.prompts import Pairs
from circuitdiff.stats.metrics import logit_difference


@torch.no_grad()
def effect_by_role(
    model: Model,
    groups: Mapping[str, Group],
    pairs: Pairs,
    roles: Sequence[str],
    executor: str = "window",
) -> dict[str, Float[Tensor, "role prompt"]]:
    """The effect of all of a group's heads together when their z at one role comes from the counterfactual prompt.

    On the logit difference; nothing is frozen. Negative = what the group writes at that role helps. All groups and
    roles build on one clean run.

    Raises: InputError if the model lacks a head or a prompt lacks a role.
    """
    _check(model, groups, pairs, roles)
    runs = executor_named(executor)
    places = torch.stack([pairs.counterfactual_positions[role] for role in roles], dim=-1)
    source = z_at_positions(model, pairs.counterfactual_prompts, places)
    found = torch.empty(len(groups), len(roles), len(pairs), dtype=torch.promote_types(model.dtype, torch.float32))
    width = int(pairs.lengths.max() - min(int(pairs.positions[role].min()) for role in roles))
    rows = rows_at_once(model, ROWS_SHARE * DEFAULT_MEMORY_GB, int(pairs.lengths.max()))
    largest = max(1, rows // (len(groups) * width))
    for bucket in clean_batches(model, pairs.clean_prompts, roles, DEFAULT_MEMORY_GB, largest):
        tokens = pairs.clean[bucket.prompts, : bucket.length].to(model.device)
        batch = Batch(model, tokens, min(bucket.positions.values()))
        part = pairs.select(bucket.prompts)
        right, others = part.right_answers.to(model.device), part.foils.to(model.device)

        def readout(logits: Tensor, prompt: Tensor, right: Tensor = right, others: Tensor = others) -> Tensor:
            return logit_difference(logits, right[prompt], others[prompt])[:, None]

        clean = readout(batch.clean.logits, torch.arange(batch.n_prompts, device=model.device))
        for i, role in enumerate(roles):
            edits = _edits(groups, bucket.positions[role], source[:, bucket.prompts, i])
            patched = runs.run(batch, edits, len(groups), readout)
            found[:, i, bucket.prompts] = (patched - clean)[:, :, 0].cpu()
    return dict(zip(groups, found, strict=True))


def _edits(groups: Mapping[str, Group], at: int, source: Float[Tensor, "layer prompt head d_head"]) -> list[Edit]:
    """One variant per group."""
    edits = []
    for variant, group in enumerate(groups.values()):
        for layer in sorted({head.layer for head in group.heads}):
            heads = torch.tensor([h.index for h in group.heads if h.layer == layer], device=source.device)
            edits.append(Edit(layer, "z", at, heads, torch.tensor([variant]), source[layer][:, heads][None]))
    return edits


def _check(model: Model, groups: Mapping[str, Group], pairs: Pairs, roles: Sequence[str]) -> None:
    if not groups or not all(group.heads for group in groups.values()):
        raise InputError("a group without heads has no profile; give it heads")
    check_pairs(model, pairs, "the profile of a group")
    Circuit(groups).check_fits(model.n_layers, model.n_heads, pairs.positions)
    check_roles(pairs, roles, in_counterfactuals=True)
