"""Attribution patching: path patching's cheap linear estimate, all heads from one backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine import Model
from circuitdiff.engine.attention import AttentionCall, attend, handled_by
from circuitdiff.engine.capture import z_at_positions
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB, batches, check_pairs, numbers_per_row
from circuitdiff.evaluation.circuits import check_roles
from circuitdiff.prompts import Pairs
from circuitdiff.stats.metrics import logit_difference


def attribution_scores(
    model: Model, pairs: Pairs, roles: Sequence[str]
) -> dict[str, Float[Tensor, "layer head prompt"]]:
    """By role: what patching each head's z there would do to the logit difference if the model were linear, per prompt.

    (counterfactual z - clean z) times the gradient at the clean z, summed over d_head. All ways to the logits count,
    not one path. In logits; negative = the head helps.

    Source: Nanda 2023, Attribution patching; Syed et al. 2023 (arXiv:2310.10348).

    Raises: InputError if a role does not exist, or a prompt lacks it.
    """
    check_roles(pairs, roles, in_counterfactuals=True)
    check_pairs(model, pairs, "attribution patching")
    places = torch.stack([pairs.counterfactual_positions[role] for role in roles], dim=1)
    source = z_at_positions(model, pairs.counterfactual_prompts, places)
    scores = {role: torch.empty(model.n_layers, model.n_heads, len(pairs), dtype=model.dtype) for role in roles}
    held = numbers_per_row(model, int(pairs.lengths.max()))  # gradients need all that a layer computes
    for bucket in batches(model, pairs.clean_prompts, roles, DEFAULT_MEMORY_GB, held=held):
        part = pairs.select(bucket.prompts)
        right, foils = part.right_answers.to(model.device), part.foils.to(model.device)
        tokens, positions = part.clean[:, : bucket.length], [bucket.positions[role] for role in roles]
        with torch.enable_grad():
            logits, z, probes = _probed(model, tokens, positions)
            gradients = torch.autograd.grad(logit_difference(logits, right, foils).sum(), probes)
        for i, role in enumerate(roles):
            clean, slope = (torch.stack([layer[:, i] for layer in each]) for each in (z, gradients))
            change = source[:, bucket.prompts, i] - clean
            scores[role][:, :, bucket.prompts] = (change * slope).sum(-1).transpose(1, 2).cpu()
    return scores


def _probed(
    model: Model, tokens: Int[Tensor, "prompt pos"], positions: Sequence[int]
) -> tuple[Float[Tensor, "prompt d_vocab"], list[Tensor], list[Tensor]]:
    """Logits, and for each layer z at the positions and a zero added to it: its gradient is that of z."""
    z: list[Tensor] = []
    probes: list[Tensor] = []

    def handler(call: AttentionCall) -> Tensor:
        own = attend(call)
        here = own[:, positions]
        z.append(here.detach())
        probes.append(torch.zeros_like(here, requires_grad=True))
        return own.index_add(1, torch.tensor(positions, device=own.device), probes[-1])

    with handled_by(handler):
        logits = model.forward(tokens)
    return logits, z, probes
