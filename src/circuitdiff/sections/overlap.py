"""Is a variant's circuit the base's? Heads in common, effects alike, heads gained and lost, edges, what groups do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Circuit, Group
from circuitdiff.compare import Overlap, circuit_overlap, total
from circuitdiff.discovery import StageResult
from circuitdiff.effect_maps import Change, Likeness, changed_heads, compare_maps
from circuitdiff.methods.group_profile import attention_by_role, effect_by_role
from circuitdiff.methods.path_patching import Via, group_path_effects
from circuitdiff.prompts import Pairs
from circuitdiff.sections.discovery import Found
from circuitdiff.sections.entries import interval_entry
from circuitdiff.statistics import difference_interval, mean_interval
from circuitdiff.store import Record
from circuitdiff.workbench import Subject, Workbench

_KS = (5, 10, 20, 40)
_PROMPTS = 100  # for edges and profiles
_SMALLEST_CHANGE = 0.02  # of a head's effect, in the metric's unit


def overlap_section(bench: Workbench, found: Mapping[str, Found]) -> dict[str, Any]:
    """Each variant's circuit against the base's, where the main plan was run in both."""
    base = found[bench.base]
    others = {name: each for name, each in found.items() if name != bench.base}
    ours = _measured(bench, bench.base, base.circuit) if others and base.circuit.roles else None
    return {"overlap": {name: _against_base(bench, base, ours, name, each) for name, each in others.items()}}


def _against_base(bench: Workbench, base: Found, ours: _Measured | None, name: str, variant: Found) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "groups": _groups(base.circuit, variant.circuit),
        "stages": [
            _stage(first, second) | {"different": _different(first, variant.stages)}
            for first, second in zip(base.stages, variant.stages, strict=False)
            if first.stage == second.stage
        ],
    }
    if ours is not None:
        theirs = _measured(bench, name, base.circuit)
        entry |= {"edges": _edges(ours, theirs), "profiles": _profiles(ours, theirs)}
    if variant.circuit.roles and ours is not None:
        own = _measured(bench, name, variant.circuit)
        entry["moved"] = _same_work(ours, own)
    return entry


def _groups(first: Circuit, second: Circuit) -> list[dict[str, Any]]:
    shared = circuit_overlap(first, second)
    return [_overlap(name, each) for name, each in [*shared.items(), ("all groups", total(shared.values()))]]


def _overlap(name: str, shared: Overlap) -> dict[str, Any]:
    return {
        "group": name,
        "base": shared.first,
        "variant": shared.second,
        "common": shared.common,
        "precision": shared.precision,
        "recall": shared.recall,
        "jaccard": shared.jaccard,
    }


def _stage(first: StageResult, second: StageResult) -> dict[str, Any]:
    """Effects of every head in base and variant, into whatever receivers each model's own plan found."""
    ours, theirs = (result.found.per_prompt.double().numpy() for result in (first, second))
    scenarios = first.found.scenarios.numpy()
    compared = compare_maps(ours, theirs, scenarios, _KS)
    smallest = max(_SMALLEST_CHANGE, first.found.noise_floor, second.found.noise_floor)
    changed = changed_heads(ours, theirs, scenarios, minimum=smallest)
    return {
        "stage": first.stage.name,
        "same_receivers": first.receivers == second.receivers,
        "correlation": _likeness(compared.correlation),
        "jaccard": [{"k": k} | _likeness(each) for k, each in compared.jaccard.items()],
        "changed": [_change(change) for change in changed],
        "smallest_change": smallest,
    }


def _different(first: StageResult, others: Sequence[StageResult]) -> dict[str, float] | None:
    """The control: the largest correlation with the variant's map of another stage, which is another circuit's."""
    effects, scenarios = first.found.per_prompt.double().numpy(), first.found.scenarios.numpy()
    spreads = [
        compare_maps(effects, other.found.per_prompt.double().numpy(), scenarios, ()).correlation.between
        for other in others
        if other.stage != first.stage
    ]
    known = [spread for spread in spreads if math.isfinite(spread.value)]
    return max(known, key=lambda spread: spread.value)._asdict() if known else None


def _likeness(each: Likeness) -> dict[str, Any]:
    spreads = {"between": each.between, "base": each.first, "variant": each.second}
    return {name: spread._asdict() for name, spread in spreads.items()} | {"floor": each.floor}


def _change(change: Change) -> dict[str, Any]:
    return {
        "head": [change.head.layer, change.head.index],
        "base": change.first,
        "variant": change.second,
        "difference": change.difference,
        "adjusted_p": change.adjusted_p,
    }


class _Edge(NamedTuple):
    """A way from one group into another's q, k or v, or (no receiver) straight into the logits."""

    sender: str
    receiver: str | None
    via: Via | None


class _Measured(NamedTuple):
    """What the groups of a circuit do in one model, on the same prompts."""

    edges: Mapping[_Edge, Float[Tensor, " prompt"]]
    attention: Mapping[str, Float[Tensor, "prompt role"]]  # mean over the group's heads
    effects: Mapping[str, Float[Tensor, "role prompt"]]
    roles: list[str]
    scenarios: Tensor


