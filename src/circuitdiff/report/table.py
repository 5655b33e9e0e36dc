"""A table of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text; `columns`: a row's key and the heading over it; `ids`: what sentences link to; `note`: below it."""

    caption: str
    columns: Mapping[str, str]
    rows: Sequence[dict]
    ids: Sequence[str] = ()
    note: str = ""
