"""Can a study ask this task? Its plans, held against it as a study does, and whether a model can do it."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from circuitdiff.config.reading import split_adapters
from circuitdiff.errors import InputError, naming
from circuitdiff.evaluation import evaluate_model
from circuitdiff.methods.path_patching import check_reach
from circuitdiff.models import load_model
from circuitdiff.study.estimates import printed
from circuitdiff.study.sections.accuracy import ability
from circuitdiff.study.settings import expected, own_plans
from circuitdiff.tasks import Task
from circuitdiff.tasks.soundness import Finding

_FEW = 4  # prompts in whose tokens a plan's roles are looked for


def plans_finding(task: Task, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Finding:
    """Whether the plans of the task's file are such that a study runs them."""
    try:
        plans = own_plans(task)
        pairs = task.sample(tokenizer, task.available(tokenizer, _FEW, seed), seed)
        for name, plan in expected(plans, task).items():
            for stage in plan.stages:
                with naming(f"plans.{name}: stage {stage.name!r}"):
                    check_reach(pairs, stage.at, stage.via, stage.receivers_at)
    except InputError as error:
        return Finding("plans", "wrong", False, str(error))
    return Finding("plans", ", ".join(plans), True)


def ability_finding(
    task: Task,
    name: str,
    at_least: float,
    *,
    n_prompts: int = 100,
    seed: int = 0,
    monitor: Callable[[str, int, int], None] = lambda *_: None,
) -> Finding:
    """Whether a model does the task, by the rule of a study; and whether its accuracy reaches a level.

    Raises: InputError for an unknown model.
    """
    monitor(name, 0, 1)
    source, *adapters = split_adapters(name)
    model = load_model(source, adapters, name=name)
    pairs = task.sample(model.tokenizer, task.available(model.tokenizer, n_prompts, seed), seed)
    found = ability(evaluate_model(model, pairs), pairs)
    monitor(name, 1, 1)
    hits = found.accuracy
    able = found.does_it and hits.value is not None and hits.value >= at_least
    no = f"; {name} does not surely do better" if not found.does_it else f"; below {at_least:g}"
    detail = f"guessing gives {found.guessing:.2f}; logit difference {printed(found.logit_difference)}"
    return Finding("accuracy", printed(hits), able, detail + ("" if able else no))
