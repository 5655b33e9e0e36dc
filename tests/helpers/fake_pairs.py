"""Prompt pairs of random tokens for the tiny models: unequal lengths, roles and slots at unequal positions."""

from __future__ import annotations

import torch
from torch import Tensor

from circuitdiff.prompts import Pairs, PromptSet

SLOTS = ("start", "segment_0.label", "segment_1.label", "segment_0.text", "query_label", "end", "last")
KINDS = ("start", "segment.label", "segment.label", "segment.text", "query_label", "end", "last")
LENGTHS = (13, 9, 13, 13, 11)
QUERY_LABEL = (10, 6, 10, 9, 8)
PREVIOUS = (4, 2, 5, 4, 2)
D_VOCAB = 61


def prompt_set(seed: int, lengths: tuple[int, ...] = LENGTHS) -> PromptSet:
    g = torch.Generator().manual_seed(seed)
    width = max(lengths)
    tokens = torch.randint(3, D_VOCAB, (len(lengths), width), generator=g)
    slots = torch.full_like(tokens, SLOTS.index("segment_0.text"))
    for i, length in enumerate(lengths):
        slots[i, 0] = SLOTS.index("start")
        slots[i, PREVIOUS[i]] = SLOTS.index("segment_0.label" if i % 2 else "segment_1.label")
        slots[i, QUERY_LABEL[i]] = SLOTS.index("query_label")
        slots[i, QUERY_LABEL[i] + 1 : length - 1] = SLOTS.index("end")
        slots[i, length - 1] = SLOTS.index("last")
        tokens[i, length:], slots[i, length:] = 0, -1
    positions = {
        "last": torch.tensor(lengths) - 1,
        "query_label": torch.tensor(QUERY_LABEL),
        "previous_query_label": torch.tensor(PREVIOUS),
        "absent": torch.tensor([3, -1, 3, 3, 3]),
    }
    return PromptSet(tokens, torch.tensor(lengths), positions, slots, SLOTS, KINDS)


def fake_pairs(*, own_answers: bool = False) -> Pairs:
    n = len(LENGTHS)
    answers = torch.tensor([7, 9, 11, 13, 15])
    foils = torch.tensor([[8, 20, 30], [21, 8, 31], [22, 32, 8], [8, 23, 33], [24, 8, 34]])
    other: Tensor | None = torch.full((n,), 8) if own_answers else None
    scenarios, queried = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 1, 1, 0, 1])
    return Pairs(prompt_set(1), prompt_set(2), answers, foils, other, scenarios, queried)


def logit_difference(logits: Tensor, pairs: Pairs, i: int) -> float:
    """Of the answer to the best of the other listed ones, by definition: pair `i`, logits (1, token)."""
    others = [float(logits[0, t]) for t in pairs.foils[i].tolist()]
    return float(logits[0, pairs.answers[i]]) - max(others)
