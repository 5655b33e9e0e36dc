"""What a section of a study is, and what every section is written with: import it from here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from circuitdiff.study.context import StudyContext
from circuitdiff.study.host import LoadedModel
from circuitdiff.study.plan import Part, Sizes
from circuitdiff.study.preflight import Outlined
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.units import Needed, Unit

__all__ = ["LoadedModel", "Needed", "Outlined", "Part", "PromptsOf", "Section", "Sizes", "StudyContext", "Unit"]

Options = TypeVar("Options")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Section(Generic[Options, Result]):
    """A question that a study asks. Its name is that of its settings, of its part of the results, and on the page.

    `options`: a frozen dataclass, which YAML fills; None where a section has no settings of its own. One that names
    `files` relative to a folder has a method `seen_from(folder)`.
    `result`: the type of its part of the results; by models, circuits or variants, dictionaries.
    `run`: asks the context for the records of its units, and makes the result of them.
    `cost`: what it will take, before anything is run.
    `check`: raises InputError for what can be refused before weights are read.
    `mixes_models`: whether it puts one model's activations or weights into another, which have to be alike for that.
    `by_default`: whether a study that does not name it asks it. `of_circuits`: whether it needs what discovery finds.
    """

    name: str
    options: type[Options] | None
    result: Any
    run: Callable[[StudyContext, Options], Awaitable[Result]]
    cost: Callable[[Sizes, Options], Iterable[Part]]
    check: Callable[[Outlined, Options], None] = lambda outlined, options: None
    mixes_models: bool = False
    by_default: bool = True
    of_circuits: bool = True
