"""What results show at a prompt and in a notebook, at most 10 lines of 120 characters; and how they become tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from html import escape
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from circuitdiff.errors import InputError

_LINES, _WIDTH, _ITEMS = 10, 120, 10


class Readable:
    """A line for each field: tensors by dtype, shape and range, what is long by its first items.

    For dataclasses with `repr=False`. `_shown`: these attributes instead of all fields.
    """

    _shown: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        rows, title = _rows(self), _title(self)
        together = -(-len(rows) // (_LINES - 1))  # fields that share a line
        if together > 1:
            share = _WIDTH // together - 2
            cells = [_cut(f"{name} = {text}", share) for name, text in rows]
            lines = [", ".join(cells[i : i + together]) for i in range(0, len(cells), together)]
        else:
            width = max((len(name) for name, _ in rows), default=0)
            lines = [f"{name:<{width}}  {text}" for name, text in rows]
        return "\n".join([_cut(title, _WIDTH), *(f"  {_cut(line, _WIDTH - 2)}" for line in lines)])

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(_cut(text, _WIDTH))}</td></tr>" for name, text in _rows(self)
        )
        return f"<table><caption>{escape(_title(self))}</caption>{cells}</table>"


class ByName(Readable, dict[str, Any]):
    """A dictionary that prints as a result does, a line for each name."""

    @classmethod
    def of(cls, value: Any) -> Any:
        """Dictionaries, also inside one another, as these; all else as it is."""
        return cls({name: cls.of(each) for name, each in value.items()}) if isinstance(value, dict) else value


class Plotted(Readable):
    """What the report has a figure of."""

    def plot(self) -> Any:
        """The report's own figure, an Altair chart."""
        # by name: what draws stands above all that is drawn, and takes a second to load
        return import_module("circuitdiff.report.plots").plot(self)


def one_line(thing: Any) -> str:
    """Like `Stage(name = fetcher, at = last, ...)`."""
    inside = ", ".join(f"{name} = {short(value)}" for name, value in _values(thing).items())
    return _cut(f"{_title(thing)}({inside})", _WIDTH)


def short(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Tensor | np.ndarray):
        return _numbers(torch.as_tensor(value))
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Readable) and not isinstance(value, ByName):
        return one_line(value)
    if isinstance(value, type) or (type(value).__str__ is not object.__str__ and not isinstance(value, ByName)):
        return str(value)
    if is_dataclass(value) or hasattr(value, "_fields"):
        return one_line(value)
    if isinstance(value, Mapping):
        plain = (str, int, float, type(None))
        return _listed([short(k) + (f" {short(each)}" if type(each) in plain else "") for k, each in value.items()])
    if isinstance(value, Sequence | Set):
        return _listed([short(each) for each in value])
    text = str(value)
    return type(value).__name__ if "\n" in text or len(text) > _WIDTH else text


def data_frame(columns: str, rows: Iterable[Sequence[Any]]) -> Any:
    """A pandas DataFrame; the names of its columns stand in one text. Raises: InputError if there is no pandas."""
    try:
        import pandas
    except ImportError as error:
        raise InputError("a table needs pandas, which is not installed: pip install pandas") from error
    return pandas.DataFrame(list(rows), columns=columns.split())


def _rows(thing: Any) -> list[tuple[str, str]]:
    """Names and values; collections of what is readable itself, or of sentences, item by item where there is room."""
    values, rows = _values(thing), list[tuple[str, str]]()
    for name, value in values.items():
        items = dict(value) if isinstance(value, Mapping) else dict(enumerate(value)) if type(value) is tuple else {}
        alone = len(values) == 1 and len(items) == _LINES - 1  # then there is no room for the field's name
        if any(map(_needs_a_line, items.values())) and len(values) - alone + len(items) < _LINES:
            rows += [] if alone else [(name, "")]
            rows += [(str(key) if alone else f"  {key}", short(each)) for key, each in items.items()]
        else:
            rows.append((name, short(value)))
    return rows


def _needs_a_line(item: Any) -> bool:
    return isinstance(item, Readable) or (isinstance(item, str) and len(item) > _WIDTH // 3)


def _values(thing: Any) -> dict[str, Any]:
    if isinstance(thing, ByName):
        return thing
    kind = type(thing)
    names = getattr(kind, "_shown", ()) or getattr(kind, "model_fields", ()) or getattr(kind, "_fields", ())
    return {name: getattr(thing, name) for name in names or [each.name for each in fields(thing) if each.repr]}


def _title(thing: Any) -> str:
    name = "results" if isinstance(thing, ByName) else type(thing).__name__
    return f"{name} of {len(thing)}" if hasattr(thing, "__len__") and not isinstance(thing, tuple) else name


def _numbers(values: Tensor) -> str:
    text = f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"
    if values.dtype == torch.bool:
        return f"{text}, {int(values.sum())} true"
    known = values[~values.isnan()]
    if len(known):
        text += f", {float(known.min()):.4g} to {float(known.max()):.4g}"
    return f"{text}, {len(values.unique())} different" if values.dtype == torch.int64 and values.dim() == 1 else text


def _listed(items: Sequence[str]) -> str:
    if len(items) <= _ITEMS:
        return ", ".join(items) or "none"
    return f"{len(items)}: {', '.join(items[:_ITEMS])}, …"


def _cut(text: str, width: int) -> str:
    text = " ".join(text.splitlines())
    return text if len(text) <= width else text[: width - 1] + "…"
