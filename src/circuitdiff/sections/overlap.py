"""Is a variant's circuit the base's? Heads in common, effects alike, heads gained and lost, edges, what groups do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.cache.store import Record
from circuitdiff.circuit import Circuit, Overlap, circuit_overlap, total
from circuitdiff.methods.discovery import StageResult
from circuitdiff.methods.edges import Edge, edge_effects, possible_edges
from circuitdiff.methods.group_profile import attention_by_role, effect_by_role
from circuitdiff.prompts import Pairs
from circuitdiff.sections.circuit_settings import OverlapSettings
from circuitdiff.sections.discovery import Found
from circuitdiff.sections.entries import interval_entry
from circuitdiff.stats.effect_maps import Change, Likeness, changed_heads, compare_maps
from circuitdiff.stats.intervals import (
    cluster_p_values,
    cluster_resamples,
    difference_interval,
    false_discovery_adjusted,
    mean_interval,
)
from circuitdiff.workbench import Workbench

_KS = (5, 10, 20, 40)
_RESAMPLES = 2000
_SMALLEST_CHANGE = 0.02  # of a head's effect, in the metric's unit


def overlap_section(
    bench: Workbench, variant: str, found: Mapping[str, Found], settings: OverlapSettings
) -> dict[str, Any]:
    """A variant against the base: its own circuit, where the main plan was run in it, and edges in every one."""
    base, own, n = found[bench.base], found.get(variant), settings.prompts
    entry = {} if own is None else _searched(base, own)
    if base.circuit.roles:
        ours = _measured(bench, bench.base, base.circuit, n, edges=True)
        theirs = _measured(bench, variant, base.circuit, n, edges=True)
        entry |= {"edges": _edges(ours, theirs), "profiles": _profiles(ours, theirs)}
        entry["n_scenarios"] = len(ours.scenarios.unique())
        if own is not None and own.circuit.roles:
            entry["moved"] = _same_work(ours, _measured(bench, variant, own.circuit, n, edges=False))
    return {"overlap": {variant: entry} if entry else {}}


def _searched(base: Found, variant: Found) -> dict[str, Any]:
    """Where the plan was run in both models: heads in common, and effects stage by stage."""
    theirs = {result.stage: result for result in variant.stages}
    return {
        "groups": _groups(base.circuit, variant.circuit),
        "stages": [
            _stage(first, theirs[first.stage]) | {"different": _different(first, variant.stages)}
            for first in base.stages
            if first.stage in theirs
        ],
        "not_run": [first.stage.name for first in base.stages if first.stage not in theirs],
    }


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
    sizes = {len(result.selection.helping) for result in (first, second)} - {0}
    compared = compare_maps(ours, theirs, scenarios, sorted({*_KS, *sizes}))
    smallest = max(_SMALLEST_CHANGE, first.found.noise_floor, second.found.noise_floor)
    changed = changed_heads(ours, theirs, scenarios, minimum=smallest)
    return {
        "stage": first.stage.name,
        "same_receivers": set(first.receivers) == set(second.receivers),
        "n_chosen": [len(result.selection.helping) for result in (first, second)],
        "correlation": _likeness(compared.correlation),
        **{
            share: [{"k": k} | _likeness(getattr(each, share)) for k, each in compared.shared.items()]
            for share in ("jaccard", "precision", "recall")
        },
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


class _Measured(NamedTuple):
    """What the groups of a circuit do in one model, on the same prompts."""

    edges: Mapping[Edge, Float[Tensor, " prompt"]]
    attention: Mapping[str, Float[Tensor, "prompt role"]]  # mean over the group's heads
    effects: Mapping[str, Float[Tensor, "role prompt"]]
    roles: list[str]
    scenarios: Tensor


def _measured(bench: Workbench, model: str, circuit: Circuit, n_prompts: int, *, edges: bool) -> _Measured:
    subject = bench.subject(model)
    pairs = subject.splits.evaluation.select(torch.arange(min(n_prompts, len(subject.splits.evaluation))))
    groups = {name: group for name, group in circuit.groups.items() if group.heads}
    roles = [role for role in bench.task.roles if "." not in role and _everywhere(pairs, role)]
    asked, executor = (possible_edges(groups, pairs) if edges else []), bench.settings.executor

    def compute() -> Record:
        found = edge_effects(subject.model, groups, asked, pairs, executor, bench.settings.memory_gb)
        tensors = dict(zip(map(_kept_as, asked), found, strict=True))
        attention = attention_by_role(subject.model, groups, pairs, roles)
        tensors |= {f"attention.{name}": each.mean(0) for name, each in attention.items()}
        effects = effect_by_role(subject.model, groups, pairs, roles, executor=executor)
        return Record(tensors | {f"effect.{name}": each for name, each in effects.items()}, None)

    key = subject.stages.key("profiles of groups", pairs, circuit=circuit.to_dict(), roles=roles, edges=asked)
    kept = subject.stages.kept(f"what groups do in {model}", key, compute).tensors
    return _Measured(
        {edge: kept[_kept_as(edge)] for edge in asked},
        {name: kept[f"attention.{name}"] for name in groups},
        {name: kept[f"effect.{name}"] for name in groups},
        roles,
        pairs.scenarios,
    )


def _kept_as(edge: Edge) -> str:
    """An edge's name in a record, whatever the order of the groups."""
    return json.dumps(["edge", *edge])


def _everywhere(pairs: Pairs, role: str) -> bool:
    places = (pairs.positions.get(role), pairs.counterfactual_positions.get(role))
    return all(place is not None and bool((place >= 0).all()) for place in places)


def _edges(ours: _Measured, theirs: _Measured) -> list[dict[str, Any]]:
    """Effects along each edge of the base's circuit, in base and variant, on the same prompts.

    `adjusted_p`: of no difference, false discoveries controlled over all edges.
    """
    if not ours.edges:
        return []
    scenarios = ours.scenarios.numpy()
    base, variant = (np.stack([each.edges[edge].double().numpy() for edge in ours.edges]) for each in (ours, theirs))
    adjusted = false_discovery_adjusted(cluster_p_values(variant - base, scenarios, n_flips=1).p)
    return [
        edge._asdict()
        | {
            "base": interval_entry(mean_interval(first, scenarios)),
            "variant": interval_entry(mean_interval(second, scenarios)),
            "difference": interval_entry(difference_interval(second, first, scenarios)),
            "adjusted_p": float(p),
        }
        for edge, first, second, p in zip(ours.edges, base, variant, adjusted, strict=True)
    ]


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
            "attention": _cosine(ours.attention[first].T, own.attention[second].T, ours.scenarios),
            "effect": _cosine(ours.effects[first], own.effects[second], ours.scenarios),
        }
        for first, second in product(ours.attention, own.attention)
    ]


def _cosine(
    one: Float[Tensor, "role prompt"], other: Float[Tensor, "role prompt"], scenarios: Tensor
) -> dict[str, float]:
    """The cosine of two mean profiles, with a 95 % bootstrap interval over scenarios, both resampled together.

    With one scenario the bounds are nan.
    """
    weights = cluster_resamples(scenarios.numpy(), _RESAMPLES, np.random.default_rng(0))
    means = [np.concatenate([np.ones((1, len(scenarios))), weights]) @ x.double().numpy().T for x in (one, other)]
    first, second = (torch.from_numpy(mean) for mean in means)
    value, *resampled = torch.nn.functional.cosine_similarity(first, second, dim=1).tolist()
    low, high = np.quantile(resampled, [0.025, 0.975]) if len(scenarios.unique()) > 1 else (math.nan, math.nan)
    return {"value": value, "low": float(low), "high": float(high)}
