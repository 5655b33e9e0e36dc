"""The mean activation of every head at every slot of a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine import Model
from circuitdiff.engine.capture import sum_z_by_slot
from circuitdiff.engine.fits import check_pairs
from circuitdiff.errors import InputError
from circuitdiff.prompts import Pairs

By = Literal["slot", "kind"]


@dataclass(frozen=True)
class Means:
    """The mean z of every head at every slot of a template."""

    values: Float[Tensor, "slot layer head d_head"]
    by: By
    slot_names: tuple[str, ...]  # in the order of `values`

    def at(self, slots: Int[Tensor, " place"], names: Sequence[str]) -> Float[Tensor, "place layer head d_head"]:
        """The means at slots that other prompts number in the order of `names`; nan where there is none."""
        place = {name: i for i, name in enumerate(self.slot_names[: len(self.values)])}
        known = torch.tensor([place.get(name, -1) for name in names])[slots].to(self.values.device)
        return torch.where(known[:, None, None, None] >= 0, self.values[known.clamp(min=0)], torch.nan)


@dataclass(frozen=True)
class SlotSums:
    """Sums of every head's z over the tokens of each slot, from which means of either kind follow."""

    total: Float[Tensor, "slot layer head d_head"]
    count: Float[Tensor, " slot"]
    slot_names: Sequence[str]
    slot_kinds: Sequence[str]

    def means(self, by: By, dtype: torch.dtype) -> Means:
        """By "slot": label of segment 3. By "kind": labels of all segments pooled; nan where nothing was seen."""
        if by not in ("slot", "kind"):
            raise InputError(f"means go by 'slot' or by 'kind'; got {by!r}")
        total, count = self.total, self.count
        if by == "kind":
            member = _numbered(self.slot_kinds).to(total.device)
            total = torch.zeros_like(total).index_add_(0, member, total)[member]
            count = torch.zeros_like(count).index_add_(0, member, count)[member]
        return Means((total / count[:, None, None, None]).to(dtype), by, tuple(self.slot_names))


def slot_sums(model: Model, pairs: Pairs) -> SlotSums:
    """Runs the counterfactual prompts, which have no valid query, and sums z by slot.

    Raises: InputError if a slot of the clean prompts never occurs in the counterfactual ones.
    """
    check_pairs(model, pairs)
    prompts = pairs.counterfactual_prompts
    total, count = sum_z_by_slot(model, prompts)
    needed = pairs.clean_prompts.slots[pairs.clean_prompts.slots >= 0].unique()
    missing = [prompts.slot_names[i] for i in needed.tolist() if count[i] == 0]
    if missing:
        raise InputError(f"no counterfactual prompt has slot {missing[0]!r}, so it has no mean; sample more prompts")
    return SlotSums(total, count, prompts.slot_names, prompts.slot_kinds)


def mean_activations(model: Model, pairs: Pairs, by: By = "slot") -> Means:
    """The mean z of every head over the counterfactual prompts (which have no valid query), at each slot.

    By "slot": label of segment 3, as in the paper; the segment's address stays in. By "kind": labels of all segments
    pooled, which takes the address out.

    Raises: InputError if a slot of the clean prompts never occurs in the counterfactual ones.
    """
    return slot_sums(model, pairs).means(by, model.dtype)


def _numbered(names: Sequence[str]) -> Int[Tensor, " name"]:
    known = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([known[name] for name in names])
