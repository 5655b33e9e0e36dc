"""Gains and their shares as plain numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from circuitdiff import results as form
from circuitdiff.evaluation import Evaluation
from circuitdiff.evaluation.scores import SCORES, Score, scored
from circuitdiff.prompts import Pairs
from circuitdiff.sections.entries import interval_entry
from circuitdiff.stats.intervals import mean_interval
from circuitdiff.stats.shapley import ALONE, Attribution, Subset, attribute

_CREDITED = ("value", "low", "high", "share", "share_low", "share_high")  # of a credit


def attribution_entry(found: Attribution) -> dict[str, Any]:
    return {
        "gain": interval_entry(found.gain),
        "parts": {part: {how: c._asdict() for how, c in credits.items()} for part, credits in found.parts.items()},
        "together": found.together._asdict(),
        "unexplained": found.unexplained._asdict(),
        "runs": [{"parts": [p for p in found.parts if p in run], **c._asdict()} for run, c in found.runs.items()],
    }


def run_entry(names: Subset, answers: Evaluation, order: Sequence[str]) -> dict[str, Any]:
    """A run of the table: which parts it has, and its accuracy, probability and log probability."""
    return {"parts": [part for part in order if part in names], **score_entries(answers)}


def score_entries(answers: Evaluation) -> dict[str, Any]:
    entries: dict[str, Any] = {"accuracy": form.share(answers.hits, answers.scenarios)}
    for score in SCORES[1:]:
        entries[score] = interval_entry(mean_interval(scored(answers, score).numpy(), answers.scenarios.numpy()))
    return entries


def control_entry(
    donor: Evaluation,
    nothing: Evaluation,
    control: Evaluation,
    score: Score = "accuracy",
    *,
    compatible: bool = True,
) -> dict:
    """What a control brings, as a credit of the gain; without a share if the model could not have run so itself."""
    name = "control"
    scores = {frozenset(): scored(nothing, score).numpy(), frozenset([name]): scored(control, score).numpy()}
    far = [] if compatible else [frozenset([name])]
    found = attribute(scores, scored(donor, score).numpy(), donor.scenarios.numpy(), [name], incompatible=far)
    return {**found.parts[name][ALONE]._asdict(), "n_scenarios": len(donor.scenarios.unique())}


def random_entry(
    donor: Evaluation,
    nothing: Evaluation,
    group: Evaluation,
    drawn: Sequence[Evaluation],
    far: Collection[int] = (),
) -> dict:
    """The group among random ones: their shares of the gain, and how many of them it beats.

    `value` and `share` are the random groups' means. Their bounds hold for single groups and for other prompts:
    percentiles, over the groups, of each group's own bounds. Shares are undefined where the gain's interval covers 0;
    `far`: the groups, by number, whose runs the model could not have made itself, which have none.
    """
    real = control_entry(donor, nothing, group)
    accuracies = _accuracies(drawn)
    own = float(group.hits.double().mean())
    below = float((accuracies < own).mean() + (accuracies == own).mean() / 2)
    credits = [control_entry(donor, nothing, each, compatible=i not in far) for i, each in enumerate(drawn)]
    return {
        "n": len(drawn),
        "n_far": len(far),
        "n_prompts": len(donor.hits),
        "n_scenarios": real["n_scenarios"],
        "percentile": 100 * below,
        "accuracies": accuracies.tolist(),
        "nothing": float(nothing.hits.double().mean()),
        "undefined": real["undefined"],
        **{name: _of_all(name, credits) for name in _CREDITED},
    }


def _of_all(name: str, credits: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean of a value or share; of its bounds those that 95 % of the groups keep to. None where none has one."""
    values = [credit[name] for credit in credits if not np.isnan(credit[name])]
    if not values:
        return None
    if name.endswith("low"):
        return float(np.quantile(values, 0.025))
    return float(np.quantile(values, 0.975) if name.endswith("high") else np.mean(values))


def first_prompts(pairs: Pairs, n: int) -> Pairs:
    """The first prompts, which are balanced by queried index."""
    return pairs.select(torch.arange(min(n, len(pairs))))


def largest_part(attribution: Mapping[str, Any], how: str) -> str:
    """The part that adds most, in the score's unit, so that it is defined without a gain, too."""
    parts = attribution["parts"]
    return max(parts, key=lambda part: parts[part][how]["value"])


def _accuracies(drawn: Sequence[Evaluation]) -> Float[ndarray, " group"]:
    return np.array([float(each.hits.double().mean()) for each in drawn])
