"""Edges from one group of a circuit into another, or straight into the logits, and the effect along each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Group
from circuitdiff.engine import Model
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB
from circuitdiff.engine.kept_runs import PairRuns
from circuitdiff.methods.path_patching import Path, Via, group_path_effects
from circuitdiff.prompts import Pairs


class Edge(NamedTuple):
    """From one group into another's q, k or v, or (no receiver) straight into the logits."""

    sender: str
    receiver: str | None
    via: Via | None


def possible_edges(groups: Mapping[str, Group], pairs: Pairs) -> list[Edge]:
    """Straight into the logits from the last position; via q at one role; via k and v from earlier roles."""
    last = [Edge(name, None, None) for name, g in groups.items() if (pairs.positions[g.at] == pairs.lengths - 1).all()]
    between = [
        Edge(first, second, via)
        for first, second, via in product(groups, groups, ("q", "k", "v"))
        if _can_reach(groups[first], groups[second], via, pairs)
    ]
    return last + between


def _can_reach(first: Group, second: Group, via: str, pairs: Pairs) -> bool:
    if min(head.layer for head in first.heads) >= max(head.layer for head in second.heads):
        return False
    if via == "q":
        return first.at == second.at and first is not second
    return bool((pairs.positions[first.at] < pairs.positions[second.at]).all())


def edge_effects(
    model: Model,
    groups: Mapping[str, Group],
    edges: Sequence[Edge],
    pairs: Pairs,
    executor: str = "window",
    memory_gb: float = DEFAULT_MEMORY_GB,
) -> list[Float[Tensor, " prompt"]]:
    """`group_path_effects` of each edge, on the same clean and counterfactual runs as far as the memory allows.

    Per prompt, in logits; negative = what goes along the edge helps. Raises: as `group_path_effects`.
    """
    shared = PairRuns(model, pairs, [group.at for group in groups.values()], memory_gb)

    def effect(edge: Edge) -> Float[Tensor, " prompt"]:
        sender, path = groups[edge.sender], Path(groups[edge.sender].at)
        if edge.receiver is not None:
            receiver = groups[edge.receiver]
            path = Path(sender.at, receiver.heads, edge.via, None if edge.via == "q" else receiver.at)
        return group_path_effects(model, pairs, sender.heads, path, executor, shared, memory_gb=memory_gb)

    return [effect(edge) for edge in edges]
