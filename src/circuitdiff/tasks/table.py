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
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerBase

from circuitdiff.config.reading import read_jsonl, read_text, read_yaml
from circuitdiff.config.settings import FolderName, Name, Settings
from circuitdiff.config.validation import validated
from circuitdiff.errors import InputError, choices, naming
from circuitdiff.prompts import Pairs, Triples
from circuitdiff.readable import Readable
from circuitdiff.tasks.answers import AnswerTexts, pairs_of
from circuitdiff.tasks.chat import OFF, chat_prefix
from circuitdiff.tasks.scenarios import SPLITS, check_options, generator, split_of
from circuitdiff.tasks.task import DescribedPair, Task, check_plan_roles, describe_pair
from circuitdiff.tasks.template_file import Scored
from circuitdiff.tasks.tokens import Span, check_known, check_names, cut_at_roles, tokenise

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

    @model_validator(mode="after")
    def _each_its_own(self) -> Columns:
        names = list(self.model_dump().values())
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two of them are called {twice!r}; give each column its own name")
        return self


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
_Some = Annotated[str, Field(min_length=1)]
_Several = tuple[_Some, ...]


class Row(Settings):
    """One row, under our names."""

    prompt: str = Field(min_length=1)
    answer: _Some | Annotated[_Several, Field(min_length=1)]
    counterfactual: str = Field(min_length=1)
    counterfactual_answer: _Some | Annotated[_Several, Field(min_length=1)] | None = None
    foils: _Some | _Several = ()
    scenario: str | int | None = None
    split: str | None = None
    queried: int = Field(default=0, ge=0, lt=2**31)
    roles: dict[Name, Span | str] = Field(default_factory=dict)
    counterfactual_roles: dict[Name, Span | str] | None = None


@dataclass(frozen=True, repr=False)
class TableTask(Readable, Task):
    """A task whose prompts are the rows of a table; see `Task.from_file`."""

    _shown = ("name", "about", "roles", "counterfactuals", "desiderata", "files")

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
    def table(self) -> Path:
        """The file of the rows."""
        return self.path if self.path.suffix in TABLES else self.path.parent / self.form.table

    @property
    def files(self) -> tuple[Path, ...]:
        """All that are read."""
        return tuple(dict.fromkeys([self.path, self.table]))

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
        with naming(str(self.table)):
            prompts = tokenise(tokenizer, [*clean, *other], self.roles, chat_prefix(tokenizer, chat))
        check_known(tokenizer, prompts, [*origins, *origins])
        scenarios = {key: i for i, key in enumerate(dict.fromkeys(self.scenarios[i] for i, _ in drawn))}
        numbers = torch.arange(len(prompts))
        return pairs_of(
            tokenizer,
            (prompts.select(numbers[:n_prompts]), prompts.select(numbers[n_prompts:])),
            ([row.prompt for row in rows], [row.counterfactual for row in rows]),
            ([self._answers(row) for row in rows], [self._new_answers(row) for row in rows]),
            scenarios=[scenarios[self.scenarios[i]] for i, _ in drawn],
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
    def scenarios(self) -> tuple[str, ...]:
        """Of each row; its prompt where none is named."""
        return tuple(row.prompt if row.scenario is None else str(row.scenario) for _, row in self.rows)

    @cached_property
    def _split_rows(self) -> dict[str, list[int]]:
        chosen: dict[str, list[int]] = {split: [] for split in SPLITS}
        for i, (_, row) in enumerate(self.rows):
            chosen[row.split or split_of([self.scenarios[i]])].append(i)
        return chosen

    def _drawn(self, n_prompts: int, seed: int, split: str, most: int) -> Iterator[tuple[int, Row]]:
        """At most so many rows of each scenario, scenario by scenario."""
        by_scenario: dict[str, list[int]] = {}
        for i in self._split_rows[split]:
            by_scenario.setdefault(self.scenarios[i], []).append(i)
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
        if table.suffix not in TABLES:
            raise InputError(f"{path}: table: expected a file that ends in {' or '.join(TABLES)}; got {form.table!r}")
    rows = _csv_rows(table) if table.suffix == ".csv" else read_jsonl(table)
    if not rows:
        raise InputError(f"{table} has no rows; expected one pair a line")
    read = tuple((origin, _row(origin, data, form, table.suffix == ".csv")) for origin, data in rows)
    _check_twice(read)
    _check_alike(read)
    task = TableTask(form, path, read)
    _check_splits(read, task.scenarios)
    for role in form.question:
        if role not in task.roles:
            raise InputError(f"{path}: question has the role {role!r}, which is unknown{choices(role, task.roles)}")
    check_plan_roles(str(path), form.plans, task.roles)
    return task


def _csv_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(StringIO(read_text(path, "CSV")), strict=True, restval=None, restkey="")
    try:
        names = list(reader.fieldnames or ())
        for name in names:
            if not name.strip() or names.count(name) > 1:
                raise InputError(f"{path}, line 1: the column {name!r} stands twice or has no name; give each its own")
        rows = [
            (f"{path}, line {reader.line_num}", {k: v for k, v in row.items() if v not in ("", None)}) for row in reader
        ]
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: {error}; expected cells with commas between them, and each quote doubled"
        ) from error
    if long := next((origin for origin, row in rows if "" in row), None):
        raise InputError(f"{long}: more cells than the header has columns; put a cell that holds a comma in quotes")
    return rows


