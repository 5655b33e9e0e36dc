"""Which heads a table of effects supports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from circuitdiff.circuit import Head, overlap
from circuitdiff.config.settings import Count, Share
from circuitdiff.errors import InputError
from circuitdiff.readable import Readable
from circuitdiff.stats.intervals import ClusterPValues, cluster_p_values, false_discovery_adjusted, one_sided
from circuitdiff.stats.metrics import negligible

_FLIPS = 4999


@dataclass(frozen=True)
class TopK:
    """The k strongest, however uncertain: the rule of Prakash et al. 2024 (arXiv:2402.14811).

    Where k heads are asked for, k come, with or without an effect, and what chose them says too much of each.
    """

    top: Count


@dataclass(frozen=True)
class Discoveries:
    """Heads whose effect is unlikely to be chance, is large enough, and shows again on a second split.

    1. Adjusted over the whole sweep, p <= `error_rate`: of those chosen at most this share is expected to be false
       ("bh"), or the chance that any is false is at most this ("max_t").
    2. |effect| >= `minimum`, in the metric's unit; by default what `stats.metrics.negligible` argues for, 0.02 logits.
    3. With `replicated`: on the second split the same sign, with one-sided p <= `replication_level`.

    Over all heads that come through 1 and 2, effects on the second split are unbiased. Of those alone that come through
    3 they are too large where the second split hardly shows them: a true effect of 2, 3 and 4 of its standard errors
    comes out 1.3, 1.06 and 1.01 times as large.
    """

    error_rate: Share = 0.05
    minimum: Annotated[float, Field(ge=0)] | None = None
    method: Literal["bh", "max_t"] = "bh"
    replicated: bool = True
    replication_level: Share = 0.05


class Sample(NamedTuple):
    """Effects per prompt on one split; nan for heads that were not measured."""

    per_prompt: Float[Tensor, "layer head prompt"]
    scenarios: Int[Tensor, " prompt"]

    @property
    def effects(self) -> Float[Tensor, "layer head"]:
        return self.per_prompt.double().mean(-1)

    def p_values(self, n_flips: int) -> ClusterPValues:
        return cluster_p_values(self.per_prompt.double().numpy(), self.scenarios.numpy(), n_flips=n_flips)


def resampled(samples: Sequence[Sample], generator: torch.Generator) -> list[Sample]:
    """As many scenarios, drawn with replacement, of samples on the same prompts; one that is drawn twice is two."""
    names, member = samples[0].scenarios.unique(return_inverse=True)
    drawn = torch.randint(len(names), (len(names),), generator=generator)
    rows = [(member == scenario).nonzero()[:, 0] for scenario in drawn.tolist()]
    scenarios = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(each) for each in rows]))
    return [Sample(each.per_prompt[..., torch.cat(rows)], scenarios) for each in samples]


@dataclass(frozen=True, repr=False)
class Selection(Readable):
    """Heads chosen, strongest first where they were chosen, and what the choice rests on.

    Effects of the chosen are biased here: they were chosen by them. `StageResult.reported` has others.
    """

    rule: TopK | Discoveries  # with its minimum
    helping: tuple[Head, ...]  # effect < 0
    hurting: tuple[Head, ...]  # effect > 0
    not_replicated: tuple[Head, ...]  # chosen but for the second split
    effects: Float[Tensor, "layer head"]
    p: Float[Tensor, "layer head"]  # two-sided, each head alone
    adjusted_p: Float[Tensor, "layer head"]  # over the whole family of tests; by the rule's method, BH for TopK
    replication_p: Float[Tensor, "layer head"] | None  # one-sided, second split


def lowest(effects: Float[Tensor, "layer head"], k: int, *, helping_only: bool = False) -> list[Head]:
    """The k heads with the lowest effects, lowest first; equal ones in row-major order.

    A nan is never chosen, so fewer than k may come back. With `helping_only` nor is an effect >= 0.
    """
    flat = effects.flatten()
    order = torch.argsort(flat, stable=True)
    allowed = (flat < 0) if helping_only else ~flat.isnan()
    n_heads = effects.shape[1]
    return [Head(*divmod(i, n_heads)) for i in order[allowed[order]][:k].tolist()]


def drop_shared(first: Sequence[Head], second: Iterable[Head]) -> list[Head]:
    """`first` without the heads that `second` has too, order kept: a value fetcher that transmits position leaves."""
    shared = frozenset(second)
    return [head for head in first if head not in shared]


def select(
    per_prompt: Float[Tensor, "layer head prompt"],
    scenarios: Int[Tensor, " prompt"],
    rule: TopK | Discoveries,
    noise_floor: float,
    replication: Sample | None = None,
    *,
    beside: Sequence[Sample] = (),
    metric: str = "logit_difference",
    stand_in: Sample | None = None,
) -> Selection:
    """Heads that help and heads that hurt, chosen by `rule` from one sweep; none with |mean effect| <= `noise_floor`.

    A head that was not measured counts as one of the sweep, with p = 1. `beside`: other sweeps of the same family of
    tests, over which p is adjusted, too (by BH only). `stand_in`: where the replication lacks a head.

    Raises: InputError if the rule asks for a replication and none is given.
    """
    sample = Sample(per_prompt, scenarios)
    by_max_t = isinstance(rule, Discoveries) and rule.method == "max_t"
    effects, test, again = sample.effects, sample.p_values(_FLIPS if by_max_t else 1), None
    each, *others = (np.nan_to_num(of.p, nan=1.0) for of in (test, *(other.p_values(1) for other in beside)))
    together = false_discovery_adjusted(np.concatenate([table.ravel() for table in (each, *others)]))
    over_family = together[: each.size].reshape(each.shape)
    p, adjusted = map(torch.from_numpy, (each, test.max_t_p if by_max_t else over_family))
    if replication is not None:
        known = (one_sided(each.p_values(1), (effects < 0).numpy()) for each in (replication, stand_in) if each)
        again = torch.from_numpy(next(known))
        again = next((torch.where(again.isnan(), torch.from_numpy(more), again) for more in known), again)
    candidates, k = effects.abs() > noise_floor, effects.numel()
    chosen = candidates
    if isinstance(rule, TopK):
        k = rule.top
    else:
        minimum = negligible(metric) if rule.minimum is None else rule.minimum
        rule = replace(rule, minimum=minimum)
        chosen = candidates = candidates & (adjusted <= rule.error_rate) & (effects.abs() >= minimum)
        if rule.replicated:
            if again is None:
                raise InputError(
                    "this rule wants discoveries replicated; give a second split or set replicated to false"
                )
            chosen = candidates & (again <= rule.replication_level)
    helping, hurting = (tuple(_strongest(sign * effects, chosen, k)) for sign in (1, -1))
    failed = tuple(_strongest(-effects.abs(), candidates & ~chosen, k))
    return Selection(rule, helping, hurting, failed, effects, p, adjusted, again)


class Stability(NamedTuple):
    """How like the chosen heads that help are those that other scenarios choose: Jaccard's index, the mean over 100
    resamples and the range of 95 of them. nan where none is chosen.
    """

    value: float
    low: float
    high: float


STABLE = 0.8
_RESAMPLES = 100


def stability(
    chosen: Selection,
    sample: Sample,
    noise_floor: float,
    replication: Sample | None = None,
    *,
    beside: Sequence[Sample] = (),
    weights: Float[Tensor, "layer head"] | None = None,
    seed: int = 0,
) -> Stability:
    """Of the choice that `chosen` made from these samples. Scenarios of both are drawn anew, with replacement, and the
    same rule is applied; the heads that receive stay. `STABLE` and more is called stable.

    `weights`: where a screen left heads out, how many heads each measured one stands for. One that other scenarios
    choose counts as often among those that were not chosen before: so many more would have been, had all been measured.
    A head whose replication nobody measured stands with its effects on the first split, drawn once more.

    Source: the Jaccard index over bootstrap resamples of Meloux et al. 2025 (arXiv:2510.00845).
    """
    if not chosen.helping:
        return Stability(float("nan"), float("nan"), float("nan"))
    g, found = torch.Generator().manual_seed(seed), list[float]()
    for _ in range(_RESAMPLES):
        first, *others = resampled([sample, *beside], g)
        second = None if replication is None else resampled([replication], g)[0]
        stand_in = None if weights is None or second is None else resampled([sample], g)[0]
        again = select(*first, chosen.rule, noise_floor, second, beside=others, stand_in=stand_in)
        unseen = 0.0 if weights is None else sum(float(weights[head.layer, head.index]) - 1 for head in again.helping)
        common = overlap(chosen.helping, again.helping)
        found.append(common.common / (common.first + common.second - common.common + unseen))
    low, high = np.quantile(found, [0.025, 0.975])
    return Stability(float(np.mean(found)), float(low), float(high))


def _strongest(effects: Float[Tensor, "layer head"], among: Bool[Tensor, "layer head"], k: int) -> list[Head]:
    return lowest(torch.where(among, effects, torch.nan), k, helping_only=True)
