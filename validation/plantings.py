"""Claims over many plantings of the base: how often discovery errs, and whether its intervals keep their word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from pydantic import PlainSerializer
from scipy.stats import binomtest

from circuitdiff.circuit import Head, Overlap, overlap
from circuitdiff.evaluation import evaluate_model
from circuitdiff.methods.discovery import StageResult, circuit_of
from circuitdiff.methods.path_patching import path_effects
from circuitdiff.prompts import Pairs
from circuitdiff.stats.intervals import Interval
from validation.subjects import MINIMUM, PLAN, RULE, Row, Sizes, Subject, at_least, at_most, run_plan, task

_NAME = "planted-base, other plantings"
_Sizes = Annotated[Overlap, PlainSerializer(Overlap._asdict)]  # found, planted, in common
_PARTS = {"value_fetcher": ("value_fetcher", "negative"), "position_transmitter": ("position_transmitter",)}


@dataclass(frozen=True)
class Coverage:
    """How many 95 % intervals hold the true effect."""

    covered: int
    n: int

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(self.covered + other.covered, self.n + other.n)


@dataclass(frozen=True)
class Alarm:
    """A decoy that a stage chose: what was measured, and what many more prompts say. Negative = it helps."""

    stage: str
    head: str
    effect: float
    true_effect: float


@dataclass(frozen=True)
class Planting:
    """What discovery made of one planting."""

    seed: int
    accuracy: float
    groups: Mapping[str, _Sizes]
    negative: _Sizes
    decoys_tested: int  # once per stage
    alarms: tuple[Alarm, ...]  # decoys that were chosen
    coverage: Mapping[str, Coverage]  # by stage and kind of head


def try_planting(subject: Subject, seed: int, sizes: Sizes) -> Planting:
    results = run_plan(subject)
    fresh = task().sample(subject.model.tokenizer, sizes.truth, seed, "evaluation")
    found, planted, decoys = circuit_of(results, PLAN.shared_heads), subject.truth.circuit, subject.decoys
    groups = {
        name: overlap(found.groups[name].heads if name in found.groups else (), group.heads)
        for name, group in planted.groups.items()
    }
    return Planting(
        seed=seed,
        accuracy=float(evaluate_model(subject.model, subject.prompts["evaluation"]).accuracy.value),
        groups=groups,
        negative=overlap(results[0].selection.hurting, subject.truth.negative),
        decoys_tested=sum(len(decoys & _audible(subject, result)) for result in results),
        alarms=tuple(alarm for result in results for alarm in _alarms(subject, result, fresh)),
        coverage=_coverage(subject, seed, fresh, sizes.decoys),
    )


def _audible(subject: Subject, result: StageResult) -> set[Head]:
    """Heads that come before a receiver: others have no effect by construction."""
    last = max((head.layer for head in result.receivers), default=subject.model.n_layers)
    return {Head(layer, i) for layer in range(last) for i in range(subject.model.n_heads)}


def _alarms(subject: Subject, result: StageResult, fresh: Pairs) -> list[Alarm]:
    chosen = sorted(subject.decoys & {*result.selection.helping, *result.selection.hurting})
    if not chosen:
        return []
    stage, receivers = result.stage, result.receivers or None
    again = path_effects(subject.model, fresh, stage.at, receivers, stage.via, stage.receivers_at, chosen)
    return [
        Alarm(stage.name, str(h), float(result.reported.effects[place]), float(again.effects[place]))
        for h, place in ((h, (h.layer, h.index)) for h in chosen)
    ]


def _coverage(subject: Subject, seed: int, fresh: Pairs, n_decoys: int) -> Mapping[str, Coverage]:
    """Straight into the logits and via the fetchers' q, for the planted heads and some decoys."""
    g = torch.Generator().manual_seed(seed)
    result: dict[str, Coverage] = {}
    for stage in PLAN.stages[:2]:
        receivers = subject.truth.circuit.groups[stage.receivers_from].heads if stage.receivers_from else None
        last = max(head.layer for head in receivers) if receivers else subject.model.n_layers
        live = sorted(head for head in subject.decoys if head.layer < last)
        decoys = [live[i] for i in torch.randperm(len(live), generator=g)[:n_decoys].tolist()]
        planted = [head for part in _PARTS[stage.name] for head in subject.truth.parts[part]]
        few, many = (
            path_effects(subject.model, pairs, stage.at, receivers, stage.via, senders=[*planted, *decoys])
            for pairs in (subject.prompts["discovery"], fresh)
        )
        covers = torch.from_numpy(
            holds(few.intervals(), many.effects.numpy(), len(subject.prompts["discovery"]), len(fresh))
        )
        for kind, heads in (("planted", planted), ("decoys", decoys)):
            inside = sum(bool(covers[head.layer, head.index]) for head in heads)
            result[f"{stage.name}, {kind}"] = Coverage(inside, len(heads))
    return result


