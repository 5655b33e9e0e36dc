"""What a model answers, prompt by prompt, and the numbers of which accuracies and gains are means."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from circuitdiff.engine import Model
from circuitdiff.engine.capture import capture
from circuitdiff.engine.executor import Readout
from circuitdiff.engine.fits import check_pairs
from circuitdiff.prompts import Pairs
from circuitdiff.readable import Readable, data_frame
from circuitdiff.stats.intervals import Interval
from circuitdiff.stats.metrics import hit, log_prob, logit_difference
from circuitdiff.stats.proportions import accuracy_interval

Quantity = Literal["hits", "probability", "logit_difference"]

N_VALUES = 4  # that `answers_readout` gives: hit, prediction, logit difference, log probability
Score = Literal["accuracy", "logit_difference", "log_prob"]  # of which shares of a gain are taken; accuracy is of hits
SCORES: tuple[Score, ...] = ("accuracy", "logit_difference", "log_prob")


@dataclass(frozen=True, repr=False)
class Evaluation(Readable):
    """What a model or a circuit answers, prompt by prompt; of several right answers (`Pairs.right`) any counts.

    An answer of several tokens (`Pairs.continuations`) is a hit if each of them is the most likely one after those
    before it, and its probability is that of all of them; predictions and logit differences are of the first.
    """

    _shown = ("accuracy", "hits", "predictions", "logit_differences", "log_probs", "scenarios")

    hits: Bool[Tensor, " prompt"]  # the most likely token of the whole vocabulary is a right answer
    predictions: Int[Tensor, " prompt"]
    logit_differences: Float[Tensor, " prompt"]  # the best right answer's logit minus that of the best other listed one
    log_probs: Float[Tensor, " prompt"]  # of all right answers together, over the whole vocabulary, in nats
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
        """Of all right answers together, over the whole vocabulary, 0 to 1."""
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

    def to_pandas(self) -> Any:
        """A row for each prompt, in order. Raises: InputError if there is no pandas."""
        rows = zip(*(getattr(self, each.name).tolist() for each in fields(self)), strict=True)
        return data_frame("hit prediction logit_difference log_prob scenario", rows)

    def scored(self, quantity: Quantity | Score) -> Shaped[np.ndarray, " prompt"]:
        """`per_prompt` for statistics, which know hits, and what interval they need, by their being booleans."""
        return (self.hits if quantity in ("hits", "accuracy") else self.per_prompt(quantity)).numpy()


def evaluate_model(model: Model, pairs: Pairs) -> Evaluation:
    """What the model answers to the clean prompts."""
    check_pairs(model, pairs, None)
    first = evaluation_of(capture(model, pairs.clean_prompts, readout=answers_readout(pairs, model.device)), pairs)
    return first if pairs.continuations is None else _continued(model, pairs, pairs.continuations, first)


def _continued(model: Model, pairs: Pairs, continuations: Int[Tensor, "prompt t"], first: Evaluation) -> Evaluation:
    """With the answers' further tokens: each read after the prompt and the right tokens before it."""
    hits, log_probs = first.hits.clone(), first.log_probs.clone()
    answers = torch.cat([pairs.answers[:, None], continuations], dim=1)
    for place in range(1, answers.shape[1]):
        rows = (answers[:, place] >= 0).nonzero()[:, 0]
        if len(rows):
            token = answers[rows, place, None].to(model.device)

            def readout(logits: Tensor, row: Tensor, token: Tensor = token) -> Tensor:
                own = log_prob(logits, token[row])
                return torch.stack([hit(logits, token[row]).to(own.dtype), own], dim=-1)

            values = capture(model, pairs.clean_prompts.select(rows), readout=readout, more=answers[rows, :place])
            hits[rows] &= values[:, 0].bool()
            log_probs[rows] += values[:, 1]
    return replace(first, hits=hits, log_probs=log_probs)


def answers_readout(pairs: Pairs, device: torch.device) -> Readout:
    """All that an `Evaluation` needs of each prompt's logits, in the order of its fields."""
    right, foils = pairs.right_answers.to(device), pairs.foils.to(device)

    def readout(logits: Float[Tensor, "row d_vocab"], prompt: Int[Tensor, " row"]) -> Float[Tensor, "row value"]:
        columns = [
            hit(logits, right[prompt]),
            logits.argmax(dim=-1),
            logit_difference(logits, right[prompt], foils[prompt]),
            log_prob(logits, right[prompt]),
        ]
        wide = torch.promote_types(logits.dtype, torch.float32)  # token ids below 2^24 are exact
        return torch.stack([column.to(wide) for column in columns], dim=-1)

    return readout


def evaluation_of(values: Float[Tensor, "prompt value"], pairs: Pairs) -> Evaluation:
    """What `answers_readout` gave, by name."""
    return Evaluation(values[:, 0].bool(), values[:, 1].long(), values[:, 2], values[:, 3], pairs.scenarios)
