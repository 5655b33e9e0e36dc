"""The rows of a table file: what its columns are called, and each row read under our names."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from circuitdiff.config.reading import read_jsonl, read_text, read_yaml
from circuitdiff.config.settings import FolderName, Name, Settings
from circuitdiff.config.validation import validated
from circuitdiff.errors import InputError, choices
from circuitdiff.tasks.scenarios import SPLITS
from circuitdiff.tasks.template_file import Scored, first_repeated
from circuitdiff.tasks.tokens import Prompt, Span, check_names, cut_at_roles

TABLES = (".jsonl", ".csv")
_LISTED = "|"  # what separates several answers or foils in a cell of a CSV file


_Some = Annotated[str, Field(min_length=1)]
_Several = tuple[_Some, ...]
_Answers = _Some | Annotated[_Several, Field(min_length=1)]


class Row(Settings):
    """One row, under our names."""

    prompt: str = Field(min_length=1)
    answer: _Answers
    counterfactual: str = Field(min_length=1)
    counterfactual_answer: _Answers | None = None
    foils: _Some | _Several = ()
    scenario: str | int | None = None
    split: str | None = None
    queried: int = Field(default=0, ge=0, lt=2**31)
    roles: dict[Name, Span | str] = Field(default_factory=dict)
    counterfactual_roles: dict[Name, Span | str] | None = None


_OUR_NAMES = {name: name for name in Row.model_fields}


class TableFile(Settings):
    """A task as a table; its path is relative to this file. `roles`: columns that hold the word at which a role sits.

    `columns`: what the table calls those of a row. `space`: an answer without one gets a space before it.
    `answer_tokens`: which of an answer's tokens count.
    """

    table: str
    name: FolderName | None = None
    about: str = ""
    columns: dict[str, str] = _OUR_NAMES
    roles: dict[Name, str | tuple[str, str]] = Field(default_factory=dict)  # the clean prompt's, the counterfactual's
    space: bool = True
    answer_tokens: Scored = "all"
    question: tuple[str, ...] = ("last",)
    plans: dict[Name, Any] = Field(default_factory=dict)

    @field_validator("columns")
    @classmethod
    def _each_its_own(cls, columns: dict[str, str]) -> dict[str, str]:
        if unknown := next((name for name in columns if name not in _OUR_NAMES), None):
            raise ValueError(f"there is no key {unknown!r} here{choices(unknown, _OUR_NAMES)}")
        columns = _OUR_NAMES | columns
        if twice := first_repeated(columns.values()):
            raise ValueError(f"two of them are called {twice!r}; give each column its own name")
        return columns


def read_rows(path: Path) -> tuple[TableFile, tuple[tuple[str, Row], ...]]:
    """A JSONL or CSV file, or a YAML file that names one: its form, and each row with its place.

    Raises: InputError naming file, row and column of the first row that lacks something or has it in a wrong form, has
    an unknown key, has the counterfactual equal to the prompt, or stands twice.
    """
    if path.suffix in TABLES:
        form, table = TableFile(table=path.name), path
    else:
        form = validated(TableFile, read_yaml(path), f"{path}, a table by its key `table`")
        table = path.parent / form.table
        if table.suffix not in TABLES:
            raise InputError(f"{path}: table: expected a file that ends in {' or '.join(TABLES)}; got {form.table!r}")
    rows = _csv_rows(table) if table.suffix == ".csv" else read_jsonl(table)
    if not rows:
        raise InputError(f"{table} has no rows; expected one pair a line")
    read = tuple((origin, _row(origin, data, form, table.suffix == ".csv")) for origin, data in rows)
    _check_twice(read)
    _check_alike(read)
    return form, read


def _csv_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(StringIO(read_text(path, "CSV")), strict=True, restval=None, restkey="")
    try:
        names = list(reader.fieldnames or ())
        if len(names) == 1 and (sign := next((each for each in ";\t|" if each in names[0]), None)):
            raise InputError(f"{path}, line 1: {sign!r} stands between the columns; save the table with commas between")
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
    names = {theirs: ours for ours, theirs in form.columns.items()}
    words = {name for each in form.roles.values() for name in ((each,) if isinstance(each, str) else each)}
    row = {names.get(key, key): value for key, value in data.items() if key in names or key not in words}
    if renamed := next((key for key in data if key in form.columns and key not in names), None):
        theirs = form.columns[renamed]
        if theirs not in data:
            lacks = choices(theirs, data)
            raise InputError(f"{origin}: `columns` says that {renamed} is in {theirs!r}, which the table lacks{lacks}")
        if renamed not in words:
            raise InputError(
                f"{origin}: the table has the columns {theirs!r} and {renamed!r}, and `columns` takes the first as "
                f"{renamed}: drop one of the columns, or `{renamed}: {theirs}`"
            )
    if is_csv:
        row = _typed(row)
    own = row.get("roles") or {}
    changed = row.get("counterfactual_roles") or own
    if form.roles and isinstance(own, dict) and isinstance(changed, dict):
        row["roles"], row["counterfactual_roles"] = {**own}, {**changed}
        for role, columns in form.roles.items():
            both = (columns, columns) if isinstance(columns, str) else columns
            for key, column in zip(("roles", "counterfactual_roles"), both, strict=True):
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
    counterfactual_of(read, origin)
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


def _check_alike(rows: Sequence[tuple[str, Row]]) -> None:
    """Raises: InputError naming the first row that has not the roles, or the kinds of answers, of the others."""
    first_origin, first = rows[0]
    for origin, row in rows:
        if odd := next((role for role in {*first.roles} ^ {*row.roles}), None):
            lacking, having = (origin, first_origin) if odd in first.roles else (first_origin, origin)
            raise InputError(f"{lacking}: the role {odd!r} of {having} is missing; give every row the same roles")
        if (row.counterfactual_answer is None) != (first.counterfactual_answer is None):
            raise InputError(f"{origin}: `counterfactual_answer` is given in some rows only; give it in all or in none")


def _check_twice(rows: Sequence[tuple[str, Row]]) -> None:
    first: dict[str, str] = {}
    for origin, row in rows:
        if row.prompt in first:
            raise InputError(f"{origin}: the prompt of {first[row.prompt]} stands here again; keep one")
        first[row.prompt] = origin


def counterfactual_of(row: Row, origin: str) -> Prompt:
    """With the roles of its own, or the clean prompt's: the same words, or the same characters.

    Raises: InputError if it lacks one of the clean prompt's roles, or has another.
    """
    roles = row.roles if row.counterfactual_roles is None else row.counterfactual_roles
    if lacking := next((role for role in {*row.roles} ^ {*roles}), None):
        where = "counterfactual_roles" if lacking in row.roles else "roles"
        raise InputError(f"{origin}: the role {lacking!r} has no place in {where}; give it one in both prompts")
    return cut_at_roles(row.counterfactual, roles, f"{origin}, counterfactual")
