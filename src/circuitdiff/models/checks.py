"""Self-checks that stop a wrong number. A failed check is an error, never a warning."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine import IMPLEMENTATION, Ablation, Batch, Edit, Executor, Model
from circuitdiff.engine.attention import AttentionCall, attend, expand_kv, handled_by
from circuitdiff.engine.edits import What
from circuitdiff.engine.full import FullExecutor
from circuitdiff.engine.window import WindowExecutor
from circuitdiff.errors import InputError
from circuitdiff.models.structure import probe_tokens

WHATS: tuple[What, ...] = ("z", "q", "k", "v")


@dataclass(frozen=True)
class Check:
    """One fact that was measured on a model: `value` must not exceed `tolerance` (or, `above`, must exceed it)."""

    name: str
    model: str
    value: float
    tolerance: float
    passed: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class CheckError(InputError):
    """A self-check failed: numbers from this model would be wrong."""


def at_most(name: str, model: Model, value: float, tolerance: float, detail: str) -> Check:
    return Check(name, model.name, value, tolerance, value <= tolerance, detail)


def tolerance_of(dtype: torch.dtype) -> float:
    """How far two correct computations of the same logits may lie apart, relative to the largest logit."""
    return {torch.float64: 1e-10, torch.float32: 1e-4}.get(dtype, 3e-2)


def log_prob_tolerance(dtype: torch.dtype) -> float:
    """How far two correct edited runs may lie apart in log probabilities, relative to the largest one, or to 1 nat.

    At least two steps of the largest logits.
    """
    return max(1e-3, tolerance_of(dtype), 2 * step_of_logits(dtype))


def step_of_logits(dtype: torch.dtype) -> float:
    """The distance of neighbouring numbers from 16 to 32, where the largest logits lie."""
    return 16 * torch.finfo(dtype).eps


def refuse_failures(checks: list[Check]) -> None:
    """Raises: CheckError naming every check that failed."""
    failed = [f"{c.name} ({c.detail}): {c.value:.3g}, allowed {c.tolerance:.3g}" for c in checks if not c.passed]
    if failed:
        raise CheckError(f"self-check failed for {checks[0].model}: {'; '.join(failed)}; no result would be right")


def difference(a: Float[Tensor, "*any"], b: Float[Tensor, "*any"]) -> float:
    """Largest difference relative to the largest value of `b`."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


@torch.no_grad()
def checks_at_load(model: Model) -> list[Check]:
    """Checks 1 and 2, and 3 in small: our attention is the model's own, and edits do what they say."""
    tokens = probe_tokens(model.module)
    batch = Batch(model, tokens)
    return [
        _same_as_own_attention(model, tokens),
        _heads_add_up(model, tokens),
        _do_nothing(batch),
        *(_does_something(batch, what) for what in WHATS),
        _executors_agree(batch),
    ]


def _same_as_own_attention(model: Model, tokens: Int[Tensor, "prompt pos"]) -> Check:
    ours = model.forward(tokens)
    own = "sdpa" if model.module._supports_sdpa else "eager"
    try:
        model.module.set_attn_implementation(own)
        theirs = model.forward(tokens)
    finally:
        model.module.set_attn_implementation(IMPLEMENTATION)
    tolerance = tolerance_of(model.dtype)
    if own == "eager":
        tolerance = max(tolerance, 1e-5)  # transformers' eager softmax is float32 whatever the model's dtype
    return at_most(
        "same logits as own attention", model, difference(ours, theirs), tolerance, f"{own} on random tokens"
    )


def _heads_add_up(model: Model, tokens: Int[Tensor, "prompt pos"]) -> Check:
    z: list[Tensor] = []

    def handler(call: AttentionCall) -> Tensor:
        z.append(attend(call))
        return z[-1]

    with handled_by(handler):
        model.forward(tokens)
    worst = 0.0
    for projection, own in zip(model.projections, z, strict=True):
        nothing = projection(torch.zeros_like(own).flatten(2))
        one_head = torch.eye(model.n_heads, dtype=own.dtype, device=own.device)[:, None, None, :, None]
        parts = projection((own * one_head).flatten(3)) - nothing
        worst = max(worst, difference(parts.sum(0) + nothing, projection(own.flatten(2))))
    return at_most("heads add up at the output projection", model, worst, tolerance_of(model.dtype), "every layer")


def _scaled(batch: Batch, what: What, scale: float) -> Edit:
    """Every head of the middle layer scaled at the last position, which every window reaches."""
    clean, n_heads = batch.clean, batch.model.n_heads
    layer, at = batch.model.n_layers // 2, batch.length - 1
    own = {
        "z": clean.z[layer][:, at],
        "q": clean.q[layer][:, :, at],
        "k": expand_kv(clean.k[layer], n_heads)[:, :, at],
        "v": expand_kv(clean.v[layer], n_heads)[:, :, at],
    }[what]
    heads = torch.arange(n_heads, device=own.device)
    return Edit(layer, what, at, heads, torch.zeros(1, dtype=torch.long), scale * own[None])


def _edited(batch: Batch, what: What, scale: float, executor: Executor) -> Float[Tensor, "prompt d_vocab"]:
    return executor.run(batch, [_scaled(batch, what, scale)], 1, _all_logits)[0]


def _all_logits(logits: Float[Tensor, "row d_vocab"], _: Int[Tensor, " row"]) -> Float[Tensor, "row d_vocab"]:
    return logits


def _do_nothing(batch: Batch) -> Check:
    worst = max(difference(_edited(batch, what, 1.0, FullExecutor()), batch.clean.logits) for what in WHATS)
    return at_most("an edit that changes nothing", batch.model, worst, tolerance_of(batch.model.dtype), "z, q, k, v")


def _does_something(batch: Batch, what: What) -> Check:
    value = difference(_edited(batch, what, -1.0, FullExecutor()), batch.clean.logits)
    return Check(f"an edit of {what} changes the logits", batch.model.name, value, 0.0, value > 0, "must be above 0")


def _executors_agree(batch: Batch) -> Check:
    """Check 3 in small, so that it holds without a study, too: every kind of run, on random tokens."""
    window, full, model = WindowExecutor(), FullExecutor(), batch.model
    at, edit = batch.length - 1, _scaled(batch, "z", -1.0)
    kept = torch.zeros(1, model.n_layers, 1, model.n_heads, dtype=torch.bool, device=batch.clean.logits.device)
    kept[:, ::2] = True
    constants = torch.stack(batch.clean.z).mean(dim=(1, 2), keepdim=True).expand(-1, 1, batch.length, -1, -1)
    ablation = Ablation((at,), kept, constants)
    pairs = [(_edited(batch, what, -1.0, window), _edited(batch, what, -1.0, full)) for what in WHATS]
    pairs += [tuple(e.frozen(batch, [edit], 1, at, _all_logits)[0] for e in (window, full))]
    pairs += [tuple(e.ablated(batch, ablation, _all_logits)[0] for e in (window, full))]
    worst = max(difference(a, b) for a, b in pairs)
    detail = "z, q, k, v edited, frozen, ablated; random tokens"
    return at_most("window executor vs full executor", model, worst, tolerance_of(model.dtype), detail)