def _measured(bench: Workbench, model: str, circuit: Circuit) -> _Measured:
    subject = bench.subject(model)
    pairs = subject.splits.evaluation.select(torch.arange(min(_PROMPTS, len(subject.splits.evaluation))))
    groups = {name: group for name, group in circuit.groups.items() if group.heads}
    roles = [role for role in bench.task.roles if "." not in role and _everywhere(pairs, role)]
    edges = _possible_edges(groups, pairs)

    def compute() -> Record:
        tensors = {f"edge.{i}": _effect(subject, groups, pairs, edge) for i, edge in enumerate(edges)}
        for name, group in groups.items():
            tensors[f"attention.{name}"] = attention_by_role(subject.model, group, pairs, roles).mean(0)
            tensors[f"effect.{name}"] = effect_by_role(
                subject.model, group, pairs, roles, executor=bench.settings.executor
            )
        return Record(tensors, None)

    key = subject.stages.key("evaluation") | {"circuit": circuit.to_dict(), "n": len(pairs), "roles": roles}
    kept = subject.stages.kept(f"what groups do in {model}", key, compute).tensors
    return _Measured(
        {edge: kept[f"edge.{i}"] for i, edge in enumerate(edges)},
        {name: kept[f"attention.{name}"] for name in groups},
        {name: kept[f"effect.{name}"] for name in groups},
        roles,
        pairs.scenarios,
    )


def _everywhere(pairs: Pairs, role: str) -> bool:
    places = (pairs.positions.get(role), pairs.counterfactual_positions.get(role))
    return all(place is not None and bool((place >= 0).all()) for place in places)


def _possible_edges(groups: Mapping[str, Group], pairs: Pairs) -> list[_Edge]:
    """Straight into the logits from the last position; via q at one role; via k and v from earlier roles."""
    last = [_Edge(name, None, None) for name, g in groups.items() if (pairs.positions[g.at] == pairs.lengths - 1).all()]
    between = [
        _Edge(first, second, via)
        for first, second, via in product(groups, groups, ("q", "k", "v"))
        if _can_reach(groups[first], groups[second], via, pairs)
    ]
    return last + between


def _can_reach(first: Group, second: Group, via: str, pairs: Pairs) -> bool:
    if min(head.layer for head in first.heads) >= max(head.layer for head in second.heads):
        return False
    if via == "q":
        return first.at == second.at and first is not second
    return bool((pairs.positions[first.at] < pairs.positions[second.at]).all())


def _effect(subject: Subject, groups: Mapping[str, Group], pairs: Pairs, edge: _Edge) -> Float[Tensor, " prompt"]:
    sender = groups[edge.sender]
    receiver = None if edge.receiver is None else groups[edge.receiver]
    return group_path_effects(
        subject.model,
        pairs,
        {edge.sender: sender.heads},
        sender.at,
        None if receiver is None else receiver.heads,
        edge.via,
        None if receiver is None or edge.via == "q" else receiver.at,
        executor=subject.stages.settings.executor,
    )[edge.sender]


def _edges(ours: _Measured, theirs: _Measured) -> list[dict[str, Any]]:
    """Effects along each edge of the base's circuit, in base and variant, on the same prompts."""
    entries = []
    for edge in ours.edges:
        first, second = (each.edges[edge].double().numpy() for each in (ours, theirs))
        scenarios = ours.scenarios.numpy()
        entries.append(
            edge._asdict()
            | {
                "base": interval_entry(mean_interval(first, scenarios)),
                "variant": interval_entry(mean_interval(second, scenarios)),
                "difference": interval_entry(difference_interval(second, first, scenarios)),
            }
        )
    return entries


def _profiles(ours: _Measured, theirs: _Measured) -> dict[str, Any]:
    """What each of the base's groups does in base and variant."""
    return {
        name: {
            "attention": _by_role(ours.roles, ours.attention[name].T, theirs.attention[name].T, ours.scenarios),
            "effect": _by_role(ours.roles, ours.effects[name], theirs.effects[name], ours.scenarios),
        }
        for name in ours.attention
    }


def _by_role(
    roles: Sequence[str],
    first: Float[Tensor, "role prompt"],
    second: Float[Tensor, "role prompt"],
    scenarios: Tensor,
) -> list[dict[str, Any]]:
    bounds = [mean_interval(rows.double().numpy(), scenarios.numpy()) for rows in (first, second)]
    return [
        {"role": role}
        | {model: interval_entry(found, i) for model, found in zip(("base", "variant"), bounds, strict=True)}
        for i, role in enumerate(roles)
    ]


def _same_work(ours: _Measured, own: _Measured) -> list[dict[str, Any]]:
    """How alike the profiles of the base's groups and of the variant's own groups are, every pair of groups."""
    return [
        {
            "base": first,
            "variant": second,
            "attention": _cosine(ours.attention[first].mean(0), own.attention[second].mean(0)),
            "effect": _cosine(ours.effects[first].mean(1), own.effects[second].mean(1)),
        }
        for first, second in product(ours.attention, own.attention)
    ]


def _cosine(one: Float[Tensor, " role"], other: Float[Tensor, " role"]) -> float:
    return float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0))
