"""The self-checks that need the study's own prompts: executors, batching, tokenizers, noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Circuit, Head
from circuitdiff.engine import IMPLEMENTATION, Model
from circuitdiff.evaluation import Means, evaluate_circuits
from circuitdiff.methods.discovery import StageResult
from circuitdiff.methods.path_patching import path_effects
from circuitdiff.models.checks import (
    Check,
    at_most,
    difference,
    log_prob_tolerance,
    step_of_logits,
    tolerance_for,
    tolerance_of,
)
from circuitdiff.prompts import Pairs

_NOISE = 20  # times: rounding is that much larger on some heads and prompts than on the few that measure it
_FEW = 2  # prompts that the full executor runs; a check, not a measurement


def _first(pairs: Pairs, n: int) -> Pairs:
    return pairs.select(torch.arange(min(n, len(pairs))))


def check_stage(model: Model, result: StageResult, pairs: Pairs, metric: str) -> Check:
    """Check 3: the window executor against the full one, on heads spread over the stage's depth."""
    stage, receivers = result.stage, list(result.receivers) or None
    last = max((head.layer for head in result.receivers), default=model.n_layers)
    layers = sorted({last // 2, last - 1})
    senders = [Head(layer, layer % model.n_heads) for layer in layers if layer >= 0]
    senders += list(result.selection.helping[:1])
    few = _first(pairs, _FEW)
    args = (few, stage.at, receivers, stage.via, stage.receivers_at, senders, metric)
    window, full = (path_effects(model, *args, executor=name) for name in ("window", "full"))
    measured = ~full.per_prompt.isnan()
    worst = float((window.per_prompt[measured] - full.per_prompt[measured]).abs().max())
    largest, allowed = float(result.found.effects.nan_to_num().abs().max()), max(1e-3, tolerance_of(model.dtype))
    detail = f"stage {stage.name}, {len(senders)} heads x {len(few)} prompts, in units of the largest effect"
    noise = max(result.found.noise_floor, step_of_logits(model.dtype))  # below which two executors need not agree
    largest = max(largest, (_NOISE if largest <= 2 * noise else 2) * noise / allowed)
    value = worst / max(largest, 1e-30)
    return at_most("window executor vs full executor", model, value, allowed, detail)


def check_ablation(model: Model, circuits: Sequence[Circuit], pairs: Pairs, means: Means) -> Check:
    """Check 3 for circuits alone: log probability of the answer by both executors."""
    few = _first(pairs, _FEW)
    window, full = (evaluate_circuits(model, circuits, few, means, executor=name) for name in ("window", "full"))
    worst = max(
        float((a.log_probs - b.log_probs).abs().max()) / max(1.0, float(b.log_probs.abs().max()))
        for a, b in zip(window, full, strict=True)
    )
    detail = f"{len(circuits)} circuits alone x {len(few)} prompts, relative log probability"
    return at_most("window executor vs full executor", model, worst, log_prob_tolerance(model.dtype), detail)


@torch.no_grad()
def check_batching(model: Model, pairs: Pairs) -> list[Check]:
    """Check 4: one prompt alone, many together, and the model's own padded batch give the same logits."""
    prompts = _first(pairs, 6).clean_prompts
    alone = torch.cat([model.forward(t[None, :n]) for t, n in zip(prompts.tokens, prompts.lengths, strict=True)])
    padded = _padded_by_the_model(model, prompts.tokens, prompts.lengths.tolist())
    rows = [i for i, n in enumerate(prompts.lengths.tolist()) if n == int(prompts.lengths[0])]
    together = model.forward(prompts.tokens[rows, : int(prompts.lengths[0])])
    tolerance = tolerance_for(model.module)
    return [
        at_most("batch of one vs batch of many", model, difference(together, alone[rows]), tolerance, "logits"),
        at_most("our buckets vs the model's padded batch", model, difference(padded, alone), tolerance, "logits"),
    ]


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


def check_same_shape(base: Model, variant: Model, base_pairs: Pairs, variant_pairs: Pairs) -> Check:
    """Check 6: the variant's tokenizer and shapes are the base's."""
    differing = [
        f"{what} {theirs} instead of {ours}"
        for what, ours, theirs in (
            ("layers", base.n_layers, variant.n_layers),
            ("heads", base.n_heads, variant.n_heads),
            ("key/value heads", base.n_kv_heads, variant.n_kv_heads),
            ("head size", base.d_head, variant.d_head),
        )
        if ours != theirs
    ]
    ours, theirs = (
        [pairs.clean_prompts.rows(), pairs.counterfactual_prompts.rows()] for pairs in (base_pairs, variant_pairs)
    )
    if ours != theirs:
        differing.append("another tokenizer output")
    detail = "; ".join(differing) or "same tokens, same shapes"
    return at_most("base and variant have the same shape", variant, float(len(differing)), 0.0, detail)


def check_noise(model: Model, result: StageResult) -> Check:
    """Check 7: no chosen head's effect is below what a do-nothing edit does."""
    effects = result.found.effects
    chosen = [*result.selection.helping, *result.selection.hurting]
    smallest = min((float(effects[h.layer, h.index].abs()) for h in chosen), default=float("inf"))
    ratio = result.found.noise_floor / smallest if chosen else 0.0
    detail = f"stage {result.stage.name}: noise floor {result.found.noise_floor:.2g}, in units of the smallest choice"
    return at_most("chosen effects are above the noise floor", model, ratio, 1.0, detail)
