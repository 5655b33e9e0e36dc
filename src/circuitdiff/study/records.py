"""How what methods compute is kept: as tensors, and JSON beside them; and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from math import nan
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.cache.records import Record
from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.evaluation import Evaluation, SlotSums
from circuitdiff.methods.completeness import Completeness, GreedyPart, GreedyStep
from circuitdiff.methods.component_mask.fit import MaskFit
from circuitdiff.methods.component_mask.training import Check, Mask
from circuitdiff.methods.cross_model.activations import Carrier
from circuitdiff.methods.cross_model.hybrids import Basis, Ran
from circuitdiff.methods.cross_model.patching import Controls, CrossPatch
from circuitdiff.methods.edges import Edge
from circuitdiff.methods.graft import Graft, Part
from circuitdiff.methods.minimality import GroupMinimality, HeadCost, MinimalityResult, MinimalityRule, PairTable
from circuitdiff.methods.path_patching import PathEffects
from circuitdiff.prompts import Triples
from circuitdiff.stats.intervals import Interval

_ANSWERS = tuple(each.name for each in fields(Evaluation))
_CONTROLS = ("nothing", "group", "any_layer", "elsewhere", "noise", "scaled")  # of patching, beside random groups


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
        costs = [_cost(cost) for cost in group.costs]
        groups[name] = {"at": group.at, "heads": _places(group.table.heads), "costs": costs}
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


def _cost(cost: HeadCost) -> dict[str, Any]:
    head = cost.head
    return {**vars(cost), "head": [head.layer, head.index], "removed_with": _places(cost.removed_with)}


def _head_cost(data: Mapping[str, Any]) -> HeadCost:
    intervals = {name: _interval(data[name]) for name in ("cost", "cost_in_hits")}
    heads = {"head": Head(*data["head"]), "removed_with": _heads(data["removed_with"])}
    return HeadCost(**{**data, **intervals, **heads})


def completeness_record(result: Completeness, worst: GreedyPart | None) -> Record:
    """Scores prompt by prompt as tensors; the removed parts, and the search, beside them."""
    search = None if worst is None else {"removed": worst.removed.to_dict(), "steps": list(map(asdict, worst.steps))}
    tensors = {"model": result.model, "circuit": result.circuit, "scenarios": result.scenarios}
    return Record(tensors, {"removed": [part.to_dict() for part in result.removed], "search": search})


def completeness_from(record: Record) -> tuple[Completeness, GreedyPart | None]:
    search, worst = record.data["search"], None
    if search is not None:
        steps = tuple(GreedyStep(**{**step, "head": Head(**step["head"])}) for step in search["steps"])
        worst = GreedyPart(Circuit.from_dict(search["removed"]), steps)
    return Completeness(tuple(map(Circuit.from_dict, record.data["removed"])), **record.tensors), worst


class GroupWork(NamedTuple):
    """What the groups of a circuit do in one model, prompt by prompt."""

    edges: Mapping[Edge, Float[Tensor, " prompt"]]
    attention: Mapping[str, Float[Tensor, "prompt role"]]  # mean over the group's heads
    effects: Mapping[str, Float[Tensor, "role prompt"]]


def group_work_record(work: GroupWork) -> Record:
    tensors = {f"edge.{i}": effects for i, effects in enumerate(work.edges.values())}
    for name in work.attention:
        tensors |= {f"attention.{name}": work.attention[name], f"effect.{name}": work.effects[name]}
    return Record(tensors, {"edges": list(map(list, work.edges)), "groups": list(work.attention)})


def group_work_from(record: Record) -> GroupWork:
    edges = {Edge(*edge): record.tensors[f"edge.{i}"] for i, edge in enumerate(record.data["edges"])}
    of_groups = (
        {name: record.tensors[f"{what}.{name}"] for name in record.data["groups"]} for what in ("attention", "effect")
    )
    return GroupWork(edges, *of_groups)


def _interval(bounds: Sequence[float | None]) -> Interval:
    """Records have null for nan."""
    return Interval(*(math.nan if bound is None else bound for bound in bounds))


def mask_record(fit: MaskFit) -> Record:
    """All masks with what they keep, and all answers triple by triple; back by `mask_from`."""
    masks = {"mask": fit.mask} | {f"other {i}": mask for i, mask in enumerate(fit.others)}
    masks |= {} if fit.shuffled is None else {"shuffled": fit.shuffled}
    answers = {**fit.answers} | {f"other {i}": each for i, each in enumerate(fit.other_answers)}
    tensors = {f"keep.{name}": mask.keep for name, mask in masks.items()}
    tensors |= {f"answers.{name}": each for name, each in answers.items()}
    data = {name: [mask.penalty, mask.seed, mask.validation_accuracy, mask.checks] for name, mask in masks.items()}
    return Record(tensors, data)


def mask_from(record: Record, desideratum: str, group: Group, test: Triples, minimum: float) -> MaskFit:
    """`test`: the triples that it was tested on."""
    masks = {
        name: Mask(
            group.heads, record.tensors[f"keep.{name}"], penalty, seed, tuple(Check(*each) for each in checks), best
        )
        for name, (penalty, seed, best, checks) in record.data.items()
    }
    answers = {name[8:]: each for name, each in record.tensors.items() if name.startswith("answers.")}
    others = [f"other {i}" for i in range(sum(name.startswith("other ") for name in masks))]
    return MaskFit(
        desideratum=desideratum,
        group=group,
        mask=masks["mask"],
        shuffled=masks.get("shuffled"),
        minimum=minimum,
        others=tuple(masks[name] for name in others),
        test=test,
        answers={name: each for name, each in sorted(answers.items()) if name not in others},
        other_answers=tuple(answers[name] for name in others),
    )


def patches_record(patches: Mapping[Carrier, CrossPatch]) -> Record:
    """Of kinds that were patched together, which have the donor in common: its answers, then each run's."""
    runs = [ran for patch in patches.values() for ran in patch.runs.values()]
    kinds = [
        {
            "what": what,
            "order": list(patch.order),
            "runs": [sorted(subset) for subset in patch.runs],
            "bases": {name: basis._asdict() for name, basis in patch.bases.items()},
            "noise_floor": patch.noise_floor,
        }
        for what, patch in patches.items()
    ]
    donor = next(iter(patches.values())).donor
    answers = evaluations_record([donor, *(ran.answers for ran in runs)], kinds)
    return Record({**answers.tensors, "distances": torch.stack([ran.distance for ran in runs])}, answers.data)


