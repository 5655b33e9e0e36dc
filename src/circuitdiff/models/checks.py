"""Self-checks that stop a wrong number. A failed check is an error, never a warning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from circuitdiff.engine import IMPLEMENTATION, Ablation, Batch, Edit, Executor, Model
from circuitdiff.engine.attention import expand_kv
from circuitdiff.engine.edits import Site, What
from circuitdiff.engine.full import FullExecutor
from circuitdiff.engine.window import WindowExecutor
from circuitdiff.errors import InputError
from circuitdiff.models.probe import has_experts, probe_tokens, probing, uncrossed

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
    above: bool = False


class CheckError(InputError):
    """A self-check failed: numbers from this model would be wrong."""


def at_most(name: str, model: Model, value: float, tolerance: float, detail: str) -> Check:
    return Check(name, model.name, value, tolerance, value <= tolerance, detail)


def tolerance_of(dtype: torch.dtype) -> float:
    """How far two correct computations of the same logits may lie apart, relative to the largest logit.

    In 16 bits eight steps of the numbers, at least 3 %: bfloat16 logits of two layers were seen to differ by four.
    """
    return {torch.float64: 1e-10, torch.float32: 1e-4}.get(dtype, max(3e-2, 8 * torch.finfo(dtype).eps))


def tolerance_for(module: PreTrainedModel) -> float:
    """`tolerance_of` a model's precision, but that of float32 at least where it has experts.

    transformers weighs experts in float32 whatever the model's dtype, and rounds there otherwise when other positions
    are computed beside one. That is seen in float64 only: 7e-8 of the largest logit.
    """
    tolerance = tolerance_of(module.dtype)
    return max(tolerance, tolerance_of(torch.float32)) if has_experts(module.config) else tolerance


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
    """Checks 1 and 2, and 3 in small: our attention is the model's own, and edits do what they say.

    Raises: InputError if the model cannot be run so.
    """
    with probing(model.name, "checking its edits on random tokens"):
        tokens = probe_tokens(model.module)
        batch = Batch(model, tokens)
        edits = [edit for variant, what in enumerate(WHATS) for edit in _scaled(batch, what, -1.0, variant)]
        edited = FullExecutor().run(batch, edits, len(WHATS), _all_logits)
        return [
            _same_as_own_attention(model, tokens),
            _heads_add_up(batch),
            _do_nothing(batch),
            *(_does_something(batch, what, logits) for what, logits in zip(WHATS, edited, strict=True)),
            _executors_agree(batch, edits, edited),
        ]


def _same_as_own_attention(model: Model, tokens: Int[Tensor, "prompt pos"]) -> Check:
    ours = model.forward(tokens)
    own = "sdpa" if model.module._supports_sdpa else "eager"
    try:
        model.module.set_attn_implementation(own)
        theirs = model.forward(tokens)
    finally:
        model.module.set_attn_implementation(IMPLEMENTATION)
    tolerance = tolerance_for(model.module)
    if own == "eager":
        tolerance = max(tolerance, 1e-5)  # transformers' eager softmax is float32 whatever the model's dtype
    return at_most(
        "same logits as own attention", model, difference(ours, theirs), tolerance, f"{own} on random tokens"
    )


def _heads_add_up(batch: Batch) -> Check:
    model, worst = batch.model, 0.0
    for projection, own in zip(model.projections, batch.clean.z, strict=True):
        nothing = projection(torch.zeros_like(own).flatten(2))
        one_head = torch.eye(model.n_heads, dtype=own.dtype, device=own.device)[:, None, None, :, None]
        parts = projection((own * one_head).flatten(3)) - nothing
        worst = max(worst, difference(parts.sum(0) + nothing, projection(own.flatten(2))))
    return at_most("heads add up at the output projection", model, worst, tolerance_of(model.dtype), "every layer")


def _places(batch: Batch) -> list[tuple[int, int]]:
    """Layers and positions that are edited: from the first layer's middle position to the last layer's last one.

    A window over them begins in the middle of the prompt and has every layer.
    """
    n_layers, middle, last = batch.model.n_layers, batch.length // 2, batch.length - 1
    return sorted({(0, middle), (n_layers // 2, (middle + last) // 2), (n_layers - 1, last)})


def _scaled(batch: Batch, what: What, scale: float, variant: int) -> list[Edit]:
    """Every head scaled, in one variant of a run, at each of the places."""
    return [_scaled_at(batch, what, layer, at, scale, variant) for layer, at in _places(batch)]


def _scaled_at(batch: Batch, what: What, layer: int, at: int, scale: float, variant: int) -> Edit:
    clean, n_heads = batch.clean, batch.model.n_heads
    own = {
        "z": clean.z[layer][:, at],
        "q": clean.q[layer][:, :, at],
        "k": expand_kv(clean.k[layer], n_heads)[:, :, at],
        "v": expand_kv(clean.v[layer], n_heads)[:, :, at],
    }[what]
    heads = torch.arange(n_heads, device=own.device)
    return Edit(layer, what, at, heads, torch.tensor([variant]), scale * own[None])


def _all_logits(logits: Float[Tensor, "row d_vocab"], _: Int[Tensor, " row"]) -> Float[Tensor, "row d_vocab"]:
    return logits


def _do_nothing(batch: Batch) -> Check:
    """z has a run of its own: put back, it would hide what became of q, k and v."""
    edits = [edit for what in WHATS for edit in _scaled(batch, what, 1.0, variant=0 if what == "z" else 1)]
    logits = FullExecutor().run(batch, edits, 2, _all_logits)
    worst = max(difference(each, batch.clean.logits) for each in logits)
    tolerance = tolerance_for(batch.model.module)
    return at_most("an edit that changes nothing", batch.model, worst, tolerance, "z, q, k, v")


def _does_something(batch: Batch, what: What, edited: Float[Tensor, "prompt d_vocab"]) -> Check:
    name, value = f"an edit of {what} changes the logits", difference(edited, batch.clean.logits)
    return Check(name, batch.model.name, value, 0.0, value > 0, "must be above 0", above=True)


def _executors_agree(batch: Batch, edits: list[Edit], edited: Float[Tensor, "variant prompt d_vocab"]) -> Check:
    """Check 3 in small, so that it holds without a study, too: every kind of run. `edited` is the full executor's."""
    window, full, model = WindowExecutor(), FullExecutor(), batch.model
    pairs = list(zip(window.run(batch, edits, len(WHATS), _all_logits), edited, strict=True))
    for run in (_frozen, _received, _ablated):
        pairs += zip(run(batch, window), run(batch, full), strict=True)
    worst = max(difference(a, b) for a, b in pairs)
    at, left_out = ", ".join(str(at) for _, at in _places(batch)), uncrossed(model.module.config)
    detail = f"z, q, k, v edited, frozen, ablated at {at} of {batch.length} random tokens{left_out}"
    return at_most("window executor vs full executor", model, worst, _tolerance_of_edits(batch), detail)


