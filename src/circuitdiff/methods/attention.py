"""Where the heads of a circuit attend: shares of their attention by role, also weighted by what is read there.

For each head h, at the position i of its group's role:
1. The attention pattern gives key j the share a_ij.
2. Weighted, it gives a_ij |W_O v_j|, the length of what h writes into the residual stream from j, over the sum of all
   keys: a key that is attended to for want of a better one, and whose value is next to nothing, counts for nothing.
3. Shares are summed over the token of each role, and over all tokens that have none.

Source: Prakash et al. 2024 (arXiv:2402.14811) for attention by role; Kobayashi et al. 2020
(arXiv:2004.10102) for the weights. We differ in that theirs are not made to sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdiff.circuit import Circuit, Head
from circuitdiff.engine import Model
from circuitdiff.engine.attention import AttentionCall, expand_kv, pattern_of
from circuitdiff.engine.capture import capture, contributions
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB, RUN_SHARE, check_pairs
from circuitdiff.errors import InputError
from circuitdiff.evaluation.circuits import check_known_roles, check_roles
from circuitdiff.prompts import Bucket, Pairs
from circuitdiff.readable import Readable, data_frame
from circuitdiff.stats.intervals import Interval, mean_interval

PerPrompt = Float[Tensor, "head prompt column"]  # a column for each role, and one for all other tokens


@dataclass(frozen=True, eq=False, repr=False)
class AttentionToRoles(Readable):
    """Shares, from 0 to 1, of the attention of a group's heads at its role, prompt by prompt.

    The last column is of all tokens that have none of the roles. A prompt's shares sum to 1 unless two roles are at one
    token, which both have, or the head has a sink, which takes the rest. nan where the role is not in the prompt, or
    comes after the query.
    """

    heads: tuple[Head, ...]
    roles: tuple[str, ...]
    attention: PerPrompt
    value_weighted: PerPrompt
    scenarios: Int[Tensor, " prompt"]

    @property
    def n_prompts(self) -> Int[Tensor, " column"]:
        """In how many prompts a head can attend to the role."""
        return self._present.sum(0)

    @property
    def _present(self) -> Bool[Tensor, "prompt column"]:
        return ~self.attention[0].isnan()

    def intervals(self, *, weighted: bool = False) -> Interval:
        """Means over the prompts that have the role, with `mean_interval` cut to 0 to 1; arrays [head, column].

        nan where no prompt has it.
        """
        shares, scenarios = (self.value_weighted if weighted else self.attention).double().numpy(), self.scenarios
        bounds = np.full((3, len(self.heads), len(self.roles) + 1), np.nan)
        for i, here in enumerate(self._present.T.numpy()):
            if here.any():
                bounds[:, :, i] = mean_interval(shares[:, here, i], scenarios.numpy()[here])
        return Interval(*bounds.clip(0, 1))

    def to_pandas(self) -> Any:
        """A row for each head and role, None for all other tokens. Raises: InputError if there is no pandas."""
        plain, weighted = (np.stack(self.intervals(weighted=each), axis=-1) for each in (False, True))
        rows = (
            (str(head), role, n, *plain[i, j], *weighted[i, j])
            for i, head in enumerate(self.heads)
            for j, (role, n) in enumerate(zip((*self.roles, None), self.n_prompts.tolist(), strict=True))
        )
        of_weighted = "value_weighted value_weighted_low value_weighted_high"
        return data_frame(f"head role n_prompts attention low high {of_weighted}", rows)


@torch.no_grad()
def attention_to_roles(
    model: Model,
    circuit: Circuit,
    pairs: Pairs,
    roles: Sequence[str] = (),
    *,
    memory_gb: float = DEFAULT_MEMORY_GB,
) -> dict[str, AttentionToRoles]:
    """By group, where its heads attend in the clean prompts: to these roles, or all that there are. One run for all.

    Raises: InputError if there is no such head or role, or a group has no heads, or no place in some prompts.
    """
    roles = tuple(roles or pairs.positions)
    _check(model, circuit, pairs, roles)
    at = torch.stack([pairs.positions[role] for role in roles], dim=1)
    wide = torch.promote_types(model.dtype, torch.float32)
    shares = {
        name: torch.empty(2, len(group.heads), len(pairs), len(roles) + 1, dtype=wide)
        for name, group in circuit.groups.items()
    }

    def seen(call: AttentionCall, _: Tensor, bucket: Bucket) -> None:
        here = [
            (name, i, head.index)
            for name, group in circuit.groups.items()
            for i, head in enumerate(group.heads)
            if head.layer == call.layer
        ]
        if not here:
            return
        pattern = pattern_of(call)
        for name, i, head in here:  # one by one: what a head writes from all tokens is as large as a residual stream
            query = pairs.positions[circuit.groups[name].at][bucket.prompts]
            given = pattern[torch.arange(len(query)), head, query].to(wide)  # 1
            weighted = given * _written(model, call, head)  # 2
            keys = at[bucket.prompts].masked_fill(at[bucket.prompts] > query[:, None], -1)
            shares[name][:, i, bucket.prompts] = torch.stack(  # 3
                [by_role(each.cpu(), keys) for each in (given, weighted / weighted.sum(1, keepdim=True))]
            )

    capture(model, pairs.clean_prompts, seen, memory_gb=RUN_SHARE * memory_gb)
    return {
        name: AttentionToRoles(group.heads, roles, shares[name][0], shares[name][1], pairs.scenarios)
        for name, group in circuit.groups.items()
    }


def _written(model: Model, call: AttentionCall, head: int) -> Float[Tensor, "prompt key"]:
    """The length of what the head would write into the residual stream if it attended to one key alone."""
    v = expand_kv(call.v, model.n_heads).transpose(1, 2)
    heads = torch.tensor([head], device=v.device)
    written = contributions(model, call.layer, v.flatten(0, 1), heads)[:, 0]
    wide = torch.promote_types(written.dtype, torch.float32)
    return torch.linalg.vector_norm(written, dim=-1, dtype=wide).view(v.shape[:2])


def by_role(shares: Float[Tensor, "prompt key"], keys: Int[Tensor, "prompt role"]) -> Float[Tensor, "prompt column"]:
    """The share of each role's key, nan where it is -1; and that of all keys that no role has."""
    is_at = keys[:, :, None] == torch.arange(shares.shape[1])
    to_roles = (shares[:, None] * is_at).sum(2).masked_fill(keys < 0, torch.nan)
    return torch.cat([to_roles, (shares * ~is_at.any(1)).sum(1, keepdim=True)], dim=1)


def _check(model: Model, circuit: Circuit, pairs: Pairs, roles: Sequence[str]) -> None:
    if not circuit.groups or not all(group.heads for group in circuit.groups.values()):
        raise InputError("a group without heads attends nowhere; give it heads, or leave it out")
    check_pairs(model, pairs, None)
    circuit.check_fits(model.n_layers, model.n_heads, pairs.positions)
    check_roles(pairs, circuit.roles)
    check_known_roles(pairs, roles)
