"""Whether the desiderata that a study names can be tested: known before anything is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError
from circuitdiff.prompts import Triples, split_by_scenario
from circuitdiff.sections.functions_cells import main_desiderata, title_of, wanted_of
from circuitdiff.sections.functions_settings import FILE, FunctionSettings
from circuitdiff.tasks import Task, read_triples

_FEW = 64  # triples that are drawn to see whether a desideratum goes with tokenizer and roles


def check_triples(
    wanted: FunctionSettings, groups: Mapping[str, str], task: Task, tokenizer: PreTrainedTokenizerBase, seed: int
) -> None:
    """`groups`: those that are asked about, with their roles.

    Raises: InputError naming the desideratum that is unknown, belongs to another task, shares its name, has too few
    triples, or cannot be written in this tokenizer or tested at a group's role.
    """
    asked = {group: wanted_of(group, wanted, task) for group in groups}
    names = list(dict.fromkeys(name for each in asked.values() for name in each))
    if not main_desiderata(wanted, task):
        return  # the section says that none are written for this task
    check_desiderata(task, names)
    _check_steps(wanted)
    triples = _drawn(names, task, tokenizer, seed)
    for file in filter(_is_file, names):
        triples[file] = read_triples(file, tokenizer)
        try:
            split_by_scenario(triples[file].scenarios, (wanted.train, wanted.validation, wanted.test))
        except InputError as error:
            raise InputError(f"{file}: {error}, or set functions.train, validation and test") from error
    for group, each in asked.items():
        for name in each:
            triples[name].check_role(groups[group])


def _check_steps(wanted: FunctionSettings) -> None:
    training = wanted.options(0, swept=False).training
    if training.most_steps < training.first_move:
        raise InputError(
            f"functions.steps must be at least {training.first_move} with a learning rate of {training.learning_rate:g}"
            f", or no head could ever be patched; got {training.most_steps}"
        )


def check_desiderata(task: Task, names: Iterable[str]) -> None:
    """Raises: InputError for a desideratum that is unknown, is no file, belongs to another task, or shares its name."""
    names = list(names)
    for name in names:
        if _is_file(name) and not Path(name).is_file():
            raise InputError(f"there is no file {name} of triples; give the path of a JSONL file")
    task.check_desiderata(name for name in names if not _is_file(name))
    titles = Counter(map(title_of, names))
    if twice := [title for title, n in titles.items() if n > 1]:
        raise InputError(f"two desiderata are called {twice[0]!r}, by which results know them; rename a file")


def _drawn(names: Iterable[str], task: Task, tokenizer: PreTrainedTokenizerBase, seed: int) -> dict[str, Triples]:
    written = [name for name in names if not _is_file(name)]
    return dict(zip(written, task.triples(tokenizer, written, _FEW, seed), strict=True)) if written else {}


def _is_file(name: str) -> bool:
    return name.endswith(FILE)
