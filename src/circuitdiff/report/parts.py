"""What the page is made of: parts with a heading, sentences, figures and tables, which the template lays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from circuitdiff.report.charts import Figure


@dataclass(frozen=True)
class Sentence:
    """A paragraph, or an item of a list.

    `look`: its CSS class; `asks`: stands before it, in bold; `link`: an id; `reasons`: folded away behind it.
    """

    text: str | Markup
    look: str = ""
    asks: str = ""
    link: str = ""
    scope: str = ""
    reasons: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """Rows of text by heading; or by key, with `columns`: a row's key and the heading over it.

    `numeric`: columns set to the right; `ids`: what sentences link to; `note`: below it; `folded`: behind its caption.
    """

    caption: str
    rows: Sequence[Mapping[str, object]]
    columns: Mapping[str, str] = field(default_factory=dict)
    ids: Sequence[str] = ()
    note: str = ""
    numeric: Sequence[str] = ()
    folded: bool = False

    @property
    def headings(self) -> Mapping[str, str]:
        return self.columns or {key: key for row in self.rows for key in row}


@dataclass(frozen=True)
class Caption:
    """What stands beside a figure."""

    lines: Sequence[str]
    table: Table | None = None


@dataclass(frozen=True)
class Part:
    """One heading of the page, or none, with what is under it in this order. `items`: sentences are a list."""

    title: str
    note: str = ""
    sentences: Sequence[str | Sentence] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    captions: Mapping[str, Caption] = field(default_factory=dict)  # by figure
    parts: Sequence[Part] = ()
    items: bool = False

    @property
    def empty(self) -> bool:
        own = self.sentences or self.figures or any(table.rows for table in self.tables)
        return not own and all(part.empty for part in self.parts)

    @property
    def all_figures(self) -> dict[str, Figure]:
        """Its own, then those of the parts under it, by key."""
        return dict(self.figures) | {key: figure for part in self.parts for key, figure in part.all_figures.items()}

    @property
    def ids(self) -> set[str]:
        """Of the tables that have rows: what was not measured has none."""
        own = (table.ids for table in self.tables if table.rows)
        return set().union(*own, *(part.ids for part in self.parts))


def anchor(table: str, name: str = "") -> str:
    """The id of a table on the page, which sentences of a verdict link to; `name`: of a model."""
    return "table-" + "".join(c if c.isalnum() else "-" for c in f"{table} {name}".strip())
