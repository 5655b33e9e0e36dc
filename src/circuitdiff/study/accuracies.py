"""How well models do a task: a table, one model after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from circuitdiff.config.reading import split_adapters
from circuitdiff.errors import InputError
from circuitdiff.evaluation import evaluate_model
from circuitdiff.models import load_model
from circuitdiff.models.sources import read_outline
from circuitdiff.study.sections.accuracy import Accuracy, accuracy_of
from circuitdiff.tasks import get_task
from circuitdiff.tasks.chat import OFF

DEFAULT = 500  # prompts


class ModelAccuracy(NamedTuple):
    model: str
    answers: Accuracy


def accuracies(
    task: str,
    models: Sequence[str],
    *,
    n_prompts: int | None = None,
    split: str = "evaluation",
    seed: int = 100,
    chats: Sequence[str] = (OFF,),
    dtype: str = "float32",
    device: str = "cpu",
    monitor: Callable[[str, int, int], None] = lambda *_: None,
) -> Iterator[ModelAccuracy]:
    """Each model's accuracy on the same prompts, with each chat template, one query per scenario.

    `n_prompts`: None: 500, or as many as the split has in the tokens of the first model.
    A model is a source that `load_model` takes, followed by `+` and an adapter for each one to merge. Intervals are
    95 %, Wilson's.

    Raises: InputError for an unknown task, split or model; before any model is loaded if there are fewer prompts.
    """
    built = get_task(task)
    n = n_prompts or DEFAULT
    there = built.available(read_outline(split_adapters(models[0])[0]).tokenizer, n, seed, split)
    if n_prompts is not None and there < n_prompts:
        raise InputError(f"-n {n_prompts}: the task {built.name} has {there} prompts in split {split!r}; ask for fewer")
    for name in models:
        monitor(name, 0, 1)
        source, *adapters = split_adapters(name)
        model = load_model(source, adapters, dtype, device, name=name)
        for chat in chats:
            pairs = built.sample(model.tokenizer, there, seed, split, chat=chat)
            answers = accuracy_of(evaluate_model(model, pairs), pairs)
            yield ModelAccuracy(name if list(chats) == [OFF] else f"{name}, chat {chat}", answers)
        monitor(name, 1, 1)