def _row(origin: str, data: Mapping[str, Any], form: TableFile, is_csv: bool) -> Row:
    """The row under our names. Columns that nothing names are an error, but for those that roles are read from."""
    names = {theirs: ours for ours, theirs in form.columns.model_dump().items()}
    words = {name for each in form.roles.values() for name in ((each,) if isinstance(each, str) else each)}
    row = {names.get(key, key): value for key, value in data.items() if key in names or key not in words}
    if renamed := next((key for key in data if key in form.columns.model_dump() and key not in names), None):
        theirs = getattr(form.columns, renamed)
        if renamed not in words:
            raise InputError(f"{origin}: there is a column {renamed!r}, which `columns` calls {theirs!r}; keep one")
    if is_csv:
        row = _typed(row)
    own = row.get("roles") or {}
    changed = row.get("counterfactual_roles") or own
    if form.roles and isinstance(own, dict) and isinstance(changed, dict):
        row["roles"], row["counterfactual_roles"] = {**own}, {**changed}
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
    if read.prompt.strip() == read.counterfactual.strip():
        raise InputError(f"{origin}: the counterfactual equals the prompt; change what the answer depends on")
    if read.split is not None and read.split not in SPLITS:
        raise InputError(f"{origin}: unknown split {read.split!r}{choices(read.split, SPLITS)}")
    answers = (read.answer,) if isinstance(read.answer, str) else read.answer
    if read.prompt.endswith(" ") and (form.space or answers[0].startswith(" ")):
        raise InputError(
            f"{origin}: the prompt ends in a space, and the answer begins with one; keep that of the answer"
        )
    check_names((*read.roles, *(read.counterfactual_roles or ())), origin)
    cut_at_roles(read.prompt, read.roles, origin)
    _counterfactual(read, origin)
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
    """With the roles of its own, or the clean prompt's: the same words, or the same characters.

    Raises: InputError if it lacks one of the clean prompt's roles, or has another.
    """
    roles = row.roles if row.counterfactual_roles is None else row.counterfactual_roles
    if lacking := next((role for role in {*row.roles} ^ {*roles}), None):
        where = "counterfactual_roles" if lacking in row.roles else "roles"
        raise InputError(f"{origin}: the role {lacking!r} has no place in {where}; give it one in both prompts")
    return cut_at_roles(row.counterfactual, roles, f"{origin}, counterfactual")


def _check_alike(rows: Sequence[tuple[str, Row]]) -> None:
    """Raises: InputError naming the first row that has not the roles, or the kinds of answers, of the others."""
    first_origin, first = rows[0]
    for origin, row in rows:
        if odd := next((role for role in {*first.roles} ^ {*row.roles}), None):
            lacking, having = (origin, first_origin) if odd in first.roles else (first_origin, origin)
            raise InputError(f"{lacking}: the role {odd!r} of {having} is missing; give every row the same roles")
        if (row.counterfactual_answer is None) != (first.counterfactual_answer is None):
            raise InputError(f"{origin}: `counterfactual_answer` is given in some rows only; give it in all or in none")


def _check_splits(rows: Sequence[tuple[str, Row]], scenarios: Sequence[str]) -> None:
    """Raises: InputError if rows of one scenario are of two splits, which are then not disjoint."""
    splits: dict[str, tuple[str, str | None]] = {}
    for (origin, row), scenario in zip(rows, scenarios, strict=True):
        where, split = splits.setdefault(scenario, (origin, row.split))
        if split != row.split:
            raise InputError(f"{origin}: its scenario is of another split in {where}; give all its rows the same split")


def _check_twice(rows: Sequence[tuple[str, Row]]) -> None:
    first: dict[str, str] = {}
    for origin, row in rows:
        if row.prompt in first:
            raise InputError(f"{origin}: the prompt of {first[row.prompt]} stands here again; keep one")
        first[row.prompt] = origin
