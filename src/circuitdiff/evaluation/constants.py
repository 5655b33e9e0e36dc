"""What an ablation puts in the place of a head: its mean, what another prompt has there, or nothing.

Means are taken at every slot of a template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine import Model
from circuitdiff.engine.capture import sum_z_by_slot, z_at_positions
from circuitdiff.engine.constant_tokens import ConstantTokens
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB, RUN_SHARE, check_pairs
from circuitdiff.engine.fits import prompts_at_once as prompts_of_one_run
from circuitdiff.errors import InputError
from circuitdiff.prompts import Bucket, Pairs, PromptSet
from circuitdiff.readable import Readable

By = Literal["slot", "kind"]


@dataclass(frozen=True, repr=False)
class Means(Readable):
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
            kinds = list(dict.fromkeys(self.slot_kinds))
            member = torch.tensor([kinds.index(kind) for kind in self.slot_kinds], device=total.device)
            total = torch.zeros_like(total).index_add_(0, member, total)[member]
            count = torch.zeros_like(count).index_add_(0, member, count)[member]
        return Means((total / count[:, None, None, None]).to(dtype), by, tuple(self.slot_names))


def slot_sums(model: Model, pairs: Pairs) -> SlotSums:
    """Runs the counterfactual prompts, which have no valid query, and sums z by slot.

    Raises: InputError if a slot of the clean prompts never occurs in the counterfactual ones.
    """
    check_pairs(model, pairs, None)
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


# Means: the head's mean at the slot. "resample": its own z at the same slot of each prompt's counterfactual. "zero": 0.
Replacement = Means | Literal["resample", "zero"]

MOST_PROMPTS = 64
_SHARE = 0.25  # of the memory may hold the constants of one batch


class Shared:
    """What evaluations of one model share from call to call, while its weights stay as they are.

    Give one to all calls on the same prompts: where every head is at its mean, keys and values are computed once.
    """

    def __init__(self) -> None:
        self._tokens: dict[tuple[int, int, tuple[str, ...]], tuple[Replacement, ConstantTokens]] = {}

    def constant_tokens(
        self, model: Model, pairs: Pairs, bucket: Bucket, replacement: Replacement, memory_gb: float
    ) -> ConstantTokens:
        """The constants of a bucket, with what is remembered of prompts with the same slots."""
        if replacement == "resample":
            chosen = pairs.select(bucket.prompts)
            places = counterparts(chosen)[:, : bucket.length]
            return ConstantTokens(model, z_at_positions(model, chosen.counterfactual_prompts, places), memory_gb)
        slots = tuple(pairs.clean_prompts.slots[bucket.prompts[0], : bucket.length].tolist())
        every = pairs.clean_prompts.slot_names
        key = (id(model), id(replacement), tuple(str(every[slot]) for slot in slots))
        if key not in self._tokens:
            if sum(tokens.size_gb for _, tokens in self._tokens.values()) > _SHARE * memory_gb:
                self._tokens.clear()
            constants = _shared_constants(model, torch.tensor(slots), every, replacement)
            self._tokens[key] = replacement, ConstantTokens(model, constants, memory_gb)
        return self._tokens[key][1]


def prompts_at_once(model: Model, pairs: Pairs, replacement: Replacement, memory_gb: float = DEFAULT_MEMORY_GB) -> int:
    """How many prompts fit the memory, with their constants where each has its own."""
    longest = int(pairs.lengths.max())
    most = min(MOST_PROMPTS, prompts_of_one_run(model, longest, RUN_SHARE * memory_gb))
    if replacement != "resample":
        return most
    per_prompt = model.n_layers * longest * model.n_heads * model.d_head * model.dtype.itemsize
    return max(1, min(most, int(_SHARE * memory_gb * 2**30 / per_prompt)))


def check_replacement(pairs: Pairs, replacement: Replacement) -> None:
    """Raises: InputError if it is none, has no mean for a slot of the prompts, or finds no such slot to resample."""
    if isinstance(replacement, Means):
        slots, names = pairs.clean_prompts.slots, pairs.clean_prompts.slot_names
        used = slots[slots >= 0].unique()
        unknown = replacement.at(used, names).isnan().any((1, 2, 3)).cpu()
        if unknown.any():  # the circuit's answers would be nan, which reads as wrong answers
            slot = names[int(used[unknown][0])]
            raise InputError(f"there is no mean for slot {slot!r}: take the means over more prompts of the same task")
    elif replacement == "resample":
        counterparts(pairs)
    elif replacement != "zero":
        raise InputError(f"heads are replaced by means, 'resample' or 'zero'; got {replacement!r}")


def replacement_at(
    model: Model, pairs: Pairs, role: str, replacement: Replacement
) -> Float[Tensor, " layer prompt head d_head"]:
    """What replaces every head at one role of each prompt."""
    rows, positions = torch.arange(len(pairs)), pairs.positions[role]
    if replacement == "resample":
        places = counterparts(pairs)[rows, positions]
        return z_at_positions(model, pairs.counterfactual_prompts, places[:, None])[:, :, 0]
    prompts = pairs.clean_prompts
    return _shared_constants(model, prompts.slots[rows, positions], prompts.slot_names, replacement)[:, 0]


def _shared_constants(
    model: Model, slots: Int[Tensor, " pos"], names: Sequence[str], replacement: Replacement
) -> Float[Tensor, " layer 1 pos head d_head"]:
    if isinstance(replacement, Means):
        return replacement.at(slots, names).transpose(0, 1)[:, None].to(model.device, model.dtype)
    shape = (model.n_layers, 1, len(slots), model.n_heads, model.d_head)
    return torch.zeros(shape, dtype=model.dtype, device=model.device)


def counterparts(pairs: Pairs) -> Int[Tensor, "prompt pos"]:
    """The position of the counterfactual that has the slot of each position; 0 on padding.

    The first token of a slot goes with the first one there, the second with the second; where the counterfactual has
    fewer of them, with the last.

    Raises: InputError if a counterfactual lacks a slot of its clean prompt.
    """
    clean, other = pairs.clean_prompts, pairs.counterfactual_prompts
    same = clean.slots[:, :, None] == other.slots[:, None, :]
    in_reach = same & (_place_in_slot(other)[:, None, :] <= _place_in_slot(clean)[:, :, None])
    lacking = ((clean.slots >= 0) & ~same.any(-1)).nonzero()
    if len(lacking):
        slot = clean.slot_names[int(clean.slots[*lacking[0]])]
        raise InputError(
            f"the counterfactual of prompt {int(lacking[0, 0])} lacks slot {slot!r}, so nothing can be resampled "
            f"there; choose mean or zero ablation, or counterfactuals of the same form"
        )
    places = torch.arange(other.slots.shape[1])
    last = torch.where(in_reach, places, -1).amax(-1)
    return torch.where(clean.slots >= 0, last, 0)


def _place_in_slot(prompts: PromptSet) -> Int[Tensor, "prompt pos"]:
    """How many earlier tokens of the prompt have the same slot."""
    same = prompts.slots[:, :, None] == prompts.slots[:, None, :]
    return same.tril(-1).sum(-1)
