"""What groups of heads do: where they attend, where what they write matters, and which groups do the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.stats.intervals import Interval, cluster_weights, mean_interval
from circuitdiff.study.estimates import Estimate, estimate
from circuitdiff.study.records import GroupWork


@dataclass(frozen=True)
class AtRole:
    role: str
    base: Estimate
    variant: Estimate


@dataclass(frozen=True)
class Profile:
    """What one of the base's groups does in base and variant: where it attends, and where its output matters."""

    attention: tuple[AtRole, ...]
    effect: tuple[AtRole, ...]


@dataclass(frozen=True)
class SameWork:
    """How alike the profiles of a group of the base and one of the variant's own circuit are: cosines."""

    base: str
    variant: str
    attention: Estimate
    effect: Estimate


def profiles(
    roles: Sequence[str], in_base: GroupWork, in_variant: GroupWork, scenarios: Tensor
) -> Mapping[str, Profile]:
    return {
        name: Profile(
            attention=_by_role(roles, in_base.attention[name].T, in_variant.attention[name].T, scenarios, (0, 1)),
            effect=_by_role(roles, in_base.effects[name], in_variant.effects[name], scenarios),
        )
        for name in in_base.attention
    }


def _by_role(
    roles: Sequence[str],
    base: Float[Tensor, "role prompt"],
    variant: Float[Tensor, "role prompt"],
    scenarios: Tensor,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[AtRole, ...]:
    """`bounds`: beyond which no mean can lie, whatever the bootstrap says."""
    means = [mean_interval(rows.double().numpy(), scenarios.numpy()) for rows in (base, variant)]
    intervals = [Interval(*(np.clip(each, *bounds) for each in mean)) for mean in means]
    return tuple(AtRole(role, *(estimate(each, i) for each in intervals)) for i, role in enumerate(roles))


def same_work(in_base: GroupWork, own: GroupWork, scenarios: Tensor) -> tuple[SameWork, ...]:
    """Every pair of a group of the base, in the base, and a group of the variant's own circuit, in the variant."""
    return tuple(
        SameWork(
            base,
            variant,
            cosine(in_base.attention[base].T, own.attention[variant].T, scenarios),
            cosine(in_base.effects[base], own.effects[variant], scenarios),
        )
        for base, variant in product(in_base.attention, own.attention)
    )


def cosine(one: Float[Tensor, "role prompt"], other: Float[Tensor, "role prompt"], scenarios: Tensor) -> Estimate:
    """The cosine of two mean profiles, with a 95 % bootstrap interval over scenarios, both resampled together.

    With one scenario there are no bounds.
    """
    weights = cluster_weights(scenarios.numpy())
    means = [np.concatenate([np.ones((1, len(scenarios))), weights]) @ x.double().numpy().T for x in (one, other)]
    first, second = (torch.from_numpy(mean) for mean in means)
    value, *resampled = torch.nn.functional.cosine_similarity(first, second, dim=1).tolist()
    low, high = np.quantile(resampled, [0.025, 0.975]) if len(scenarios.unique()) > 1 else (math.nan, math.nan)
    return estimate(Interval(value, float(low), float(high)))
