"""Ways from one group of a circuit into another, or straight into the logits, and what goes along each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Group
from circuitdiff.engine import Batch, Model, executor_named
from circuitdiff.engine.capture import z_at_positions
from circuitdiff.methods.path_patching import Path, Via, check_path, sweep_senders
from circuitdiff.metrics import metric_named
from circuitdiff.prompts import Pairs, buckets

_PROMPTS_AT_ONCE = 32


class Edge(NamedTuple):
    """A way from one group into another's q, k or v, or (no receiver) straight into the logits."""

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


@torch.no_grad()
def edge_effects(
    model: Model,
    groups: Mapping[str, Group],
    edges: Sequence[Edge],
    pairs: Pairs,
    metric: str = "logit_difference",
    executor: str = "window",
) -> list[Float[Tensor, " prompt"]]:
    """`group_path_effects` of each edge, all on one clean and one counterfactual run.

    Per prompt; negative = what goes along the edge helps. Raises: as `group_path_effects`.
    """
    measure, runs = metric_named(metric), executor_named(executor)
    roles = list(dict.fromkeys(group.at for group in groups.values()))
    places = torch.stack([pairs.counterfactual_positions[role] for role in roles], dim=-1)
    source = z_at_positions(model, pairs.counterfactual_prompts, places)
    paths = [_path(groups, edge) for edge in edges]
    for path in paths:
        check_path(model, pairs, path)
    found = torch.empty(len(edges), len(pairs), dtype=torch.promote_types(model.dtype, torch.float32))
    for bucket in buckets(pairs.clean_prompts, roles, _PROMPTS_AT_ONCE):
        tokens = pairs.clean[bucket.prompts, : bucket.length].to(model.device)
        batch = Batch(model, tokens, min(bucket.positions.values()))
        part = pairs.select(bucket.prompts)
        answers, others = part.answers.to(model.device), part.alternatives.to(model.device)

        def readout(logits: Tensor, prompt: Tensor, answers: Tensor = answers, others: Tensor = others) -> Tensor:
            return measure.quantity(logits, answers[prompt], others[prompt])[:, None]

        clean = readout(batch.clean.logits, torch.arange(batch.n_prompts, device=model.device))
        for i, (edge, path) in enumerate(zip(edges, paths, strict=True)):
            z = source[:, bucket.prompts, roles.index(path.at)]
            patched = sweep_senders(runs, batch, bucket, path, [groups[edge.sender].heads], z, readout)
            found[i, bucket.prompts] = measure.effect(patched, clean[None])[0, :, 0].cpu()
    return list(found)


def _path(groups: Mapping[str, Group], edge: Edge) -> Path:
    at = groups[edge.sender].at
    if edge.receiver is None:
        return Path(at)
    receiver = groups[edge.receiver]
    return Path(at, receiver.heads, edge.via, None if edge.via == "q" else receiver.at)
