"""Tasks: prompt pairs whose tokens have named roles, each written as a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from circuitdiff.config.reading import looks_like_path, no_such_path, read_yaml
from circuitdiff.errors import InputError, choices
from circuitdiff.tasks.desiderata import sample_triples
from circuitdiff.tasks.reading import read_template
from circuitdiff.tasks.table import TableTask, read_table
from circuitdiff.tasks.table_file import TABLES
from circuitdiff.tasks.task import Task
from circuitdiff.tasks.template import TemplateTask
from circuitdiff.tasks.texts import from_texts
from circuitdiff.tasks.triples_file import read_triples

FILES = Path(__file__).parent / "files"
_YAML = (".yaml", ".yml")


def built_in() -> list[str]:
    """The names of the tasks that come with the package."""
    return sorted(path.stem for path in FILES.glob("[a-z]*.yaml"))


def new_task() -> str:
    """A commented task file to start from."""
    return (FILES / "_new.yaml").read_text()


def get_task(name: str, **options: object) -> Task:
    """A built-in task by its name, or the task of a file by its path.

    Raises: InputError if there is no such task, its file is wrong, or an option is unknown or of the wrong type.
    """
    path = Path(name).expanduser()
    if not is_task_file(name) and not path.is_file():
        known, plain = built_in(), name.replace("-", "_")
        if plain not in known:
            raise InputError(f"unknown task {name!r}{choices(plain, known)}, or give the path of a task file")
        return read_template(FILES / f"{plain}.yaml", options)
    if not path.is_file():
        raise InputError(no_such_path(path))
    if path.suffix not in (*_YAML, *TABLES):
        raise InputError(f"{name}: a task file ends in {', '.join((*_YAML, *TABLES))}; rename it after its form")
    if path.suffix not in TABLES and "table" not in read_yaml(path):
        return read_template(path, options)
    if options:
        raise InputError(f"{path}: a table has no options; got {', '.join(options)}")
    return read_table(path)


def is_task_file(name: str) -> bool:
    """Whether a task is named by a path and not by its name."""
    return name.endswith((*_YAML, *TABLES)) or looks_like_path(name)


def entity_tracking(n_boxes: int = 7, **words: Iterable[str]) -> TemplateTask:
    """Which object is in the box asked for? With `n_boxes` boxes and, if given, other objects, train_objects, labels.

    Raises: InputError if there are fewer than two boxes, or an object serves both training and evaluation.
    """
    return read_template(FILES / "entity_tracking.yaml", {"n_boxes": n_boxes, **words})


def ioi(**words: Iterable[str]) -> TemplateTask:
    """Which of two people was given something? If given, with other names, train_names, places and objects.

    Raises: InputError if a name serves both training and evaluation.
    """
    return read_template(FILES / "ioi.yaml", words)


__all__ = [
    "TableTask",
    "Task",
    "TemplateTask",
    "built_in",
    "entity_tracking",
    "from_texts",
    "get_task",
    "ioi",
    "is_task_file",
    "new_task",
    "read_triples",
    "sample_triples",
]