def holds(few: Interval, many: Float[ndarray, "*row"], n_few: int, n_many: int) -> Bool[ndarray, "*row"]:
    """Whether the intervals of a few prompts hold the mean of many others, whose own error is allowed for.

    Both are means of draws from the same distribution, so their difference has the variance of the first, times
    1 + n_few / n_many: the interval is widened by the root of that.
    """
    wider = (1 + n_few / n_many) ** 0.5
    low, high = (few.value + wider * (bound - few.value) for bound in (few.low, few.high))
    return np.asarray((low <= many) & (many <= high))


def _summed(rows: Sequence[Overlap]) -> Overlap:
    return Overlap(*(sum(row[i] for row in rows) for i in range(3)))


def planting_rows(plantings: Sequence[Planting]) -> list[Row]:
    """Over all plantings together."""
    whole = _summed([each for planting in plantings for each in planting.groups.values()])
    negative = _summed([planting.negative for planting in plantings])
    tested = sum(planting.decoys_tested for planting in plantings)
    alarms = [alarm for planting in plantings for alarm in planting.alarms]
    exact = sum(all(each.jaccard == 1 for each in planting.groups.values()) for planting in plantings)
    sure = 1 - RULE.error_rate
    rate, n = len(alarms) / max(1, tested), len(plantings)
    helping, real = (sum(alarm.effect < 0 for alarm in alarms), sum(abs(a.true_effect) >= MINIMUM for a in alarms))
    detail = (
        f"{helping} helping and {len(alarms) - helping} hurting of {tested} tests of a decoy at a stage; the true "
        f"effect of {real} is {MINIMUM:g} or more"
    )
    rows = [
        at_least(_NAME, "precision", whole.precision, sure, f"{whole.common} of {whole.first} heads found"),
        at_least(_NAME, "recall", whole.recall, sure, f"{whole.common} of {whole.second}; exact in {exact} of {n}"),
        at_least(_NAME, "negative: recall", negative.recall, sure, f"{negative.common} of {negative.second}"),
        at_most(_NAME, "false-alarm rate", rate, RULE.error_rate, detail),
    ]
    kinds = plantings[0].coverage if plantings else {}
    parts = {kind: sum((p.coverage[kind] for p in plantings), Coverage(0, 0)) for kind in kinds}
    return [
        *rows,
        _coverage_row("all", sum(parts.values(), Coverage(0, 0))),
        *map(_coverage_row, parts, parts.values()),
    ]


def _coverage_row(kind: str, came: Coverage) -> Row:
    bounds = binomtest(came.covered, came.n).proportion_ci(0.95)
    detail = f"{came.covered} of {came.n}; interval {bounds.low:.3f} to {bounds.high:.3f}"
    passed = bool(bounds.low <= 0.95 <= bounds.high)
    return Row(_NAME, f"coverage: {kind}", came.covered / came.n, "interval holds 0.95", passed, detail)
