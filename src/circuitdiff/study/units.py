"""A unit of work: what a study computes, keeps and shares out to workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from circuitdiff.cache.records import Record


class Needed(NamedTuple):
    """Another unit's record, as a unit gets it that needs it."""

    key: str
    record: Record


@dataclass(frozen=True)
class Unit:
    """One computation on one or two models, whose record depends on nothing but what stands here.

    `run` is a function of a module, called `run(*models, **arguments, **needs)` with the models as a worker has loaded
    them (`host.LoadedModel`) and the records of the units that it needs. `arguments` are plain data: numbers, names,
    circuits, and prompts as `PromptsOf` or `TriplesOf`, which are in the tokens of the first model.
    """

    title: str  # for people
    run: Callable[..., Record]
    models: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, Unit] = field(default_factory=dict)
