"""Self-checks on a study's own prompts, as units of work: what was measured, and how much it may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine import IMPLEMENTATION, Model
from circuitdiff.evaluation import By, Evaluation, evaluate_circuits
from circuitdiff.methods.component_mask.patching import SharedRuns
from circuitdiff.methods.component_mask.training import target_logit
from circuitdiff.methods.discovery import Stage
from circuitdiff.methods.locate import residual_patching
from circuitdiff.methods.path_patching import path_effects
from circuitdiff.models.checks import difference, log_prob_tolerance, step_of_logits, tolerance_for, tolerance_of
from circuitdiff.stats.metrics import negligible
from circuitdiff.study.host import LoadedModel
from circuitdiff.study.prompts import PromptsOf, TriplesOf
from circuitdiff.study.records import Deviation
from circuitdiff.study.units import Needed

FEW = 2  # prompts that the full executor runs; a check, not a measurement
_NOISE = 20  # times: rounding is that much larger on some heads and prompts than on the few that measure it
BATCH = 6  # prompts, alone and together


def executors_on_path(
    subject: LoadedModel,
    *,
    prompts: PromptsOf,
    stage: Stage,
    receivers: tuple[Head, ...],
    strongest: tuple[Head, ...],
    largest: float,
    noise_floor: float,
    metric: str,
) -> Deviation:
    """Check 3: the window executor against the full one, on heads spread over the stage's depth.

    In units of the `largest` effect, but of no less than matters (`stats.metrics.negligible`) or rounding can make:
    several times as much where no effect is above what matters, for on some heads rounding is that much larger.
    """
    model, into = subject.model, list(receivers) or None
    last = max((head.layer for head in receivers), default=model.n_layers)
    layers = sorted({last // 2, last - 1})
    senders = [*(Head(layer, layer % model.n_heads) for layer in layers if layer >= 0), *strongest]
    arguments = (subject.pairs(prompts), stage.at, into, stage.via, stage.receivers_at, senders, metric)
    window, full = (path_effects(model, *arguments, executor=name) for name in ("window", "full"))
    measured = ~full.per_prompt.isnan()
    worst = float((window.per_prompt[measured] - full.per_prompt[measured]).abs().max())
    allowed = max(1e-3, tolerance_of(model.dtype))
    noise = max(noise_floor, step_of_logits(model.dtype))  # below which two executors need not agree
    matters = negligible(metric)
    unit = max(largest, matters, (_NOISE if largest <= max(2 * noise, matters) else 2) * noise / allowed)
    return Deviation(worst / max(unit, 1e-30), allowed)


def executors_on_circuits(
    subject: LoadedModel, *, prompts: PromptsOf, circuits: tuple[Circuit, ...], means: Needed, by: By
) -> Deviation:
    """Check 3 for circuits alone."""

    def run(executor: str) -> list[Evaluation]:
        held = subject.means(means, by)
        return evaluate_circuits(subject.model, circuits, subject.pairs(prompts), held, executor=executor)

    return executors_agree(subject.model, run)


@torch.no_grad()
def executors_on_masks(subject: LoadedModel, *, group: Group, triples: TriplesOf) -> Deviation:
    """Check 3 for masks: half of each head's own value and half of the source's; the logit of the target."""
    model, few = subject.model, subject.triples(triples).select(torch.arange(FEW))
    half = torch.full((len(group.heads),), 0.5, device=model.device)
    quantity = target_logit(few.targets.to(model.device))

    def run(executor: str) -> Tensor:
        patching = SharedRuns(model, {"of": group}, few.base, n_random=0, executor=executor).patching("of", few)
        buckets = patching.buckets(torch.arange(FEW), training=False)
        return torch.cat([patching.values(group.heads, half, bucket, quantity) for bucket in buckets])

    return Deviation(difference(run("window"), run("full")), log_prob_tolerance(model.dtype))


def executors_on_residuals(
    subject: LoadedModel, *, prompts: PromptsOf, roles: tuple[str, ...], layers: tuple[int, ...]
) -> Deviation:
    """Check 3 for residual streams: effects on the answer's log probability, relative to the largest, or to 1 nat."""
    model, pairs = subject.model, subject.pairs(prompts)
    window, full = (
        residual_patching(model, pairs, roles, layers=layers, metric="log_prob", executor=name).per_prompt
        for name in ("window", "full")
    )
    worst = float((window - full).abs().max() / full.abs().max().clamp(min=1.0))
    return Deviation(worst, log_prob_tolerance(model.dtype))


def executors_agree(model: Model, run: Callable[[str], Sequence[Evaluation]]) -> Deviation:
    """Check 3: the log probability of the answer by both executors, relative to the largest one, or to 1 nat."""
    window, full = (torch.stack([each.log_probs for each in run(name)]) for name in ("window", "full"))
    worst = float((window - full).abs().max() / full.abs().max().clamp(min=1.0))
    return Deviation(worst, log_prob_tolerance(model.dtype))


@torch.no_grad()
def batching(subject: LoadedModel, *, prompts: PromptsOf) -> dict[str, float]:
    """Check 4: one prompt alone, many together, and the model's own padded batch give the same logits.

    How far both are from the first, and what is `allowed`.
    """
    model, of = subject.model, subject.pairs(prompts).clean_prompts
    lengths = of.lengths.tolist()
    alone = torch.cat([model.forward(t[None, :n]) for t, n in zip(of.tokens, lengths, strict=True)])
    padded = _padded_by_the_model(model, of.tokens, lengths)
    rows = [i for i, n in enumerate(lengths) if n == lengths[0]]
    together = model.forward(of.tokens[rows, : lengths[0]])
    worst = {"together": difference(together, alone[rows]), "padded": difference(padded, alone)}
    return {**worst, "allowed": tolerance_for(model.module)}


def _padded_by_the_model(model: Model, tokens: Tensor, lengths: list[int]) -> Float[Tensor, "prompt d_vocab"]:
    """One right-padded batch through the model's own attention, three positions longer than the longest prompt."""
    width = max(lengths) + 3
    filled = torch.zeros(len(tokens), width, dtype=torch.long)
    seen = torch.zeros_like(filled)
    for i, length in enumerate(lengths):
        filled[i, :length], seen[i, :length] = tokens[i, :length], 1
    own = "sdpa" if model.module._supports_sdpa else "eager"
    try:
        model.module.set_attn_implementation(own)
        out = model.module(
            input_ids=filled.to(model.device), attention_mask=seen.to(model.device), use_cache=False
        ).logits
    finally:
        model.module.set_attn_implementation(IMPLEMENTATION)
    return out[torch.arange(len(tokens)), torch.tensor(lengths) - 1]
