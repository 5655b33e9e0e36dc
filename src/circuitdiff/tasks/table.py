"""A task written as a table: ready-made pairs, one a row of a JSONL or CSV file; a YAML file may name its columns.

A row has `prompt`, `answer` (a text, or a list of all that are right), `counterfactual`, and if wanted
`counterfactual_answer`, `foils`, `scenario` (prompts of one scenario are not independent; without it each row is one of
its own), `split`, `queried` (a number by which accuracy is shown) and `roles`: each a span of characters, up to but not
including its end, or the word where it stands. Slots are the roles, and the tokens of the text between them by number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError, choices, naming
from circuitdiff.prompts import Pairs
from circuitdiff.readable import Readable
from circuitdiff.tasks.answers import AnswerTexts, pairs_of
from circuitdiff.tasks.chat import OFF, chat_prefix
from circuitdiff.tasks.scenarios import SPLITS, check_options, generator, split_of
from circuitdiff.tasks.table_file import TABLES, Row, TableFile, counterfactual_of, read_rows
from circuitdiff.tasks.task import DEFAULT_PLANS, Task, check_plan_roles
from circuitdiff.tasks.tokens import check_known, cut_at_roles, tokenise
from circuitdiff.triples import Triples

_GIVEN = "given"


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
        return self.form.plans or DEFAULT_PLANS

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
        other = [counterfactual_of(row, origin) for row, origin in zip(rows, origins, strict=True)]
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
            space=self.form.space,
        )

    def available(
        self,
        tokenizer: PreTrainedTokenizerBase,
        most: int,
        seed: int = 0,
        split: str = "evaluation",
        queries_per_scenario: int = 1,
    ) -> int:
        """How many prompts `sample` can draw with these arguments, `most` at most."""
        check_options(most, split, queries_per_scenario, queries_per_scenario)
        return min(most, self.n_prompts(split, queries_per_scenario))

    def n_prompts(self, split: str, queries_per_scenario: int = 1) -> int:
        """How many rows of a split there are, at most so many of a scenario."""
        of_each = Counter(self.scenarios[i] for i in self._split_rows[split])
        return sum(min(n, queries_per_scenario) for n in of_each.values())

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

    def _spaced(self, texts: str | tuple[str, ...]) -> tuple[str, ...]:
        each = (texts,) if isinstance(texts, str) else texts
        return tuple(text if not self.form.space or text[:1].isspace() else f" {text}" for text in each)

    def _known(self, role: str) -> str:
        if role not in self.roles:
            raise InputError(f"{self.name} has no role {role!r}{choices(role, self.roles)}")
        return role


def read_table(path: Path) -> TableTask:
    """The task of a JSONL or CSV file, or of a YAML file that names one.

    Raises: InputError as `read_rows`, or if a plan or the question names a role that the rows lack, or rows of one
    scenario are of two splits.
    """
    form, rows = read_rows(path)
    task = TableTask(form, path, rows)
    _check_splits(rows, task.scenarios)
    for role in form.question:
        if role not in task.roles:
            raise InputError(f"{path}: question has the role {role!r}, which is unknown{choices(role, task.roles)}")
    check_plan_roles(str(path), form.plans, task.roles)
    return task


def _check_splits(rows: Sequence[tuple[str, Row]], scenarios: Sequence[str]) -> None:
    """Raises: InputError if rows of one scenario are of two splits, which are then not disjoint."""
    splits: dict[str, tuple[str, str | None]] = {}
    for (origin, row), scenario in zip(rows, scenarios, strict=True):
        where, split = splits.setdefault(scenario, (origin, row.split))
        if split != row.split:
            raise InputError(f"{origin}: its scenario is of another split in {where}; give all its rows the same split")
