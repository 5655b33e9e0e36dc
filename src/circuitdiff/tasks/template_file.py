"""The YAML form of a template task: what its keys are. `docs/tasks.md` explains them one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from circuitdiff.config.reading import read_text
from circuitdiff.config.settings import FolderName, Name, Settings
from circuitdiff.errors import InputError, naming

MOST_ITEMS = 100
_MOST_BYTES = 2**22  # of a file of words

Key = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
Text = Annotated[str, Field(min_length=1, max_length=20_000)]
Entry = Annotated[dict[Key, Text], Field(min_length=1)]  # a word with several columns, the first of which names it


class WordFile(Settings):
    """A text file of words, separated by white space; its path is relative to the task's file."""

    file: str


Words = Text | tuple[Text, ...] | tuple[Entry, ...] | WordFile  # a lone text is cut at white space


class Category(Settings):
    """Words to draw from. `train`: those of the split `train` alone, so that nothing is evaluated on what it learned.

    `one_token`: words that the tokenizer splits where the texts use them are left out.
    """

    words: Words
    train: Words | None = None
    one_token: bool = True


class Items(Settings):
    """What a scenario lists: `count` items (a number, or an option's name), each with a word for every field."""

    count: int | Key
    fields: Annotated[dict[Key, Key], Field(min_length=1)]  # field -> category


class List(Settings):
    """How `{list}` is written: the text of one item, and what stands between two."""

    text: Text
    between: str = ", "


class AnyOf(Settings):
    """Every word of a category that stands before or after another in it, as a set of answers or foils."""

    any_of: str  # category, or category.column
    above: str | None = None  # a field: the words after its word, in the category's order
    below: str | None = None
    but: str | None = None  # a field: all words but its own
    text: str = " {}"


_Several = Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]  # a list will do
Answer = Text | AnyOf | _Several  # of several all are right
Scored = Literal["all", "first"]  # which tokens of an answer count
Foils = AnyOf | _Several


class Wording(Settings):
    """One way to write a prompt; what it leaves out is the task's. A lone text will do."""

    text: Text
    name: Key | None = None
    answer: Answer | None = None
    foils: Foils | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_lone_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value


class Changes(Settings):
    """Clauses `{changes}` that change what the items hold, `count` of them: put, remove, move, as far as written.

    In them `{FIELD}` of `holds` is the thing, `{FIELD}` of `key` the item's place, and `{to.FIELD}` where it is moved.
    """

    count: Annotated[int, Field(ge=1, le=MOST_ITEMS)]
    key: Key
    holds: Key
    put: Text | None = None
    remove: Text | None = None
    move: Text | None = None
    between: str = ""

    @property
    def texts(self) -> dict[str, str]:
        return {kind: text for kind in ("put", "remove", "move") if (text := getattr(self, kind)) is not None}


class Counterfactual(Settings):
    """What is changed: words drawn anew, a field swapped between two items, another item or word asked for."""

    redraw: tuple[Key, ...] = ()
    swap: Key | None = None
    ask: Literal["same", "other"] = "same"
    given: Literal["item", "elsewhere"] = "item"  # elsewhere: a word that no item has, so that there is no answer
    wording: dict[Key, Key] = Field(default_factory=dict)


class Desideratum(Settings):
    """What a group of heads, patched from a source prompt, should bring about; and how the source is written."""

    wants: Literal["answer", "position", "given", "next_position"]
    about: str = ""
    main: bool = False  # asked of every group unless a study says otherwise
    sources: Literal["unrelated", "next_unrelated", "conflicting"] = "unrelated"
    text: Text | None = None
    list: Text | None = None
    between: str | None = None
    asked: Text | None = None  # how the item asked for is written, in place of `list`


class TemplateFile(Settings):
    """A task as a template."""

    name: FolderName
    about: str = ""
    options: dict[Key, int] = Field(default_factory=dict)
    capital: bool = False
    categories: Annotated[dict[Key, Category], Field(min_length=1)]
    items: Items | None = None
    list: List | None = None
    draws: dict[Key, Key] = Field(default_factory=dict)  # field -> category
    changes: Changes | None = None
    text: Text | None = None
    wordings: Annotated[tuple[Wording, ...], Field(min_length=1)] | None = None
    answer: Answer | None = None
    foils: Foils | None = None
    answer_tokens: Scored = "all"
    space: bool = True  # answers begin with a space where that makes them a word of their own
    roles: dict[Name, str] = Field(default_factory=dict)
    question: tuple[str, ...] | None = None  # roles at the words that ask; None: those of `{asked...}` fields, and last
    counterfactuals: Annotated[dict[Key, Counterfactual], Field(min_length=1)]
    plans: dict[Name, Any] = Field(default_factory=dict)
    desiderata: dict[Name, Desideratum] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way_to_write(self) -> TemplateFile:
        if (self.text is None) == (self.wordings is None):
            raise ValueError("give either `text` or `wordings`")
        if (self.items is None) != (self.list is None) and self.list is not None:
            raise ValueError("`list` writes `items`; give both")
        return self

    @cached_property
    def written(self) -> tuple[Wording, ...]:
        """The wordings, each with its answer and foils."""
        return tuple(
            each.model_copy(update={"answer": each.answer or self.answer, "foils": each.foils or self.foils})
            for each in self.wordings or (Wording(text=self.text or ""),)
        )


def each_of(answers: Answer | Foils | None) -> tuple[str | AnyOf, ...]:
    """Answers, or foils, one by one."""
    return () if answers is None else answers if isinstance(answers, tuple) else (answers,)


def entries_of(words: Words, folder: Path, origin: str) -> dict[str, dict[str, str]]:
    """Each word with its columns, by the first of them; a plain word has one column, named ``.

    Raises: InputError if the file cannot be read, a word stands twice, or columns differ.
    """
    if isinstance(words, WordFile):
        with naming(origin):
            words = read_text(folder / words.file, "text", _MOST_BYTES)
    if isinstance(words, str):
        words = tuple(words.split())
    if not words:
        raise InputError(f"{origin}: give at least one word")
    rows = [{"": word} if isinstance(word, str) else dict(word) for word in words]
    if odd := next((row for row in rows if list(row) != list(rows[0])), None):
        raise InputError(f"{origin}: expected the columns {', '.join(rows[0])} of every word; got {odd}")
    if odd := next((text for row in rows for text in row.values() if text != text.strip()), None):
        raise InputError(f"{origin}: {odd!r} has white space around it; write words without, texts have the spaces")
    names = [next(iter(row.values())) for row in rows]
    if (twice := first_repeated(names)) is not None:
        raise InputError(f"{origin}: {twice!r} stands twice; keep one")
    return dict(zip(names, rows, strict=True))


def first_repeated(names: Iterable[str]) -> str | None:
    return next((name for name, n in Counter(names).items() if n > 1), None)