def patches_from(record: Record) -> dict[Carrier, CrossPatch]:
    donor, *answers = evaluations_from(record)
    runs = iter([Ran(*each) for each in zip(answers, record.tensors["distances"], strict=True)])
    return {
        kind["what"]: CrossPatch(
            what=kind["what"],
            order=tuple(kind["order"]),
            donor=donor,
            runs={frozenset(subset): next(runs) for subset in kind["runs"]},
            bases={name: Basis(*map(_number_or_nan, basis.values())) for name, basis in kind["bases"].items()},
            noise_floor=kind["noise_floor"],
        )
        for kind in record.data[1]
    }


def controls_record(donor: Evaluation, controls: Controls) -> Record:
    """The donor's answers, then those of each control."""
    named: dict[str, Ran] = {name: ran for name in _CONTROLS if (ran := getattr(controls, name)) is not None}
    runs = [*named.values(), *controls.same_layers]
    answers = evaluations_record([donor, *(ran.answers for ran in runs)], list(named))
    return Record({**answers.tensors, "distances": torch.stack([ran.distance for ran in runs])}, answers.data)


def controls_from(record: Record) -> tuple[Evaluation, Controls]:
    """The donor's answers, and the controls."""
    donor, *answers = evaluations_from(record)
    runs = [Ran(*each) for each in zip(answers, record.tensors["distances"], strict=True)]
    names = record.data[1]
    named = dict.fromkeys(_CONTROLS) | dict(zip(names, runs, strict=False))
    return donor, Controls(**named, same_layers=tuple(runs[len(names) :]))  # pyright: ignore[reportArgumentType]


def grafts_record(grafts: Sequence[Graft]) -> Record:
    """Of each division of the weights the donor's answers, then each run's. Of its parts, which heads they are."""
    divisions = [
        {
            "order": list(graft.order),
            "runs": [sorted(subset) for subset in graft.runs],
            "parts": {name: [_places(part.heads), _places(part.also_touched)] for name, part in graft.parts.items()},
            "unchanged": list(graft.unchanged),
            "whole_graft_error": graft.whole_graft_error,
        }
        for graft in grafts
    ]
    return evaluations_record([each for graft in grafts for each in (graft.donor, *graft.runs.values())], divisions)


def grafts_from(record: Record) -> list[Graft]:
    answers = iter(evaluations_from(record))
    return [
        Graft(
            order=tuple(division["order"]),
            parts={name: Part((), *map(_heads, heads)) for name, heads in division["parts"].items()},
            unchanged=tuple(division["unchanged"]),
            donor=next(answers),
            runs={frozenset(subset): next(answers) for subset in division["runs"]},
            whole_graft_error=division["whole_graft_error"],
        )
        for division in record.data[1]
    ]


def _number_or_nan(value: float | None) -> float:
    return nan if value is None else value


def _places(heads: Sequence[Head]) -> list[list[int]]:
    return [[head.layer, head.index] for head in heads]


def _heads(places: Sequence[Sequence[int]]) -> tuple[Head, ...]:
    return tuple(Head(layer, index) for layer, index in places)
