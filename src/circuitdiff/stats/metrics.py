"""What is measured on the logits of each prompt, and how an effect is made of two measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdiff.errors import InputError


def logit_difference(
    logits: Float[Tensor, "batch d_vocab"],
    right: Int[Tensor, "batch m"],
    foils: Int[Tensor, "batch k"],
) -> Float[Tensor, " batch"]:
    """How strongly each prompt prefers its best right answer to the best other listed one, in logits.

    Positive when a right answer wins among the listed. Invariant to adding a constant to all logits.

    Source: Wang et al. 2022 (arXiv:2211.00593), section 2.1; there one answer against a single alternative.
    """
    logits = _precise(logits)
    return logits.gather(1, right).amax(1) - logits.gather(1, foils).amax(1)


def log_prob(logits: Float[Tensor, "batch d_vocab"], tokens: Int[Tensor, "batch m"]) -> Float[Tensor, " batch"]:
    """Natural logarithm of the probability of all tokens together, over the whole vocabulary, in nats; at most 0.

    A token that stands several times in a row counts once.
    """
    logits = _precise(logits)
    again = (tokens[:, :, None] == tokens[:, None]).tril(-1).any(2)
    return logits.gather(1, tokens).masked_fill(again, -torch.inf).logsumexp(1) - logits.logsumexp(1)


def probability_difference(
    logits: Float[Tensor, "batch d_vocab"],
    right: Int[Tensor, "batch m"],
    foils: Int[Tensor, "batch k"],
) -> Float[Tensor, " batch"]:
    """The probability of all right answers together minus that of all other listed ones, from -1 to 1.

    Source: Hanna et al. 2023 (arXiv:2305.00586), section 2; there all years up to the first are the wrong ones.
    """
    return log_prob(logits, right).exp() - log_prob(logits, foils).exp()


def hit(logits: Float[Tensor, "batch d_vocab"], right: Int[Tensor, "batch m"]) -> Bool[Tensor, " batch"]:
    """Is a right answer the most likely token of the whole vocabulary? Of equal logits the lowest token wins."""
    return (logits.argmax(1)[:, None] == right).any(1)


def difference(patched: Float[Tensor, "*#any"], clean: Float[Tensor, "*#any"]) -> Float[Tensor, "*_"]:
    """patched - clean, in the metric's unit. Negative: what was patched helps the answer."""
    return patched - clean


def relative_change(
    patched_log_prob: Float[Tensor, "*#any"], clean_log_prob: Float[Tensor, "*#any"]
) -> Float[Tensor, "*_"]:
    """(p' - p) / p of the answer's probability, from its logarithms, so that a tiny p loses no digits.

    From -1 to infinity: a mean of it hangs on few prompts with small p. Negative: what was patched helps the answer.

    Source: Prakash et al. 2024 (arXiv:2402.14811), the path patching score.
    """
    return torch.expm1(patched_log_prob - clean_log_prob)


Quantity = Callable[
    [Float[Tensor, "batch d_vocab"], Int[Tensor, "batch m"], Int[Tensor, "batch k"]], Float[Tensor, " batch"]
]
Effect = Callable[[Tensor, Tensor], Tensor]
# What a user measures: from logits, at least float32, and the row of the pairs that each belongs to.
Measured = Callable[[Float[Tensor, "row d_vocab"], Int[Tensor, " row"]], Float[Tensor, " row"]]


@dataclass(frozen=True)
class Metric:
    """A quantity of each prompt's logits (logits, right answers, foils), and the effect of a patch on it.

    `effect(patched, clean)` takes any shapes that broadcast. `of_listed`: the quantity depends on the logits of the
    right answers and the foils only. `negligible`: an effect that is smaller matters to nothing; see `negligible`.
    """

    name: str
    unit: str
    quantity: Quantity
    effect: Effect
    negligible: float
    of_listed: bool = False


@dataclass(frozen=True)
class OwnMetric:
    """A user's quantity; the effect of a patch on it is the difference, in its unit."""

    of: Measured
    effect: Effect = difference

    @property
    def name(self) -> str:
        return getattr(self.of, "__name__", type(self.of).__name__)

    def __call__(self, logits: Float[Tensor, "row d_vocab"], prompt: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Raises: InputError naming the metric unless it gives a finite number for each row."""
        logits = _precise(logits)
        values = self.of(logits, prompt)
        if not isinstance(values, Tensor) or values.shape != prompt.shape or not values.isfinite().all():
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"metric {self.name}: expected a tensor [{len(prompt)}] of finite numbers, one for each row of logits; "
                f"got {got if got != list(prompt.shape) else 'nan or infinity'}: correct the function"
            )
        return values.to(logits.dtype)


MetricName = Literal["logit_difference", "log_prob", "relative_probability", "probability_difference"]


def metric_named(metric: str | Measured) -> Metric | OwnMetric:
    """By its name, or a function of one's own. Raises: InputError naming the metrics there are."""
    if callable(metric):
        return OwnMetric(metric)
    if metric not in METRICS:
        raise InputError(f"expected a metric, one of {', '.join(METRICS)}; got {metric!r}")
    return METRICS[metric]


def negligible(metric: str) -> float:
    """The size below which an effect matters to nothing, in the metric's unit; 0 for a metric of one's own.

    What changes the odds of the answer by less than 2 %. In logits and nats that is log(1.02) = 0.02, and of a relative
    change it is 0.02. At even odds, where a logit moves a probability p most (dp = p (1 - p) = 1 / 4 of it), 0.02
    logits are 0.005 of a probability: they decide one prompt in 200, which is fewer than the accuracies of a study can
    tell from none. There a difference of two probabilities moves twice as far: 0.01.
    """
    return METRICS[metric].negligible if metric in METRICS else 0.0


def _precise(logits: Tensor) -> Tensor:
    """At least float32: differences of half-precision logits lose the digits that effects live in."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _log_prob(logits: Tensor, right: Tensor, foils: Tensor) -> Tensor:
    return log_prob(logits, right)


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("logit_difference", "logits", logit_difference, difference, 0.02, of_listed=True),
            Metric("log_prob", "nats", _log_prob, difference, 0.02),
            Metric("relative_probability", "share of the clean probability", _log_prob, relative_change, 0.02),
            Metric("probability_difference", "probability", probability_difference, difference, 0.01),
        )
    }
)
