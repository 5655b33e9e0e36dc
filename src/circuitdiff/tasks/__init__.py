"""Tasks: prompt pairs whose tokens have named roles."""

from __future__ import annotations

import inspect

from pydantic import ValidationError, validate_call

from circuitdiff.errors import InputError
from circuitdiff.tasks.desiderata import Desideratum, read_triples, sample_triples
from circuitdiff.tasks.entity_tracking import entity_tracking
from circuitdiff.tasks.ioi import ioi
from circuitdiff.tasks.task import Task

_TASKS = {"entity_tracking": entity_tracking, "ioi": ioi}


def get_task(name: str, **options: object) -> Task:
    """The built-in task of that name.

    Raises: InputError if the name is unknown, or an option is unknown or of the wrong type.
    """
    if name not in _TASKS:
        raise InputError(f"unknown task {name!r}: choose one of {', '.join(_TASKS)}")
    try:
        return validate_call(_TASKS[name])(**options)  # pyright: ignore[reportArgumentType]  checked by this call
    except ValidationError as error:
        wrong, known = error.errors()[0], ", ".join(inspect.signature(_TASKS[name]).parameters)
        raise InputError(
            f"task {name!r}, option {wrong['loc'][0]!r}: {wrong['msg']}, got {wrong['input']!r}; it has {known}"
        ) from error


__all__ = ["Desideratum", "Task", "entity_tracking", "get_task", "ioi", "read_triples", "sample_triples"]
