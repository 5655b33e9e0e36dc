"""Self-checks of edited runs on the study's own prompts: both executors agree, and doing nothing does nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from circuitdiff.evaluation import Evaluation
from circuitdiff.models.checks import Check, at_most, log_prob_tolerance
from circuitdiff.workbench import Subject, Workbench

FEW = 2  # prompts that the full executor runs; a check, not a measurement


def check_executors(
    bench: Workbench, subject: Subject, title: str, key: Mapping[str, Any], run: Callable[[str], list[Evaluation]]
) -> None:
    """Check 3: the window executor against the full one, in log probability of the answer.

    Raises: CheckError if they differ.
    """

    def compute() -> Check:
        window, full = (torch.stack([each.log_probs for each in run(name)]) for name in ("window", "full"))
        worst = float((window - full).abs().max() / full.abs().max().clamp(min=1.0))
        tolerance = log_prob_tolerance(subject.model.dtype)
        detail = f"{title}: {len(full)} runs x {full.shape[1]} prompts, relative log probability"
        return at_most("window executor vs full executor", subject.model, worst, tolerance, detail)

    bench.keep([subject.stages.check(f"check of {title}", key, compute)])


def check_itself(bench: Workbench, subject: Subject, title: str, noise_floor: float, answers: Evaluation) -> None:
    """Check 7: given its own activations, the recipient answers as it does anyway, relative to its log probabilities.

    Raises: CheckError if it does not.
    """
    tolerance = log_prob_tolerance(subject.model.dtype)
    value = noise_floor / max(1.0, float(answers.log_probs.abs().max()))
    bench.keep([at_most("a recipient given its own activations", subject.model, value, tolerance, title)])
