"""Where the output of a group of heads matters, whichever heads it has.

A mechanism can move to other heads. Two groups that attend alike (`attention`) and matter alike do the same job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine import Edit, Model
from circuitdiff.engine.capture import z_at_positions
from circuitdiff.engine.executor import Readout
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB, check_pairs
from circuitdiff.errors import InputError
from circuitdiff.evaluation.circuits import check_roles
from circuitdiff.evaluation.edited import Editing, run_edited
from circuitdiff.evaluation.shapes import by_layer
from circuitdiff.prompts import Bucket, Pairs
from circuitdiff.stats.metrics import logit_difference


@torch.no_grad()
def effect_by_role(
    model: Model,
    groups: Mapping[str, Group],
    pairs: Pairs,
    roles: Sequence[str],
    executor: str = "window",
    memory_gb: float = DEFAULT_MEMORY_GB,
) -> dict[str, Float[Tensor, "role prompt"]]:
    """The effect of all of a group's heads together when their z at one role comes from the counterfactual prompt.

    On the logit difference; nothing is frozen. Negative = what the group writes at that role helps. All groups and
    roles build on one clean run.

    Raises: InputError if the model lacks a head or a prompt lacks a role.
    """
    _check(model, groups, pairs, roles)
    sources = torch.stack([pairs.counterfactual_positions[role] for role in roles], dim=-1)
    source = z_at_positions(model, pairs.counterfactual_prompts, sources)
    places = [_Place("", ()), *(_Place(role, group.heads) for group in groups.values() for role in roles)]

    def readout(bucket: Bucket) -> Readout:
        part = pairs.select(bucket.prompts)
        right, foils = part.right_answers.to(model.device), part.foils.to(model.device)
        return lambda logits, prompt: logit_difference(logits, right[prompt], foils[prompt])[:, None]

    editing = Editing[_Place](
        roles,
        begins=lambda place, bucket: bucket.positions[place.role] if place.heads else bucket.length - 1,
        edits=lambda some, bucket: _edits(some, bucket, roles, source),
    )
    how = {"executor": executor, "memory_gb": memory_gb}
    plain, *patched = run_edited(model, pairs, places, editing, readout_of=readout, **how)[:, :, 0]
    return dict(zip(groups, (torch.stack(patched) - plain).split(len(roles)), strict=True))


class _Place(NamedTuple):
    """Heads to be patched at a role; without heads the clean run."""

    role: str
    heads: tuple[Head, ...]


def _edits(
    some: Sequence[_Place], bucket: Bucket, roles: Sequence[str], source: Float[Tensor, "layer prompt role head d_head"]
) -> list[Edit]:
    """One variant per place."""
    edits = []
    for variant, (role, chosen) in enumerate(some):
        for layer, in_layer in by_layer(chosen).items():
            heads = torch.tensor(in_layer, device=source.device)
            z = source[layer][bucket.prompts, roles.index(role)][:, heads]
            edits.append(Edit(layer, "z", bucket.positions[role], heads, torch.tensor([variant]), z[None]))
    return edits


def _check(model: Model, groups: Mapping[str, Group], pairs: Pairs, roles: Sequence[str]) -> None:
    if not groups or not all(group.heads for group in groups.values()):
        raise InputError("a group without heads has no profile; give it heads")
    check_pairs(model, pairs, "the profile of a group")
    Circuit(groups).check_fits(model.n_layers, model.n_heads, pairs.positions)
    check_roles(pairs, roles, in_counterfactuals=True)
