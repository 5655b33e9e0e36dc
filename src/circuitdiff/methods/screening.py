"""Screening: attribution says which heads path patching measures, and a random sample of heads what that misses.

1. `path_attribution` estimates every head's effect from gradients.
2. A random sample of heads is measured exactly, whatever its estimate.
3. So are the heads of the strongest estimates: as many as asked for; or all that are estimated at the minimum or more,
   and all whose effect could be twice that, if estimates of weak heads are off by no more than in the sample.

A head that was left out counts as tested, and as without an effect: leaving out by the same prompts that choose makes
no p smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdiff.circuit import Head
from circuitdiff.config.settings import Count
from circuitdiff.engine import Model
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB
from circuitdiff.engine.kept_runs import PairRuns
from circuitdiff.methods.attribution_patching import path_attribution
from circuitdiff.methods.path_patching import Path, PathEffects, check_path, path_effects
from circuitdiff.prompts import Pairs
from circuitdiff.readable import Readable
from circuitdiff.stats.metrics import Measured
from circuitdiff.stats.selection import lowest


@dataclass(frozen=True)
class Screen:
    """Path patching of the heads with the strongest attribution, and of a random sample.

    `keep`: how many of the strongest; None: as many as could matter by the minimum of the stage's rule, see above.
    `steps`: of integrated gradients; None: 1, and via q, k and v the larger of 1 and 2, as either may see too little of
    a softmax.
    """

    keep: Count | None = None
    sample: Count = 30
    steps: Count | None = None


@dataclass(frozen=True, repr=False)
class Screened(Readable):
    """Effects of the heads that were measured (nan elsewhere), and what the screen rests on."""

    effects: PathEffects
    estimates: Float[Tensor, "layer head"]  # attribution, in the metric's unit; 0 where no receiver can see the head
    strongest: Bool[Tensor, "layer head"]  # kept for their estimate
    sampled: Bool[Tensor, "layer head"]  # drawn at random; some of them are among the strongest


@torch.no_grad()
def screened_effects(
    model: Model,
    pairs: Pairs,
    path: Path,
    screen: Screen,
    minimum: float,
    *,
    metric: str | Measured = "logit_difference",
    seed: int = 0,
    shared: PairRuns | None = None,
    **how: Any,
) -> Screened:
    """`path_effects` of the heads that come through the screen. `how`: executor, memory and progress, as there.

    Raises: InputError as `path_effects` does.
    """
    check_path(model, pairs, path)
    along = (path.at, path.receivers, path.via, path.receivers_at)
    runs = shared or PairRuns(model, pairs, path.roles, how.get("memory_gb", DEFAULT_MEMORY_GB))
    given = {"metric": metric, "shared": runs} | how
    steps = (1, 2) if screen.steps is None and path.via else (screen.steps or 1,)
    tables = torch.stack([path_attribution(model, pairs, *along, steps=n, **given).scores[path.at] for n in steps])
    estimates = tables.gather(0, tables.abs().argmax(0, keepdim=True))[0]
    last = model.n_layers if path.last_layer is None else path.last_layer
    live = [Head(layer, i) for layer in range(last) for i in range(model.n_heads)]
    order = torch.randperm(len(live), generator=torch.Generator().manual_seed(seed)).tolist()
    sample = [live[i] for i in order[: screen.sample]]
    exact = path_effects(model, pairs, *along, senders=sample, **given)
    strongest = strongest_of(estimates, exact.effects, live, screen, minimum)
    rest = [head for head in strongest if head not in sample]
    effects = exact if not rest else joined(exact, path_effects(model, pairs, *along, senders=rest, **given))
    return Screened(effects, estimates, _marked(strongest, estimates), _marked(sample, estimates))


def strongest_of(
    estimates: Float[Tensor, "layer head"],
    exact: Float[Tensor, "layer head"],
    live: Sequence[Head],
    screen: Screen,
    minimum: float,
) -> list[Head]:
    """Of the heads that could have an effect, `live`, those that a screen keeps for their estimates.

    `exact`: effects of the random sample; nan elsewhere.
    """
    size = torch.full_like(estimates, torch.nan)
    for head in live:
        size[head.layer, head.index] = -estimates[head.layer, head.index].abs()
    if screen.keep is not None:
        return lowest(size, screen.keep)
    weak = ~exact.isnan() & (estimates.abs() < minimum)
    spread = float((exact - estimates)[weak].abs().max()) if weak.any() else 0.0
    return lowest(size, int((-size >= min(minimum, max(0.0, 2 * minimum - spread))).sum()))


def standing_for(
    able: Bool[Tensor, "layer head"], kept: Bool[Tensor, "layer head"], sampled: Bool[Tensor, "layer head"]
) -> Float[Tensor, "layer head"]:
    """How many of the `able` heads each measured one stands for: one that was kept for itself, and those that only the
    random sample has for all that were left out, in equal shares. 0 of the others.
    """
    weights, left_out = (kept & able).double(), able & ~kept
    if (drawn := sampled & left_out).any():
        weights[drawn] = float(left_out.sum()) / float(drawn.sum())
    return weights


def joined(first: PathEffects, second: PathEffects) -> PathEffects:
    """The first, with the effects of further heads; both are of the same path and prompts."""

    def both(own: Tensor, more: Tensor) -> Tensor:
        return torch.where(more.isnan(), own, more)

    own, more = first.on_counterfactual_answer, second.on_counterfactual_answer
    return replace(
        first,
        per_prompt=both(first.per_prompt, second.per_prompt),
        on_counterfactual_answer=None if own is None or more is None else both(own, more),
        noise_floor=max(first.noise_floor, second.noise_floor),
    )


def _marked(heads: Sequence[Head], like: Tensor) -> Bool[Tensor, "layer head"]:
    marks = torch.zeros(like.shape, dtype=torch.bool)
    for head in heads:
        marks[head.layer, head.index] = True
    return marks
