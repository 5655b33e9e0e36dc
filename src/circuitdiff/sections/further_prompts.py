"""Prompts for what is chosen by looking at scores: no scenario of theirs is among the evaluation prompts."""

from __future__ import annotations

from circuitdiff.prompts import Pairs
from circuitdiff.workbench import Subject, Workbench


def further_prompts(bench: Workbench, subject: Subject, n_prompts: int) -> Pairs:
    """The prompts that follow the evaluation prompts in the same split, so that these stay fresh."""
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
