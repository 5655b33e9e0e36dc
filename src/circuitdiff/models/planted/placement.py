"""Which head of which layer plays which part: drawn from the seed, the same for all wirings."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from circuitdiff.heads import Head
from circuitdiff.models.planted.randomness import generator

N_LAYERS, N_HEADS = 10, 8  # of the usual shape

# How many heads each part may use and the layers where they may be, in the order in which they are placed. What a
# part reads is written in earlier layers: only the backup needs to come after all fetchers of the usual number.
PARTS: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    ("structure_reader", 3, (0, 1)),
    ("name_binder", 3, (0, 1)),
    ("position_detector", 3, (2, 3)),
    ("position_transmitter", 1, (4,)),  # this one may be a detector for the next
    ("position_transmitter", 2, (5,)),
    ("label_transmitter", 3, (2, 3, 4, 5)),
    ("value_fetcher", 3, (6, 7, 8)),
    ("label_fetcher", 3, (6, 7, 8)),
    ("backup", 1, (9,)),
    ("negative", 2, (8, 9)),
    ("value_fetcher", 17, (6, 7, 8, 9)),  # those of the wiring that spreads the work
)


def place_heads(seed: int, n_layers: int = N_LAYERS) -> Mapping[str, tuple[Head, ...]]:
    """For each part the heads that it may use, no head twice; a wiring uses the first of them.

    In a deeper model the same heads lie further apart, in the same order; the layers between them hold decoys.
    """
    g = generator(seed, "placement")
    free = {(layer, index) for layer in range(N_LAYERS) for index in range(N_HEADS)}
    placed: dict[str, tuple[Head, ...]] = {}
    for part, n_heads, layers in PARTS:
        allowed = sorted(place for place in free if place[0] in layers)
        chosen = [allowed[i] for i in torch.randperm(len(allowed), generator=g)[:n_heads].tolist()]
        free -= set(chosen)
        placed[part] = (*placed.get(part, ()), *(Head(layer * n_layers // N_LAYERS, index) for layer, index in chosen))
    return placed
