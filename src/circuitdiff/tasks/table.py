"""A task written as a table: ready-made pairs, one a row of a JSONL or CSV file; a YAML file may name its columns.

A row has `prompt`, `answer` (a text, or a list of all that are right), `counterfactual`, and if wanted
`counterfactual_answer`, `foils`, `scenario` (prompts of one scenario are not independent; without it each row is one of
its own), `split`, `queried` (a number by which accuracy is shown) and `roles`: each a span of characters, up to but not
including its end, or the word where it stands. Slots are the roles, and the tokens of the text between them by number.
"""

from __future__ import annotations

import csv
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from circuitdiff.config.reading import read_jsonl, read_text, read_yaml
from circuitdiff.config.settings import FolderName, Name, Settings
from circuitdiff.config.validation import validated
from circuitdiff.errors import InputError, choices
from circuitdiff.prompts import Pairs, Triples
from circuitdiff.tasks.answers import AnswerTexts, pairs_of
from circuitdiff.tasks.chat import OFF, chat_prefix
from circuitdiff.tasks.scenarios import SPLITS, check_options, generator, split_of
from circuitdiff.tasks.task import DescribedPair, describe_pair
from circuitdiff.tasks.template_file import Scored
from circuitdiff.tasks.tokens import Span, cut_at_roles, tokenise

TABLES = (".jsonl", ".csv")
_LISTED = "|"  # what separates several answers or foils in a cell of a CSV file
_GIVEN = "given"


class Columns(Settings):
    """What the columns of a table are called."""

    prompt: str = "prompt"
    answer: str = "answer"
    counterfactual: str = "counterfactual"
    counterfactual_answer: str = "counterfactual_answer"
    foils: str = "foils"
    scenario: str = "scenario"
    split: str = "split"
    queried: str = "queried"
    roles: str = "roles"
    counterfactual_roles: str = "counterfactual_roles"


class TableFile(Settings):
    """A task as a table; its path is relative to this file. `roles`: columns that hold the word at which a role sits.

    `space`: an answer without one gets a space before it. `answer_tokens`: which of an answer's tokens count.
    """

    table: str
    name: FolderName | None = None
    about: str = ""
    columns: Columns = Columns()
    roles: dict[Name, str | tuple[str, str]] = Field(default_factory=dict)  # the clean prompt's, the counterfactual's
    space: bool = True
    answer_tokens: Scored = "all"
    question: tuple[str, ...] = ("last",)
    plans: dict[Name, Any] = Field(default_factory=dict)


Texts = tuple[str, ...]


class Row(Settings):
    """One row, under our names."""

    prompt: str = Field(min_length=1)
    answer: str | tuple[str, ...]
    counterfactual: str = Field(min_length=1)
    counterfactual_answer: str | tuple[str, ...] | None = None
    foils: str | tuple[str, ...] = ()
    scenario: str | int | None = None
    split: str | None = None
    queried: int = Field(default=0, ge=0, lt=2**31)
    roles: dict[Name, Span | str] = Field(default_factory=dict)
    counterfactual_roles: dict[Name, Span | str] | None = None


