"""How what methods compute is kept: as tensors, and JSON beside them; and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch

from circuitdiff.cache.records import Record
from circuitdiff.circuit import Head
from circuitdiff.evaluation import Evaluation, SlotSums
from circuitdiff.methods.minimality import GroupMinimality, HeadCost, MinimalityResult, MinimalityRule, PairTable
from circuitdiff.methods.path_patching import PathEffects
from circuitdiff.stats.intervals import Interval

_ANSWERS = tuple(each.name for each in fields(Evaluation))


def evaluations_record(evaluations: Sequence[Evaluation], data: Any = None) -> Record:
    """All answers prompt by prompt, and `data` beside them."""
    tensors = {f"{i}.{name}": getattr(each, name) for i, each in enumerate(evaluations) for name in _ANSWERS}
    return Record(tensors, [len(evaluations), data])


def evaluations_from(record: Record) -> list[Evaluation]:
    return [Evaluation(*(record.tensors[f"{i}.{name}"] for name in _ANSWERS)) for i in range(record.data[0])]


def effects_record(effects: PathEffects) -> Record:
    tensors = {"per_prompt": effects.per_prompt, "scenarios": effects.scenarios}
    if effects.on_counterfactual_answer is not None:
        tensors["on_counterfactual_answer"] = effects.on_counterfactual_answer
    return Record(tensors, {"noise_floor": effects.noise_floor, "metric": effects.metric})


def effects_from(record: Record) -> PathEffects:
    return PathEffects(
        per_prompt=record.tensors["per_prompt"],
        on_counterfactual_answer=record.tensors.get("on_counterfactual_answer"),
        noise_floor=record.data["noise_floor"],
        scenarios=record.tensors["scenarios"],
        metric=record.data["metric"],
    )


def means_record(sums: SlotSums, dtype: torch.dtype) -> Record:
    """Means by slot and by kind; see `host.LoadedModel.means`."""
    return Record({by: sums.means(by, dtype).values.cpu() for by in ("slot", "kind")}, list(sums.slot_names))


def measured_record(value: float, allowed: float) -> Record:
    """What a check measured, and how much it may be; see `StudyContext.check`."""
    return Record({}, {"value": value, "allowed": allowed})


def minimality_record(result: MinimalityResult) -> Record:
    """Pair tables and costs prompt by prompt as tensors, all else beside them."""
    tensors, groups = {"scenarios": result.scenarios}, {}
    for name, group in result.groups.items():
        tensors |= {f"{name}.pair_table": group.table.scores, f"{name}.cost_per_prompt": group.per_prompt}
        heads = [asdict(head) for head in group.table.heads]
        groups[name] = {"at": group.at, "heads": heads, "costs": [asdict(cost) for cost in group.costs]}
    return Record(tensors, {"groups": groups, "rule": asdict(result.rule), "n_choosing": result.n_choosing})


def minimality_from(record: Record) -> MinimalityResult:
    groups = {
        name: GroupMinimality(
            at=group["at"],
            table=PairTable(_heads(group["heads"]), record.tensors[f"{name}.pair_table"]),
            costs=tuple(map(_head_cost, group["costs"])),
            per_prompt=record.tensors[f"{name}.cost_per_prompt"],
        )
        for name, group in record.data["groups"].items()
    }
    rule = MinimalityRule(**record.data["rule"])
    return MinimalityResult(groups, rule, record.tensors["scenarios"], record.data["n_choosing"])


def _head_cost(data: Mapping[str, Any]) -> HeadCost:
    intervals = {name: _interval(data[name]) for name in ("cost", "cost_in_hits")}
    heads = {"head": Head(**data["head"]), "removed_with": _heads(data["removed_with"])}
    return HeadCost(**{**data, **intervals, **heads})


def _heads(data: Sequence[Mapping[str, int]]) -> tuple[Head, ...]:
    return tuple(Head(**each) for each in data)


def _interval(bounds: Sequence[float | None]) -> Interval:
    """Records have null for nan."""
    return Interval(*(math.nan if bound is None else bound for bound in bounds))
