"""Random heads to hold a group against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import torch

from circuitdiff.circuit import Group, Head


def random_group(
    group: Group,
    n_layers: int,
    n_heads: int,
    generator: torch.Generator,
    *,
    same_layers: bool = True,
    besides: Collection[Head] = (),
) -> Group:
    """As many heads at the group's role, without repeats, and none of the group's own while there are enough others.

    Nor any of `besides`, while there are enough without them.

    With `same_layers`, as many in each layer as the group has there; else from all layers.
    """
    wanted = Counter(head.layer for head in group.heads) if same_layers else Counter({None: len(group.heads)})
    drawn: list[Head] = []
    for layer, n in sorted(wanted.items(), key=lambda item: -1 if item[0] is None else item[0]):
        layers = range(n_layers) if layer is None else [layer]
        pool = [Head(each, i) for each in layers for i in range(n_heads)]
        others = [head for head in pool if head not in group.heads]
        apart = [head for head in others if head not in besides]
        chosen = next((each for each in (apart, others) if len(each) >= n), pool)
        drawn += [chosen[i] for i in torch.randperm(len(chosen), generator=generator)[:n].tolist()]
    return Group(group.at, tuple(drawn))
