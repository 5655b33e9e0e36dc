"""Prompts of the evaluation split beside the evaluation prompts."""

from __future__ import annotations

from circuitdiff.prompts import Pairs
from circuitdiff.sections.gains import first_prompts
from circuitdiff.workbench import Subject, Workbench


def further_prompts(bench: Workbench, subject: Subject, n_prompts: int) -> Pairs:
    """Prompts for what is chosen by looking at scores: of the scenarios that follow those of the evaluation prompts."""
    wanted, evaluation = bench.settings.prompts, subject.splits.evaluation
    sampled = bench.task.sample(
        subject.model.tokenizer,
        len(evaluation) + wanted.queries_per_scenario + n_prompts,
        bench.settings.seed,
        "evaluation",
        wanted.queries_per_scenario,
        counterfactual=wanted.counterfactual,
    )
    fresh = (sampled.scenarios > evaluation.scenarios.max()).nonzero()[:, 0]
    return sampled.select(fresh[:n_prompts])


def evaluation_questions(bench: Workbench, subject: Subject, n_prompts: int, each: int | None) -> Pairs:
    """The first evaluation prompts; with `each`, so many questions about each of the first evaluation scenarios.

    Raises: InputError if the task cannot ask so many questions about a scenario.
    """
    wanted, evaluation = bench.settings.prompts, subject.splits.evaluation
    if each is None or each == wanted.queries_per_scenario:
        return first_prompts(evaluation, n_prompts)
    return bench.task.sample(
        subject.model.tokenizer,
        min(n_prompts, each * len(evaluation.scenarios.unique())),
        bench.settings.seed,
        "evaluation",
        each,
        counterfactual=wanted.counterfactual,
    )
