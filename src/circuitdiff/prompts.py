"""Prompt pairs with named positions: what a task yields and every method takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from circuitdiff.errors import InputError


@dataclass(frozen=True)
class PromptSet:
    """Prompts of any lengths, right-padded, with the position of each role and the slot of each token."""

    tokens: Int[Tensor, "prompt pos"]
    lengths: Int[Tensor, " prompt"]
    positions: Mapping[str, Int[Tensor, " prompt"]]  # role -> position; -1 where the prompt lacks the role
    slots: Int[Tensor, "prompt pos"]  # index into slot_names; -1 on padding
    slot_names: Sequence[str]  # like "segment_3.label"
    slot_kinds: Sequence[str]  # the same with the segment taken out, "segment.label"

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, prompts: Int[Tensor, " chosen"]) -> PromptSet:
        """The chosen prompts, in the order given."""
        return replace(
            self,
            tokens=self.tokens[prompts],
            lengths=self.lengths[prompts],
            positions={role: at[prompts] for role, at in self.positions.items()},
            slots=self.slots[prompts],
        )


@dataclass(frozen=True)
class Pairs:
    """Clean prompts, each with its counterfactual, answers and scenario."""

    clean_prompts: PromptSet
    counterfactual_prompts: PromptSet
    answers: Int[Tensor, " prompt"]
    alternatives: Int[Tensor, "prompt k"]  # the other listed answers
    counterfactual_answers: Int[Tensor, " prompt"] | None  # None: the counterfactual has no answer of its own
    scenarios: Int[Tensor, " prompt"]
    queried: Int[Tensor, " prompt"]  # index of the queried item, from zero

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def clean(self) -> Int[Tensor, "prompt pos"]:
        return self.clean_prompts.tokens

    @property
    def counterfactual(self) -> Int[Tensor, "prompt pos"]:
        return self.counterfactual_prompts.tokens

    @property
    def lengths(self) -> Int[Tensor, " prompt"]:
        return self.clean_prompts.lengths

    @property
    def counterfactual_lengths(self) -> Int[Tensor, " prompt"]:
        return self.counterfactual_prompts.lengths

    @property
    def positions(self) -> Mapping[str, Int[Tensor, " prompt"]]:
        return self.clean_prompts.positions

    @property
    def counterfactual_positions(self) -> Mapping[str, Int[Tensor, " prompt"]]:
        return self.counterfactual_prompts.positions

    def select(self, prompts: Int[Tensor, " chosen"]) -> Pairs:
        """The chosen pairs, in the order given."""
        own = self.counterfactual_answers
        return Pairs(
            self.clean_prompts.select(prompts),
            self.counterfactual_prompts.select(prompts),
            self.answers[prompts],
            self.alternatives[prompts],
            None if own is None else own[prompts],
            self.scenarios[prompts],
            self.queried[prompts],
        )


@dataclass(frozen=True)
class Bucket:
    """Prompts of one length whose roles sit at the same positions, so that every tensor is dense."""

    prompts: Int[Tensor, " prompt"]  # which prompts of the set
    length: int
    positions: Mapping[str, int]


def buckets(
    prompts: PromptSet, roles: Sequence[str], largest: int | None = None, *, same_slots: bool = False
) -> list[Bucket]:
    """Every prompt once, grouped by length and by the positions of `roles`, at most `largest` together.

    With `same_slots`, prompts of a bucket also have the same slot at every position.
    """
    keys = [prompts.lengths, *(prompts.positions[role] for role in roles)]
    if same_slots:
        keys.append(torch.unique(prompts.slots, dim=0, return_inverse=True)[1])
    kinds, member = torch.unique(torch.stack(keys, dim=1), dim=0, return_inverse=True)
    return [
        Bucket(part, int(kind[0]), dict(zip(roles, kind[1 : 1 + len(roles)].tolist(), strict=True)))
        for i, kind in enumerate(kinds)
        for part in torch.split((member == i).nonzero()[:, 0], largest or len(prompts))
    ]


def halves(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """The pairs in two parts that share no scenario; every other scenario, and so of each queried item.

    Raises: InputError if there are fewer than four scenarios.
    """
    queried: dict[int, int] = {}  # of each scenario's first prompt
    for scenario, item in zip(pairs.scenarios.tolist(), pairs.queried.tolist(), strict=True):
        queried.setdefault(scenario, item)
    if len(queried) < 4:
        raise InputError(f"two halves need at least 4 scenarios; got {len(queried)}; sample more prompts")
    ordered = sorted(queried, key=lambda scenario: (queried[scenario], scenario))
    in_first = torch.isin(pairs.scenarios, torch.tensor(ordered[::2]))
    return pairs.select(in_first.nonzero()[:, 0]), pairs.select((~in_first).nonzero()[:, 0])
