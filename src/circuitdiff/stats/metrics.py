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
    answer: Int[Tensor, " batch"],
    alternatives: Int[Tensor, "batch k"],
) -> Float[Tensor, " batch"]:
    """How strongly each prompt prefers its answer to the best other listed one, in logits.

    Positive when the answer wins among the listed. Invariant to adding a constant to all logits.

    Source: Wang et al. 2022 (arXiv:2211.00593), section 2.1; there against a single alternative.
    """
    logits = _precise(logits)
    return _answer_logit(logits, answer) - logits.gather(1, alternatives).amax(1)


def log_prob(logits: Float[Tensor, "batch d_vocab"], answer: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Natural logarithm of the answer's probability over the whole vocabulary, in nats; at most 0."""
    logits = _precise(logits)
    return _answer_logit(logits, answer) - logits.logsumexp(1)


def hit(logits: Float[Tensor, "batch d_vocab"], answer: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """Is the answer the most likely token of the whole vocabulary? Of equal logits the lowest token wins."""
    return logits.argmax(1) == answer


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
    [Float[Tensor, "batch d_vocab"], Int[Tensor, " batch"], Int[Tensor, "batch k"]], Float[Tensor, " batch"]
]
Effect = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Metric:
    """A quantity of each prompt's logits (logits, answer, alternatives), and the effect of a patch on it.

    `effect(patched, clean)` takes any shapes that broadcast. `of_listed`: the quantity depends on the logits of the
    answer and its alternatives only.
    """

    name: str
    unit: str
    quantity: Quantity
    effect: Effect
    of_listed: bool = False


MetricName = Literal["logit_difference", "log_prob", "relative_probability"]


def metric_named(name: str) -> Metric:
    """Raises: InputError naming the metrics there are."""
    if name not in METRICS:
        raise InputError(f"expected a metric, one of {', '.join(METRICS)}; got {name!r}")
    return METRICS[name]


def _answer_logit(logits: Tensor, answer: Tensor) -> Tensor:
    return logits.gather(1, answer[:, None])[:, 0]


def _precise(logits: Tensor) -> Tensor:
    """At least float32: differences of half-precision logits lose the digits that effects live in."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _log_prob(logits: Tensor, answer: Tensor, alternatives: Tensor) -> Tensor:
    return log_prob(logits, answer)


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("logit_difference", "logits", logit_difference, difference, of_listed=True),
            Metric("log_prob", "nats", _log_prob, difference),
            Metric("relative_probability", "share of the clean probability", _log_prob, relative_change),
        )
    }
)
