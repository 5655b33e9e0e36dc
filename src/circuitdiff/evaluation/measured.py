"""What a metric says of each prompt's logits, of no more logits than it needs."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine.executor import NarrowReadout, Readout
from circuitdiff.prompts import Bucket, Pairs
from circuitdiff.stats.metrics import Metric, OwnMetric


def readout_of(pairs: Pairs, bucket: Bucket, metric: Metric | OwnMetric, device: torch.device) -> Readout:
    """The metric's quantity for the right answers, then for the counterfactual's answer if it has one."""
    if isinstance(metric, OwnMetric):
        rows = bucket.prompts.to(device)
        return lambda logits, prompt: metric(logits, rows[prompt])[:, None]
    part = pairs.select(bucket.prompts)
    if not metric.of_listed:
        return _quantities(metric, part, device)
    swapped = part.counterfactual_answers
    listed = [part.right_answers.flatten(), part.foils.flatten(), *([] if swapped is None else [swapped])]
    tokens = torch.cat(listed).unique()
    local = replace(
        part,
        answers=torch.searchsorted(tokens, part.answers),
        right=None if part.right is None else torch.searchsorted(tokens, part.right),
        foils=torch.searchsorted(tokens, part.foils),
        counterfactual_answers=None if swapped is None else torch.searchsorted(tokens, swapped),
    )
    return NarrowReadout(tokens.to(device), _quantities(metric, local, device))


def _quantities(metric: Metric, part: Pairs, device: torch.device) -> Readout:
    """For the counterfactual's answer, the right ones take its place among the foils, if it is one of them."""
    everything, foils = part.right_answers.to(device), part.foils.to(device)
    swapped = part.counterfactual_answers

    def readout(logits: Float[Tensor, "row logit"], prompt: Int[Tensor, " row"]) -> Float[Tensor, "row value"]:
        right, others = everything[prompt], foils[prompt]
        values = [metric.quantity(logits, right, others)]
        if swapped is not None:
            target = swapped.to(device)[prompt, None]
            rest = torch.where(others == target, right[:, :1], others)
            more = torch.where((others == target).any(1, keepdim=True), right[:, 1:], rest[:, :1])
            values.append(metric.quantity(logits, target, torch.cat([rest, more], dim=1)))
        return torch.stack(values, dim=-1)

    return readout
