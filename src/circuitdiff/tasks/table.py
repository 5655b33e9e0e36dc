"""A task written as a table: ready-made pairs, one a row of a JSONL or CSV file; a YAML file may name its columns.

A row has `prompt`, `answer` (a text, or a list of all that are right), `counterfactual`, and if sampling
`counterfactual_answer`, `foils`, `scenario` (prompts of one scenario are not independent; without it each row is one of
its own), `split`, `queried` (a number by which accuracy is shown) and `roles`: each a span of characters, up to but not
including its end, or the word where it stands. Slots are the roles, and the tokens of the text between them by number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError, naming
from circuitdiff.prompts import Pairs
from circuitdiff.tasks.answers import AnswerTexts, PairTexts, pairs_of
from circuitdiff.tasks.chat import chat_prefix
from circuitdiff.tasks.scenarios import SPLITS, generator, split_of
from circuitdiff.tasks.table_file import TABLES, Row, TableFile, counterfactual_of, read_rows
from circuitdiff.tasks.task import Sampling, Task, check_named_roles
from circuitdiff.tasks.tokens import check_words_known, cut_at_roles, tokenise
from circuitdiff.triples import Triples


@dataclass(frozen=True, repr=False, kw_only=True)
class TableTask(Task):
    """A task whose prompts are the rows of a table; see `Task.from_file`."""

    form: TableFile
    rows: tuple[tuple[str, Row], ...]  # each with its place in the file

    @property
    def path(self) -> Path:
        """The file of the task."""
        return self.files[0]

    @property
    def table(self) -> Path:
        """The file of the rows."""
        return self.files[-1]

    @cached_property
    def roles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*(role for _, row in self.rows for role in row.roles), "last"]))

    @cached_property
    def answer_roles(self) -> tuple[str, ...]:
        """Those whose word is an answer of its row, in every row."""
        return tuple(role for role in self.rows[0][1].roles if all(_answers(row, role) for _, row in self.rows))

    def check_desiderata(self, names: Iterable[str]) -> None:
        for name in names:
            raise InputError(f"the task {self.name} has no desideratum {name!r}; give JSONL files of triples")

    def source_of(self, desideratum: str) -> Hashable:
        return desideratum

    def _triples(
        self, tokenizer: PreTrainedTokenizerBase, desiderata: Sequence[str], sampling: Sampling
    ) -> list[Triples]:
        return []  # `check_desiderata` refuses any

    def every_segment(self, role: str) -> list[str]:
        """The role alone: a table lists nothing."""
        self.check_role(role)
        return [role]

    def wrong_segment(self, role: str) -> str:
        """The role itself: a table has no wrong place."""
        self.check_role(role)
        return role

    def _sample(self, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> Pairs:
        """Rows of the split in an order that the seed draws.

        A row without `split` belongs to the one that its scenario's content decides, so that splits are disjoint.
        """
        sampling.check(max(1, sampling.queries_per_scenario))
        drawn = self._drawn(sampling)
        if len(drawn) < sampling.n_prompts:
            sizes = ", ".join(f"{name} {n}" for name, n in self.sizes.items())
            raise InputError(
                f"{self.path}: split {sampling.split!r} has {len(drawn)} prompts, and {sampling.n_prompts} are asked "
                f"for: ask for fewer, or give more rows (there are, by split: {sizes})"
            )
        origins, rows = zip(*(self.rows[i] for i in drawn), strict=True)
        clean = [cut_at_roles(row.prompt, row.roles, origin) for row, origin in zip(rows, origins, strict=True)]
        other = [counterfactual_of(row, origin) for row, origin in zip(rows, origins, strict=True)]
        with naming(str(self.table)):
            prompts = tokenise(tokenizer, [*clean, *other], self.roles, chat_prefix(tokenizer, sampling.chat))
        check_words_known(tokenizer, prompts, [*origins, *origins])
        numbers = {scenario: n for n, scenario in enumerate(dict.fromkeys(self.scenarios[i] for i in drawn))}
        pairs = [self._pair(*self.rows[i], numbers[self.scenarios[i]]) for i in drawn]
        return pairs_of(tokenizer, prompts, pairs, self.form.answer_tokens, self.form.space)

    def _pair(self, origin: str, row: Row, scenario: int) -> PairTexts:
        right, new = self._spaced(row.answer), self._spaced(row.counterfactual_answer or ())
        foils = tuple(foil for foil in dict.fromkeys(self._spaced(row.foils) or new) if foil not in right)
        answers, new_answers = AnswerTexts(right, foils), AnswerTexts(new)
        return PairTexts(row.prompt, row.counterfactual, answers, new_answers, origin, scenario, row.queried)

    def _spaced(self, texts: str | tuple[str, ...]) -> tuple[str, ...]:
        each = (texts,) if isinstance(texts, str) else texts
        return tuple(text if not self.form.space or text[:1].isspace() else f" {text}" for text in each)

    def _available(self, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> int:
        sampling.check(sampling.queries_per_scenario)
        return min(sampling.n_prompts, self.n_prompts(sampling.split, sampling.queries_per_scenario))

    def n_prompts(self, split: str, queries_per_scenario: int = 1) -> int:
        of_each = Counter(self.scenarios[i] for i in self._split_rows[split])
        return sum(min(n, queries_per_scenario) for n in of_each.values())

    @cached_property
    def sizes(self) -> dict[str, int]:
        """How many rows each split has."""
        return {split: len(rows) for split, rows in self._split_rows.items()}

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

    def _drawn(self, sampling: Sampling) -> list[int]:
        """Rows by number, so many of each scenario at most, scenario by scenario."""
        by_scenario: dict[str, list[int]] = {}
        for i in self._split_rows[sampling.split]:
            by_scenario.setdefault(self.scenarios[i], []).append(i)
        order = list(by_scenario)
        generator(self.name, sampling.split, sampling.seed).shuffle(order)
        drawn = [i for key in order for i in by_scenario[key][: sampling.queries_per_scenario]]
        return drawn[: sampling.n_prompts]


def read_table(path: Path) -> TableTask:
    """The task of a JSONL or CSV file, or of a YAML file that names one.

    Raises: InputError as `read_rows`, or if a plan or the question names a role that the rows lack, or rows of one
    scenario are of two splits.
    """
    form, rows = read_rows(path)
    table = path if path.suffix in TABLES else path.parent / form.table
    task = TableTask(
        name=form.name or path.stem,
        form=form,
        counterfactuals=("given",),
        desiderata=(),
        files=tuple(dict.fromkeys([path, table])),
        rows=rows,
    )
    _check_splits(rows, task.scenarios)
    with naming(path):
        check_named_roles(form, task.roles)
    return task


def _check_splits(rows: Sequence[tuple[str, Row]], scenarios: Sequence[str]) -> None:
    """Raises: InputError if rows of one scenario are of two splits, which are then not disjoint."""
    splits: dict[str, tuple[str, str | None]] = {}
    for (origin, row), scenario in zip(rows, scenarios, strict=True):
        where, split = splits.setdefault(scenario, (origin, row.split))
        if split != row.split:
            raise InputError(f"{origin}: its scenario is of another split in {where}; give all its rows the same split")


def _answers(row: Row, role: str) -> bool:
    """Whether an answer of the row stands at the role."""
    place, answers = row.roles[role], [row.answer] if isinstance(row.answer, str) else row.answer
    word = place if isinstance(place, str) else row.prompt[slice(*place)]
    return word.strip() in map(str.strip, answers)
