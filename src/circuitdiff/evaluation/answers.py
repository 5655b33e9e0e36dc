"""What a model answers, prompt by prompt, and the numbers of which accuracies and gains are means."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from circuitdiff.engine import Model
from circuitdiff.engine.capture import read_model
from circuitdiff.engine.executor import Readout
from circuitdiff.engine.fits import check_pairs
from circuitdiff.prompts import Pairs
from circuitdiff.stats.intervals import Interval
from circuitdiff.stats.metrics import hit, log_prob, logit_difference
from circuitdiff.stats.proportions import accuracy_interval

Quantity = Literal["hits", "probability", "logit_difference"]

N_VALUES = 4  # that `answers_readout` gives: hit, prediction, logit difference, log probability
Score = Literal["accuracy", "probability", "log_prob"]  # of which shares of a gain are taken; accuracy is of hits
SCORES: tuple[Score, ...] = ("accuracy", "probability", "log_prob")


@dataclass(frozen=True)
class Evaluation:
    """What a model or a circuit answers, prompt by prompt."""

    hits: Bool[Tensor, " prompt"]  # the most likely token of the whole vocabulary is the answer
    predictions: Int[Tensor, " prompt"]
    logit_differences: Float[Tensor, " prompt"]  # the answer's logit minus that of the best other listed answer
    log_probs: Float[Tensor, " prompt"]  # of the answer, over the whole vocabulary, in nats
    scenarios: Int[Tensor, " prompt"]

    def select(self, prompts: Int[Tensor, " chosen"]) -> Evaluation:
        """Of the chosen prompts, in the order given."""
        return Evaluation(*(getattr(self, each.name)[prompts] for each in fields(self)))

    @property
    def accuracy(self) -> Interval:
        """Share of hits, with Wilson's interval; scenarios are the independent units."""
        return accuracy_interval(self.hits.numpy(), self.scenarios.numpy())

    @property
    def probabilities(self) -> Float[Tensor, " prompt"]:
        """The answer's probability over the whole vocabulary, 0 to 1."""
        return self.log_probs.double().exp()

    def per_prompt(self, quantity: Quantity | Score) -> Float[Tensor, " prompt"]:
        """Hits (0 or 1), the answer's probability or its logarithm, or the logit difference; float64."""
        values = {
            "hits": self.hits,
            "accuracy": self.hits,
            "probability": self.probabilities,
            "log_prob": self.log_probs,
            "logit_difference": self.logit_differences,
        }
        return values[quantity].double()

    def scored(self, quantity: Quantity | Score) -> Shaped[np.ndarray, " prompt"]:
        """`per_prompt` for statistics, which know hits, and what interval they need, by their being booleans."""
        return (self.hits if quantity in ("hits", "accuracy") else self.per_prompt(quantity)).numpy()


def evaluate_model(model: Model, pairs: Pairs) -> Evaluation:
    """What the model answers to the clean prompts."""
    check_pairs(model, pairs)
    return evaluation_of(read_model(model, pairs.clean_prompts, answers_readout(pairs, model.device)), pairs)


def answers_readout(pairs: Pairs, device: torch.device) -> Readout:
    """All that an `Evaluation` needs of each prompt's logits, in the order of its fields."""
    answers, alternatives = pairs.answers.to(device), pairs.alternatives.to(device)

    def readout(logits: Float[Tensor, "row d_vocab"], prompt: Int[Tensor, " row"]) -> Float[Tensor, "row value"]:
        answer = answers[prompt]
        columns = [
            hit(logits, answer),
            logits.argmax(dim=-1),
            logit_difference(logits, answer, alternatives[prompt]),
            log_prob(logits, answer),
        ]
        wide = torch.promote_types(logits.dtype, torch.float32)  # token ids below 2^24 are exact
        return torch.stack([column.to(wide) for column in columns], dim=-1)

    return readout


def evaluation_of(values: Float[Tensor, "prompt value"], pairs: Pairs) -> Evaluation:
    """What `answers_readout` gave, by name."""
    return Evaluation(values[:, 0].bool(), values[:, 1].long(), values[:, 2], values[:, 3], pairs.scenarios)
