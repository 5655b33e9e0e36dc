"""One number per prompt, of which accuracies and gains are means."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from circuitdiff.evaluation.answers import Evaluation

Score = Literal["accuracy", "probability", "log_prob"]
SCORES: tuple[Score, ...] = ("accuracy", "probability", "log_prob")


def scored(answers: Evaluation, score: Score) -> Float[Tensor, " prompt"]:
    """Hits (0 or 1), the answer's probability, or its logarithm in nats, of each prompt."""
    if score == "accuracy":
        return answers.hits.double()
    return answers.probabilities if score == "probability" else answers.log_probs.double()
