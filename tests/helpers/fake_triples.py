"""Triples of random tokens for the tiny models: unequal lengths, and roles elsewhere in base and source."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from circuitdiff.prompts import PromptSet
from circuitdiff.triples import Triples
from helpers.fake_pairs import D_VOCAB, KINDS, SLOTS

N_TRIPLES = 23


def prompts(seed: int, lengths: tuple[int, ...], middles: tuple[int, ...]) -> PromptSet:
    """Lengths and positions of role `middle` come in turns."""
    g = torch.Generator().manual_seed(seed)
    n = [lengths[i % len(lengths)] for i in range(N_TRIPLES)]
    at = [middles[i % len(middles)] for i in range(N_TRIPLES)]
    tokens = torch.randint(3, D_VOCAB, (N_TRIPLES, max(lengths)), generator=g)
    slots = torch.zeros_like(tokens)
    for i, length in enumerate(n):
        tokens[i, length:], slots[i, length:] = 0, -1
    positions = {
        "last": torch.tensor(n) - 1,
        "middle": torch.tensor(at),
        "absent": torch.tensor([4, -1] * N_TRIPLES)[:N_TRIPLES],
    }
    return PromptSet(tokens, torch.tensor(n), positions, slots, SLOTS, KINDS)


def fake_triples(targets: Tensor | None = None) -> Triples:
    base, source = prompts(5, (9, 7), (4, 5, 4)), prompts(6, (8, 10, 11), (3, 6))
    base = replace(base, positions={**base.positions, "absent": torch.full((N_TRIPLES,), 2)})
    numbers = torch.arange(N_TRIPLES)
    return Triples(
        name="invented",
        base=base,
        source=source,
        answers=torch.full((N_TRIPLES,), D_VOCAB - 1),
        targets=numbers + 3 if targets is None else targets,
        pointers={},
        scenarios=numbers // 2,
        queried=numbers % 7,
        source_queried=(numbers + 3) % 7,
    )