@dataclass(frozen=True)
class TableTask:
    """A task whose prompts are the rows of a table; see `circuitdiff.tasks.get_task`."""

    form: TableFile
    path: Path
    rows: tuple[tuple[str, Row], ...]  # each with its place in the file

    @property
    def name(self) -> str:
        return self.form.name or self.path.stem

    @property
    def about(self) -> str:
        return self.form.about

    @property
    def roles(self) -> tuple[str, ...]:
        """The names of all roles: those of the rows, and `last`."""
        return self._roles

    @cached_property
    def _roles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*(role for _, row in self.rows for role in row.roles), "last"]))

    @property
    def question_roles(self) -> tuple[str, ...]:
        return self.form.question

    @property
    def plans(self) -> Mapping[str, Mapping[str, Any]]:
        return self.form.plans

    @property
    def counterfactuals(self) -> tuple[str, ...]:
        """The table's own."""
        return (_GIVEN,)

    @property
    def desiderata(self) -> tuple[str, ...]:
        """None: those of a table are JSONL files of triples."""
        return ()

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def check_desiderata(self, names: Iterable[str]) -> None:
        """Raises: InputError naming the first."""
        for name in names:
            raise InputError(f"the task {self.name} has no desideratum {name!r}; give JSONL files of triples")

    def source_of(self, desideratum: str) -> Hashable:
        return desideratum

    def triples(
        self,
        tokenizer: PreTrainedTokenizerBase,
        desiderata: Sequence[str],
        n_triples: int,
        seed: int,
        redraw: int = 0,
        chat: str = OFF,
    ) -> list[Triples]:
        """Raises: InputError if any are asked for."""
        self.check_desiderata(desiderata)
        return []

    def every_segment(self, role: str) -> list[str]:
        """The role alone: a table lists nothing."""
        return [self._known(role)]

    def wrong_segment(self, role: str) -> str:
        """The role itself: a table has no wrong place."""
        return self._known(role)

    def sample(
        self,
        tokenizer: PreTrainedTokenizerBase,
        n_prompts: int = 64,
        seed: int = 0,
        split: str = "evaluation",
        queries_per_scenario: int = 1,
        counterfactual: str | None = None,
        chat: str = OFF,
    ) -> Pairs:
        """Rows of the split in an order that the seed draws: the same for the same arguments.

        A row without `split` belongs to the one that its scenario's content decides, so that splits are disjoint.

        Raises: InputError if the split has too few rows, or a row cannot be written in the tokenizer.
        """
        if counterfactual not in (None, _GIVEN):
            raise InputError(f"unknown counterfactual {counterfactual!r}{choices(counterfactual, [_GIVEN])}")
        check_options(n_prompts, split, queries_per_scenario, max(queries_per_scenario, 1))
        drawn = list(self._drawn(n_prompts, seed, split, queries_per_scenario))
        if len(drawn) < n_prompts:
            sizes = ", ".join(f"{name} {n}" for name, n in self.sizes.items())
            raise InputError(
                f"{self.path}: split {split!r} has {len(drawn)} prompts, and {n_prompts} are asked for: ask for fewer, "
                f"or give more rows (there are, by split: {sizes})"
            )
        rows = [row for _, row in drawn]
        origins = [self.rows[i][0] for i, _ in drawn]
        clean = [cut_at_roles(row.prompt, row.roles, origin) for row, origin in zip(rows, origins, strict=True)]
        other = [_counterfactual(row, origin) for row, origin in zip(rows, origins, strict=True)]
        prompts = tokenise(tokenizer, [*clean, *other], self.roles, chat_prefix(tokenizer, chat))
        scenarios = {key: i for i, key in enumerate(dict.fromkeys(self._scenarios[i] for i, _ in drawn))}
        numbers = torch.arange(len(prompts))
        return pairs_of(
            tokenizer,
            (prompts.select(numbers[:n_prompts]), prompts.select(numbers[n_prompts:])),
            ([row.prompt for row in rows], [row.counterfactual for row in rows]),
            ([self._answers(row) for row in rows], [self._new_answers(row) for row in rows]),
            scenarios=[scenarios[self._scenarios[i]] for i, _ in drawn],
            queried=[row.queried for row in rows],
            origins=origins,
            answer_tokens=self.form.answer_tokens,
        )

    def describe(self, pairs: Pairs, prompt: int, tokenizer: PreTrainedTokenizerBase) -> DescribedPair:
        """The tokens of one pair, as text, each with its roles."""
        return describe_pair(pairs, prompt, tokenizer)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """How many rows each split has."""
        return {split: len(self._split_rows[split]) for split in SPLITS}

    @cached_property
    def _scenarios(self) -> tuple[str, ...]:
        """Of each row; its prompt where none is named."""
        return tuple(row.prompt if row.scenario is None else str(row.scenario) for _, row in self.rows)

    @cached_property
    def _split_rows(self) -> dict[str, list[int]]:
        chosen: dict[str, list[int]] = {split: [] for split in SPLITS}
        for i, (_, row) in enumerate(self.rows):
            chosen[row.split or split_of([self._scenarios[i]])].append(i)
        return chosen

    def _drawn(self, n_prompts: int, seed: int, split: str, most: int) -> Iterator[tuple[int, Row]]:
        """At most so many rows of each scenario, scenario by scenario."""
        by_scenario: dict[str, list[int]] = {}
        for i in self._split_rows[split]:
            by_scenario.setdefault(self._scenarios[i], []).append(i)
        order = list(by_scenario)
        generator(self.name, split, seed).shuffle(order)
        drawn = [i for key in order for i in by_scenario[key][:most]]
        yield from ((i, self.rows[i][1]) for i in drawn[:n_prompts])

    def _answers(self, row: Row) -> AnswerTexts:
        right = self._spaced(row.answer)
        foils = self._spaced(row.foils) or self._spaced(row.counterfactual_answer or ())
        return AnswerTexts(right, tuple(foil for foil in dict.fromkeys(foils) if foil not in right))

    def _new_answers(self, row: Row) -> AnswerTexts | None:
        right = self._spaced(row.counterfactual_answer or ())
        return AnswerTexts(right, ()) if right else None

    def _spaced(self, texts: str | Texts) -> Texts:
        each = (texts,) if isinstance(texts, str) else texts
        return tuple(text if not self.form.space or text[:1].isspace() else f" {text}" for text in each)

    def _known(self, role: str) -> str:
        if role not in self.roles:
            raise InputError(f"{self.name} has no role {role!r}{choices(role, self.roles)}")
        return role