def _tolerance_of_edits(batch: Batch) -> float:
    """`tolerance_for` the model, or the rounding of its attention's scores if that is larger, up to 1e-3.

    What a score is off, its attention weight is off relatively. Biases of keys can make scores of thousands, to which
    softmax is blind but rounding is not: where they reached 1,500 (|q| |k| / sqrt(d_head): 4,500), the executors were
    1.3e-4 apart in float32, and 2e-15 in float64. Studies allow 1e-3 on their own prompts.
    """
    sizes = zip(batch.clean.q, batch.clean.k, strict=True)
    largest = max(float(q.norm(dim=-1).max() * k.norm(dim=-1).max()) / q.shape[-1] ** 0.5 for q, k in sizes)
    rounding = torch.finfo(batch.model.dtype).eps * largest
    return max(tolerance_for(batch.model.module), min(rounding, 1e-3))


def _frozen(batch: Batch, executor: Executor) -> list[Tensor]:
    """One layer's heads edited at the last position, all others frozen there."""
    at = batch.length - 1
    edit = _scaled_at(batch, "z", batch.model.n_layers // 2, at, -1.0, variant=0)
    return list(executor.frozen(batch, [edit], 1, at, _all_logits))


def _received(batch: Batch, executor: Executor) -> list[Tensor]:
    """What the last layer receives where the first layer's heads are edited in the middle, all others frozen."""
    if batch.model.n_layers == 1:
        return []
    layer, at = _places(batch)[0]
    edit = _scaled_at(batch, "z", layer, at, -1.0, variant=0)
    sites = [Site(batch.model.n_layers - 1, what, at, edit.heads) for what in WHATS if what != "z"]
    return [each.replacement for each in executor.received(batch, [edit], 1, at, sites)]


def _ablated(batch: Batch, executor: Executor) -> list[Tensor]:
    """Every second layer's heads kept at the edited positions, all others constant: at each position its mean."""
    positions = tuple(sorted({at for _, at in _places(batch)}))
    shape = (2, batch.model.n_layers, len(positions), batch.model.n_heads)
    kept = torch.zeros(shape, dtype=torch.bool, device=batch.clean.logits.device)
    kept[0, ::2], kept[1, ::2, -1] = True, True
    constants = torch.stack(batch.clean.z).mean(dim=1, keepdim=True)
    return list(executor.ablated(batch, Ablation(positions, kept, constants), _all_logits))
