"""What a group of heads does, whichever heads it has: where it attends, and where its output matters.

A mechanism can move to other heads. Two groups with the same profile do the same job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Circuit, Group
from circuitdiff.engine import Batch, Edit, Executor, Model, executor_named
from circuitdiff.engine.attention import AttentionCall, attend, handled_by, pattern_of
from circuitdiff.engine.capture import z_at_role
from circuitdiff.errors import InputError
from circuitdiff.metrics import Metric, metric_named
from circuitdiff.prompts import Bucket, Pairs, buckets

_PROMPTS_AT_ONCE = 32


@torch.no_grad()
def attention_by_role(
    model: Model, group: Group, pairs: Pairs, roles: Sequence[str]
) -> Float[Tensor, "head prompt role"]:
    """How much attention each of the group's heads, at the group's role, gives to each role of the clean prompts.

    From 0 to 1; what is missing to 1 goes to other tokens. A role that comes later gets 0.

    Raises: InputError if the model lacks a head or a prompt lacks a role.
    """
    _check(model, group, pairs, [group.at, *roles])
    result = torch.zeros(len(group.heads), len(pairs), len(roles), dtype=model.dtype)
    for bucket in buckets(pairs.clean_prompts, [], _PROMPTS_AT_ONCE):
        chosen = bucket.prompts
        rows = torch.arange(len(chosen))
        query = pairs.positions[group.at][chosen]
        keys = torch.stack([pairs.positions[role][chosen] for role in roles], dim=-1)

        def handler(
            call: AttentionCall,
            chosen: Tensor = chosen,
            rows: Tensor = rows,
            query: Tensor = query,
            keys: Tensor = keys,
        ) -> Tensor:
            for i, head in enumerate(group.heads):
                if head.layer == call.layer:
                    result[i, chosen] = pattern_of(call)[rows, head.index, query].cpu().gather(-1, keys)
            return attend(call)

        with handled_by(handler):
            model.forward(pairs.clean[chosen, : bucket.length])
    return result


@torch.no_grad()
def effect_by_role(
    model: Model,
    group: Group,
    pairs: Pairs,
    roles: Sequence[str],
    metric: str = "logit_difference",
    executor: str = "window",
) -> Float[Tensor, "role prompt"]:
    """The effect of all the group's heads together when their z at one role comes from the counterfactual prompt.

    Nothing is frozen. Negative = what the group writes at that role helps; the metric's unit.

    Raises: InputError if the model lacks a head or a prompt lacks a role.
    """
    _check(model, group, pairs, roles)
    run = _Patching(model, group, pairs, metric_named(metric), executor_named(executor))
    return torch.stack([run.at(role) for role in roles])


@dataclass(frozen=True)
class _Patching:
    """All heads of a group taken from the counterfactual prompt."""

    model: Model
    group: Group
    pairs: Pairs
    metric: Metric
    executor: Executor

    def at(self, role: str) -> Float[Tensor, " prompt"]:
        source = z_at_role(self.model, self.pairs.counterfactual_prompts, role)
        found = torch.empty(len(self.pairs), dtype=torch.promote_types(self.model.dtype, torch.float32))
        for bucket in buckets(self.pairs.clean_prompts, [role], _PROMPTS_AT_ONCE):
            found[bucket.prompts] = self._effect(bucket, bucket.positions[role], source[:, bucket.prompts])
        return found

    def _effect(
        self, bucket: Bucket, at: int, source: Float[Tensor, "layer prompt head d_head"]
    ) -> Float[Tensor, " prompt"]:
        part, device = self.pairs.select(bucket.prompts), self.model.device
        answers, others = part.answers.to(device), part.alternatives.to(device)
        batch = Batch(self.model, part.clean[:, : bucket.length].to(device), at)

        def readout(logits: Tensor, prompt: Tensor) -> Tensor:
            return self.metric.quantity(logits, answers[prompt], others[prompt])[:, None]

        patched = self.executor.run(batch, self._edits(at, source), 1, readout)
        clean = readout(batch.clean.logits, torch.arange(batch.n_prompts, device=device))
        return self.metric.effect(patched[0], clean)[:, 0].cpu()

    def _edits(self, at: int, source: Float[Tensor, "layer prompt head d_head"]) -> list[Edit]:
        edits = []
        for layer in sorted({head.layer for head in self.group.heads}):
            heads = torch.tensor([h.index for h in self.group.heads if h.layer == layer], device=source.device)
            edits.append(Edit(layer, "z", at, heads, torch.tensor([0]), source[layer][:, heads][None]))
        return edits


def _check(model: Model, group: Group, pairs: Pairs, roles: Sequence[str]) -> None:
    if not group.heads:
        raise InputError("a group without heads has no profile; give it heads")
    Circuit({"group": group}).check_fits(model.n_layers, model.n_heads, pairs.positions)
    for role in roles:
        if role not in pairs.positions:
            raise InputError(f"the task has no role {role!r}; it has {', '.join(sorted(pairs.positions))}")
        if (pairs.positions[role] < 0).any() or (pairs.counterfactual_positions[role] < 0).any():
            raise InputError(f"role {role!r} has no place in some prompts; choose a role that every prompt has")
