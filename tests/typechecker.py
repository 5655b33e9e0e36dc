"""What checks the types of every call in the tests: beartype, with an int wherever a float may stand.

A function inside another is made anew each time that the outer one runs, and jaxtyping asks for its check each time:
of the same signature it is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from beartype import BeartypeConf, beartype

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
_made: dict[Hashable, Any] = {}


def typechecked(function: Any) -> Any:
    """The function with its arguments and its answer checked. jaxtyping's own are empty: all they have are types."""
    if "<locals>" not in getattr(function, "__qualname__", ""):
        return _checked(function)
    key = _signature(function)
    if key not in _made:
        _made[key] = _checked(function)
        _forget_defaults(function)
    return _made[key]


def _signature(function: Callable[..., Any]) -> Hashable:
    code, types = function.__code__, tuple(function.__annotations__.items())
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return function.__module__, function.__qualname__, names, code.co_posonlyargcount, code.co_flags, types


def _forget_defaults(function: Callable[..., Any]) -> None:
    """They may be large, are checked where they are set, and are not looked at."""
    function.__defaults__ = function.__defaults__ and (None,) * len(function.__defaults__)
    function.__kwdefaults__ = function.__kwdefaults__ and dict.fromkeys(function.__kwdefaults__)
