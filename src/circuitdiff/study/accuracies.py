"""How well models do a task: a table, one model after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from circuitdiff.config.reading import split_adapters
from circuitdiff.evaluation import evaluate_model
from circuitdiff.models import load_model
from circuitdiff.study.sections.accuracy import Accuracy, accuracy_of
from circuitdiff.tasks import Task, get_task
from circuitdiff.tasks.chat import OFF
from circuitdiff.tasks.soundness import Finding, guessing


class ModelAccuracy(NamedTuple):
    model: str
    answers: Accuracy


def accuracies(
    task: str,
    models: Sequence[str],
    *,
    n_prompts: int = 500,
    split: str = "evaluation",
    seed: int = 100,
    chats: Sequence[str] = (OFF,),
    dtype: str = "float32",
    device: str = "cpu",
    monitor: Callable[[str, int, int], None] = lambda *_: None,
) -> Iterator[ModelAccuracy]:
    """Each model's accuracy on the same prompts, with each chat template, one query per scenario.

    A model is a source that `load_model` takes, followed by `+` and an adapter for each one to merge. Intervals are
    95 %, Wilson's.

    Raises: InputError for an unknown task, split or model.
    """
    built = get_task(task)
    for name in models:
        monitor(name, 0, 1)
        source, *adapters = split_adapters(name)
        model = load_model(source, adapters, dtype, device, name=name)
        for chat in chats:
            pairs = built.sample(model.tokenizer, n_prompts, seed, split, chat=chat)
            answers = accuracy_of(evaluate_model(model, pairs), pairs)
            yield ModelAccuracy(name if list(chats) == [OFF] else f"{name}, chat {chat}", answers)
        monitor(name, 1, 1)


def ability(
    task: Task,
    name: str,
    at_least: float,
    *,
    n_prompts: int = 100,
    seed: int = 0,
    monitor: Callable[[str, int, int], None] = lambda *_: None,
) -> Finding:
    """Whether a model does the task at all: its accuracy, held against a level and against guessing.

    Raises: InputError for an unknown model.
    """
    monitor(name, 0, 1)
    source, *adapters = split_adapters(name)
    model = load_model(source, adapters, name=name)
    pairs = task.sample(model.tokenizer, n_prompts, seed)
    found = accuracy_of(evaluate_model(model, pairs), pairs).accuracy
    monitor(name, 1, 1)
    said = f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
    able = found.value is not None and found.value >= at_least
    detail = f"guessing gives {guessing(pairs):.2f}" + ("" if able else f"; {name} does not do this task")
    return Finding("accuracy", said, able, detail)
