"""Self-checks that stop a wrong number. A failed check is an error, never a warning."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine import IMPLEMENTATION, Batch, Edit, Model
from circuitdiff.engine.attention import AttentionCall, attend, handled_by
from circuitdiff.engine.edits import What
from circuitdiff.engine.full import FullExecutor
from circuitdiff.errors import InputError
from circuitdiff.models.structure import probe_tokens


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
    """Checks 1 and 2: our attention is the model's own, and edits do what they say."""
    tokens = probe_tokens(model.module)
    return [
        _same_as_own_attention(model, tokens),
        _heads_add_up(model, tokens),
        _do_nothing(model, tokens),
        *(_does_something(model, tokens, what) for what in ("z", "q", "k", "v")),
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


def _edit(model: Model, tokens: Int[Tensor, "prompt pos"], what: What, scale: float) -> Tensor:
    """Logits with head 0 of the middle layer scaled at the last position (which every window reaches)."""
    batch = Batch(model, tokens)
    layer, at = model.n_layers // 2, tokens.shape[1] - 1
    clean = batch.clean
    own = {
        "z": clean.z[layer][:, at, :1],
        "q": clean.q[layer][:, :1, at],
        "k": clean.k[layer][:, :1, at],
        "v": clean.v[layer][:, :1, at],
    }[what]
    none = torch.zeros(1, dtype=torch.long, device=tokens.device)
    edit = Edit(layer, what, at, none, none.cpu(), scale * own[None])
    return FullExecutor().run(batch, [edit], 1, lambda logits, _: logits)[0]


def _do_nothing(model: Model, tokens: Int[Tensor, "prompt pos"]) -> Check:
    clean = model.forward(tokens)
    worst = max(difference(_edit(model, tokens, what, 1.0), clean) for what in ("z", "q", "k", "v"))
    return at_most("an edit that changes nothing", model, worst, tolerance_of(model.dtype), "z, q, k, v")


def _does_something(model: Model, tokens: Int[Tensor, "prompt pos"], what: What) -> Check:
    value = difference(_edit(model, tokens, what, -1.0), model.forward(tokens))
    return Check(f"an edit of {what} changes the logits", model.name, value, 0.0, value > 0, "must be above 0")
