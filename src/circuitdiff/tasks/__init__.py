"""Tasks: prompt pairs whose tokens have named roles."""

from __future__ import annotations

import inspect

from circuitdiff.errors import InputError
from circuitdiff.tasks.entity_tracking import EntityTracking, entity_tracking

_TASKS = {"entity_tracking": entity_tracking}


def get_task(name: str, **options: object) -> EntityTracking:
    """The built-in task of that name.

    Raises: InputError if the name or an option is unknown.
    """
    if name not in _TASKS:
        raise InputError(f"unknown task {name!r}: choose one of {', '.join(_TASKS)}")
    known = inspect.signature(_TASKS[name]).parameters
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"task {name!r} has no option {unknown[0]!r}; it has {', '.join(known)}")
    return _TASKS[name](**options)  # pyright: ignore[reportArgumentType]


__all__ = ["entity_tracking", "get_task"]
