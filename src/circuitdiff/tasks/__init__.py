"""Tasks: prompt pairs whose tokens have named roles."""

from __future__ import annotations

import inspect

from pydantic import ConfigDict, ValidationError, validate_call

from circuitdiff.config.validation import fault
from circuitdiff.errors import InputError, choices
from circuitdiff.tasks.desiderata import Desideratum, read_triples, sample_triples
from circuitdiff.tasks.entity_tracking import entity_tracking
from circuitdiff.tasks.ioi import ioi
from circuitdiff.tasks.task import Task

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_TASKS = {"entity_tracking": entity_tracking, "ioi": ioi}


def get_task(name: str, **options: object) -> Task:
    """The built-in task of that name.

    Raises: InputError if the name is unknown, or an option is unknown or of the wrong type.
    """
    if name not in _TASKS:
        raise InputError(f"unknown task {name!r}{choices(name, _TASKS)}")
    known = inspect.signature(_TASKS[name]).parameters
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"task {name!r} has no option {unknown[0]!r}{choices(unknown[0], known)}")
    try:
        return validate_call(config=_STRICT)(_TASKS[name])(**options)  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        raise InputError(f"task {name!r}, option {fault(error)}") from error


__all__ = ["Desideratum", "Task", "entity_tracking", "get_task", "ioi", "read_triples", "sample_triples"]
