"""Data held against the form that it should have, strictly: nothing is converted, and the first fault is one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import ErrorDetails, to_json

from circuitdiff.errors import InputError, choices

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # of a form's keys, and of a dataclass's
# Of faults at one place: a union has those of all its branches.
_TELLS_LESS = {"missing": 2} | dict.fromkeys(_UNKNOWN, 1)
_PLAINER = {
    "Value error, ": "",
    "Input should be": "expected",
    "an object": "a mapping of keys to values",
    "a valid array": "a list",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}


class Strict(BaseModel):
    """`true` is no number, `"3"` neither, and no number is infinite; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Form = TypeVar("Form", bound=BaseModel)


def validated(form: type[Form], data: Any, origin: str, **context: Any) -> Form:
    """`data`, as it came from a file, in its form; validators are given the `context`.

    Raises: InputError naming `origin`, the first key that is unknown, missing or has a value that it cannot have, what
    was expected there and what came.
    """
    try:
        return form.model_validate_json(to_json(data), context=context)  # as JSON, in which a list may be a tuple
    except ValidationError as error:
        raise InputError(f"{origin}: {fault(error, form)}") from error


def check_fields(settings: Any) -> None:
    """Holds a dataclass against the types and bounds that its fields are annotated with; for its `__post_init__`.

    Raises: InputError naming the first field whose value is none of these.
    """
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    try:
        _form_of(type(settings)).model_validate(values)
    except ValidationError as error:
        raise InputError(fault(error, type(settings))) from error


@cache
def _form_of(kind: type) -> type[Strict]:
    hints: dict[str, Any] = {name: (hint, ...) for name, hint in get_type_hints(kind, include_extras=True).items()}
    return create_model(kind.__name__, __base__=Strict, **hints)


def fault(error: ValidationError, form: Any) -> str:
    """The most telling fault of data that is not in this form, in one line."""
    faults = error.errors(include_url=False)
    worst = max(faults, key=lambda each: (len(each["loc"]), -_TELLS_LESS.get(each["type"], 0)))
    path, keys = _place(worst["loc"], form)
    others = {other for each in faults if (other := tuple(_place(each["loc"], form)[0])) != tuple(path[: len(other)])}
    more = f" (and {len(others)} more {'fault' if len(others) == 1 else 'faults'})" if others else ""
    return f"{'.'.join(path)}: {_said(worst, keys)}{more}".removeprefix(": ")


def _said(worst: ErrorDetails, keys: list[str]) -> str:
    came = repr(worst["input"])[:80]
    if worst["type"] in _UNKNOWN:
        return f"there is no key {worst['loc'][-1]!r} here{choices(worst['loc'][-1], keys)}"
    if worst["type"] == "missing":
        return "this is missing"
    if worst["type"] == "literal_error" and isinstance(worst["input"], str):
        known = re.findall(r"'([^']*)'", worst.get("ctx", {}).get("expected", ""))
        return f"unknown {came}{choices(worst['input'], known)}"
    said = worst["msg"]
    for theirs, plainer in _PLAINER.items():
        said = said.replace(theirs, plainer)
    advice = "; put it in quotes" if worst["type"] == "string_type" and isinstance(worst["input"], int | float) else ""
    return said if worst["type"] == "value_error" else f"{said}; got {came}{advice}"


def _place(loc: tuple[int | str, ...], form: Any) -> tuple[list[str], list[str]]:
    """The keys that lead to a fault, without the names of unions' branches, and the keys that can be at its place."""
    path, forms = list[str](), list(_branches(form))
    for part in loc:
        inner = [kind for each in forms for kind in _inside(each, part)]
        if inner:
            path.append(str(part))
            forms = inner
        else:
            forms = [each for each in forms if getattr(each, "__name__", "") == part] or forms
    return path, [key for each in forms for key in _fields(each)]


def _branches(kind: Any) -> Iterator[Any]:
    """A type, or those of a union, without what is said about them."""
    if get_origin(kind) is Annotated:
        yield from _branches(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for each in get_args(kind):
            yield from _branches(each)
    elif kind is not NoneType:
        yield kind


def _inside(kind: Any, part: int | str) -> list[Any]:
    """The types of what `part` leads to in a mapping, a list or a form."""
    if known := _fields(kind):
        return list(_branches(known[part])) if part in known else []  # pyright: ignore[reportArgumentType]
    if get_origin(kind) is dict:
        return list(_branches(get_args(kind)[1]))
    if get_origin(kind) in (tuple, list) and isinstance(part, int):
        args = [each for each in get_args(kind) if each is not ...]
        return list(_branches(args[min(part, len(args) - 1)]))
    return []


def _fields(kind: Any) -> dict[str, Any]:
    """The keys of a form or of a dataclass, with their types."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    return get_type_hints(kind, include_extras=True) if isinstance(kind, type) and is_dataclass(kind) else {}
