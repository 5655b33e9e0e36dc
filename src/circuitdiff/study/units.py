"""A unit of work: what a study computes, keeps and shares out to workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import to_jsonable_python

from circuitdiff.cache.code_digest import digest_of_computation, digest_of_function
from circuitdiff.cache.records import hashed
from circuitdiff.study.prompts import PromptsOf, PromptSource, TriplesOf


class Needed(NamedTuple):
    """What another unit returned, as a unit gets it that needs it."""

    key: str
    value: Any


@dataclass(frozen=True)
class Unit:
    """One computation on one or two models, whose record depends on nothing but what stands here.

    `run` is a function of a module, called `run(*models, **arguments)` with the models as a worker has loaded them
    (`host.LoadedModel`). It returns what `records.record_of` can keep.
    `arguments` are plain data: numbers, names, circuits, and prompts as `PromptsOf` or `TriplesOf`, which are in the
    tokens of the first model; or a unit, for what it returns (`Needed`).
    """

    title: str  # for people
    run: Callable[..., Any]
    models: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs(self) -> dict[str, Unit]:
        return {name: each for name, each in self.arguments.items() if isinstance(each, Unit)}


def contents(unit: Unit, fingerprints: Sequence[str], prompts: PromptSource) -> list[str]:
    """What a unit's record depends on beside the study's settings, by content: code, models, arguments; each hashed.

    `prompts`: in the tokens of its first model.
    """
    function = f"{unit.run.__module__}.{unit.run.__qualname__}"
    arguments = {name: _content(value, prompts) for name, value in unit.arguments.items() if name not in unit.needs}
    return [function, digest_of_computation(), digest_of_function(unit.run), *fingerprints, hashed(arguments)]


def _content(value: Any, prompts: PromptSource) -> Any:
    """What an argument is, for a key: prompts by their fingerprints, all else as JSON."""
    if isinstance(value, PromptsOf):
        return prompts.pairs(value).fingerprint()
    if isinstance(value, TriplesOf):
        return prompts.triples(value).fingerprint()
    if isinstance(value, Mapping):
        return [[_content(key, prompts), _content(each, prompts)] for key, each in value.items()]
    if isinstance(value, tuple | list):
        return [_content(each, prompts) for each in value]
    if is_dataclass(value):
        return _content(vars(value), prompts)
    return str(value) if isinstance(value, Path) else to_jsonable_python(value)