def read_table(path: Path) -> TableTask:
    """The task of a JSONL or CSV file, or of a YAML file that names one.

    Raises: InputError naming file, row and column of the first row that lacks something or has it in a wrong form, has
    an unknown key, has the counterfactual equal to the prompt, or stands twice.
    """
    if path.suffix in TABLES:
        form, table = TableFile(table=path.name), path
    else:
        form = validated(TableFile, read_yaml(path), str(path))
        table = path.parent / form.table
    rows = _csv_rows(table) if table.suffix == ".csv" else read_jsonl(table)
    if not rows:
        raise InputError(f"{table} has no rows; expected one pair a line")
    read = tuple((origin, _row(origin, data, form, table.suffix == ".csv")) for origin, data in rows)
    _check_twice(read)
    return TableTask(form, path, read)


def _csv_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(StringIO(read_text(path, "CSV")), strict=True, restval=None, restkey="")
    try:
        rows = [
            (f"{path}, line {reader.line_num}", {k: v for k, v in row.items() if v not in ("", None)}) for row in reader
        ]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    if long := next((origin for origin, row in rows if "" in row), None):
        raise InputError(f"{long}: more cells than the header has columns; put a cell that holds a comma in quotes")
    return rows


def _row(origin: str, data: Mapping[str, Any], form: TableFile, is_csv: bool) -> Row:
    """The row under our names. Columns that nothing names are an error, but for those that roles are read from."""
    names = {theirs: ours for ours, theirs in form.columns.model_dump().items()}
    words = {name for each in form.roles.values() for name in ((each,) if isinstance(each, str) else each)}
    row = {names.get(key, key): value for key, value in data.items() if key in names or key not in words}
    if is_csv:
        row = _typed(row)
    if form.roles:
        row["roles"], row["counterfactual_roles"] = {**row.get("roles", {})}, {**row.get("counterfactual_roles", {})}
        for role, columns in form.roles.items():
            for key, column in zip(
                ("roles", "counterfactual_roles"),
                (columns, columns) if isinstance(columns, str) else columns,
                strict=True,
            ):
                if column not in data:
                    raise InputError(f"{origin}: role {role!r} is in column {column!r}{choices(column, data)}")
                row[key][role] = data[column]
    read = validated(Row, row, origin)
    if read.prompt == read.counterfactual:
        raise InputError(f"{origin}: the counterfactual equals the prompt; change what the answer depends on")
    if read.split is not None and read.split not in SPLITS:
        raise InputError(f"{origin}: unknown split {read.split!r}{choices(read.split, SPLITS)}")
    return read


def _typed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Cells of a CSV file are text: several answers are separated by |, and `queried` is a number."""
    typed = dict(row)
    for name in ("answer", "foils", "counterfactual_answer"):
        if name in typed and _LISTED in typed[name]:
            typed[name] = [part.strip() for part in typed[name].split(_LISTED)]
    if "queried" in typed and str(typed["queried"]).isdecimal():
        typed["queried"] = int(typed["queried"])
    return typed


def _counterfactual(row: Row, origin: str) -> Any:
    """With the roles of its own, or the clean prompt's where the same words stand at the same places."""
    roles = row.counterfactual_roles
    if roles is None:
        roles = {
            role: place
            for role, place in row.roles.items()
            if not isinstance(place, str) or place in row.counterfactual
        }
    return cut_at_roles(row.counterfactual, roles, f"{origin}, counterfactual")


def _check_twice(rows: Sequence[tuple[str, Row]]) -> None:
    first: dict[str, str] = {}
    for origin, row in rows:
        if row.prompt in first:
            raise InputError(f"{origin}: the prompt of {first[row.prompt]} stands here again; keep one")
        first[row.prompt] = origin
