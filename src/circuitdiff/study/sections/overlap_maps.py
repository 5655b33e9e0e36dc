"""Effects of the same heads in base and variant: where screens kept others in each, the others' are measured, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdiff.circuit import Head
from circuitdiff.methods.discovery import Split, StageResult
from circuitdiff.methods.path_patching import PathEffects
from circuitdiff.methods.screening import joined, standing_for
from circuitdiff.stats.effect_maps import Change, Weights, changed_heads
from circuitdiff.stats.metrics import negligible
from circuitdiff.study.section import PromptsOf, StudyContext
from circuitdiff.study.sections.discovery import Discovered
from circuitdiff.study.sections.discovery_units import path_of, sweep


class TwoMaps(NamedTuple):
    """One stage in base and variant, with what chose the heads as measured, and as it is reported.

    `weights`: without a screen None. Else of heads that a screen kept in either model 1; of those that only the random
    samples have as many as they stand for, so that all others are in the likeness as they are in the sample; of all
    others 0. The chance of the draw is not in any interval.
    """

    found: tuple[PathEffects, PathEffects]
    reported: tuple[PathEffects, PathEffects]
    changes: tuple[Change, ...]
    smallest_change: float
    weights: Weights | None


class MapOf(NamedTuple):
    """One model's stage, and the roles at which sweeps of its plan share their runs."""

    model: str
    result: StageResult
    roles: tuple[str, ...]


def maps_of(found: Discovered) -> list[MapOf]:
    return [MapOf(found.model, result, found.roles) for result in found.stages]


async def two_maps(study: StudyContext, base: MapOf, variant: MapOf) -> TwoMaps:
    """Heads are chosen as changed where the stage's heads were, and reported where their effects are."""
    both, weights = (base, variant), None
    found = [_with_zeros(each.result, each.result.found) for each in both]
    if base.result.screened is not None or variant.result.screened is not None:
        wanted, weights = _heads_of_both(base.result, variant.result)
        found = await _completed(study, both, found, wanted, "discovery")
    smallest = max(negligible(found[0].metric), *(each.noise_floor for each in found))
    changes = changed_heads(_per_prompt(found[0]), _per_prompt(found[1]), found[0].scenarios.numpy(), smallest)
    reported = found
    if base.result.split == "replication":
        chosen = torch.zeros_like(found[0].effects, dtype=torch.bool)
        for change in changes:
            chosen[change.head.layer, change.head.index] = True
        known = [_with_zeros(each.result, each.result.reported) for each in both]
        reported = await _completed(study, both, known, chosen, "replication")
    return TwoMaps((found[0], found[1]), (reported[0], reported[1]), tuple(changes), smallest, weights)


def _per_prompt(effects: PathEffects) -> Float[np.ndarray, "layer head prompt"]:
    return effects.per_prompt.double().numpy()


def _with_zeros(result: StageResult, effects: PathEffects) -> PathEffects:
    """Of heads that no receiver can see, which a screen does not look at."""
    per_prompt = effects.per_prompt.clone()
    per_prompt[~result.able] = 0.0
    return replace(effects, per_prompt=per_prompt)


async def _completed(
    study: StudyContext,
    both: Sequence[MapOf],
    effects: Sequence[PathEffects],
    heads: Bool[Tensor, "layer head"],
    split: Split,
) -> list[PathEffects]:
    """With the effects of these heads in either model that were not measured yet."""

    async def more(known: tuple[MapOf, PathEffects]) -> PathEffects:
        of, found = known
        missing = tuple(Head(*place) for place in (heads & found.effects.isnan()).nonzero().tolist())
        if not missing:
            return found
        stage, prompts = of.result.stage, PromptsOf(split)
        title = f"{stage.name} ({split}) in {of.model}, heads of the other model's map"
        given = {"path": path_of(stage, of.result.receivers or None), "metric": found.metric, "senders": missing}
        return joined(found, await study.value(title, sweep, of.model, prompts=prompts, shared_roles=of.roles, **given))

    return await study.each(list(zip(both, effects, strict=True)), more)


def _heads_of_both(first: StageResult, second: StageResult) -> tuple[Bool[Tensor, "layer head"], Weights]:
    """The heads that either screen measured, and how many each stands for; where no sample has one of those that both
    screens left out, these are measured, too.
    """
    able, kept, sampled = (torch.zeros_like(first.found.effects, dtype=torch.bool) for _ in range(3))
    for result in (first, second):
        assert result.screened is not None, "one stage has one screen, in both models"
        able |= result.able
        kept |= result.screened.strongest
        sampled |= result.screened.sampled
    left_out = able & ~kept
    if not (drawn := sampled & left_out).any():
        drawn = left_out
    return kept | drawn, standing_for(able, kept, drawn).numpy()
