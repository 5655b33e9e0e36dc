"""How what methods compute is kept: tensors apart, all else as JSON beside them; and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from circuitdiff.cache.records import Record
from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.evaluation import Evaluation, Means
from circuitdiff.methods.attention import AttentionToRoles
from circuitdiff.methods.completeness import Completeness, GreedyPart, GreedyStep
from circuitdiff.methods.component_mask.fit import MaskFit
from circuitdiff.methods.component_mask.training import Check, Mask
from circuitdiff.methods.cross_model.hybrids import Basis, Ran
from circuitdiff.methods.cross_model.patching import Controls, CrossPatch
from circuitdiff.methods.edges import Edge
from circuitdiff.methods.graft import Graft, Part
from circuitdiff.methods.locate import ResidualPatching, RoleCeiling
from circuitdiff.methods.minimality import GroupMinimality, HeadCost, MinimalityResult, MinimalityRule, PairTable
from circuitdiff.methods.path_patching import Path, PathEffects
from circuitdiff.methods.screening import Screened
from circuitdiff.models.weight_changes import WeightChange, WeightChanges
from circuitdiff.stats.intervals import Interval


class Deviation(NamedTuple):
    """What a check measured, and how much it may be; see `StudyContext.check_executors`."""

    value: float
    allowed: float


class GroupWork(NamedTuple):
    """What the groups of a circuit do in one model, prompt by prompt."""

    edges: Mapping[Edge, Float[Tensor, " prompt"]]
    attention: Mapping[str, Float[Tensor, "prompt role"]]  # mean over the group's heads
    effects: Mapping[str, Float[Tensor, "role prompt"]]


_CLASSES: dict[str, type[Any]] = {
    each.__name__: each
    for each in (
        *(AttentionToRoles, Basis, Check, Circuit, Completeness, Controls, CrossPatch, Deviation, Edge, Evaluation),
        *(Graft, GreedyPart, GreedyStep, Group, GroupMinimality, GroupWork, Head, HeadCost, Interval, Mask, MaskFit),
        *(
            Means,
            MinimalityResult,
            MinimalityRule,
            PairTable,
            Part,
            Path,
            PathEffects,
            Ran,
            ResidualPatching,
            RoleCeiling,
            Screened,
            WeightChange,
            WeightChanges,
        ),
    )
}


def record_of(value: Any) -> Record:
    """Any value made of these classes, collections, tensors and what JSON has; `value_of` makes the same of it again.

    An object stands as {"class": its name, "values": of its fields}; a tensor, and a collection that JSON lacks, alike.
    """
    tensors: dict[str, Tensor] = {}
    return Record(tensors, _as_json(value, tensors))


def value_of(record: Record) -> Any:
    return _from_json(record.data, record.tensors)


def _as_json(value: Any, tensors: dict[str, Tensor]) -> Any:
    def of(kind: str, values: Any) -> dict[str, Any]:
        return {"class": kind, "values": [_as_json(each, tensors) for each in values]}

    name = type(value).__name__
    if type(value) is _CLASSES.get(name):
        return of(name, (getattr(value, field) for field in _fields(type(value))))
    if isinstance(value, Tensor):
        tensors[str(len(tensors))] = value
        return {"class": "tensor", "values": str(len(tensors) - 1)}
    if isinstance(value, Mapping):
        return of("dict", value.items())
    if isinstance(value, frozenset):
        return of("frozenset", sorted(value))
    if isinstance(value, tuple | list):
        return of("tuple" if isinstance(value, tuple) else "list", value)
    if isinstance(value, float) and not math.isfinite(value):  # JSON has none of these
        return {"class": "float", "values": str(value)}
    return value


def _from_json(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(data, dict):
        return data
    kind, values = data["class"], data["values"]
    if kind == "tensor":
        return tensors[values]
    if kind == "float":
        return float(values)
    made = [_from_json(each, tensors) for each in values]
    if kind in _CLASSES:
        return _CLASSES[kind](*made)
    return {"dict": dict, "frozenset": frozenset, "tuple": tuple, "list": list}[kind](made)


def _fields(kind: type[Any]) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind)) if is_dataclass(kind) else kind._fields
