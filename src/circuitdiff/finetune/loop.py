"""Fine-tuning on prompts and answers: the whole model, or low-rank adapters (LoRA).

The loop is our own and not transformers' Trainer: the loss sits at the answer only, a killed run must continue
bit for bit, and accuracy is measured on the weights as they will be stored. That is less code than the Trainer's
settings for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from circuitdiff.config.settings import Count, CountOrZero, Seed
from circuitdiff.errors import InputError
from circuitdiff.finetune.examples import Examples
from circuitdiff.finetune.saving import CurvePoint, load_state, save_state

_EVALUATION_BATCH = 16
_LARGEST_GRADIENT = 1.0  # gradients longer than this are shortened to it, as transformers' Trainer does


@dataclass(frozen=True)
class Training:
    """Settings of one run. The learning rate rises linearly over `warmup` steps, then falls linearly to zero."""

    steps: Count
    batch: Count
    learning_rate: Annotated[float, Field(gt=0)]
    warmup: CountOrZero = 0
    seed: Seed = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    evaluate_every: Count | None = None  # None: only at the end
    target_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None  # stop once held-out accuracy reaches it
    checkpoint_every: Count | None = 10
    stored_as: Literal["float16", "bfloat16"] = "float16"


@dataclass(frozen=True)
class Outcome:
    """How a run went. `accuracy` is that of the weights after rounding to the dtype they are stored in."""

    curve: tuple[CurvePoint, ...]
    losses: tuple[float, ...]  # of each step that was done
    accuracy: float


def answer_logits(model: nn.Module, examples: Examples) -> Float[Tensor, "token d_vocab"]:
    """The logits before each answer token, prompt by prompt. Padding on the right is never seen by a causal decoder."""
    device = next(model.parameters()).device
    row, position = (index.to(device) for index in examples.answer_places)
    kept, place = position.unique(return_inverse=True)
    logits = model(input_ids=examples.tokens.to(device), use_cache=False, logits_to_keep=kept).logits
    return logits[row, place]


@torch.no_grad()
def hits(model: nn.Module, examples: Examples) -> Int[Tensor, " prompt"]:
    """1 where each token of the answer is the most probable of all tokens after the right ones before it, else 0."""
    n_wrong = torch.zeros(len(examples), dtype=torch.long)
    for prompts in torch.arange(len(examples)).split(_EVALUATION_BATCH):
        batch = examples.select(prompts)
        wrong = answer_logits(model, batch).argmax(-1).cpu() != batch.answer_tokens
        n_wrong.index_add_(0, prompts[batch.answer_places[0]], wrong.long())
    return (n_wrong == 0).long()


def accuracy(model: nn.Module, examples: Examples) -> float:
    """Share of prompts that `hits` counts."""
    return float(hits(model, examples).double().mean())


def finetune(
    model: nn.Module,
    examples: Examples,
    held_out: Examples,
    training: Training,
    *,
    identity: str = "",
    state: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Trains the parameters of `model` that take gradients, with AdamW, on the loss at the answer only.

    There is no dropout (the model stays in eval mode), and the order of examples depends on seed and step alone: the
    same settings give the same weights, whether or not the run was killed and continued from the file `state`, which
    must be of the same settings and `identity` (what else the run depends on). `progress` is told the number of each
    step that is done. At the end the trained parameters are rounded to the dtype they will be stored in.

    Raises: InputError if `state` is of another run, the loss is not finite, or the disk is full.
    """
    _check_training(examples, held_out, training)
    model.eval()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=training.learning_rate, weight_decay=training.weight_decay)
    settings = f"{training} {identity} {_digest(examples)}"
    losses, curve = load_state(state, trained, optimizer, settings)
    end = training.steps
    for step in range(len(losses) + 1, end + 1):
        if curve and training.target_accuracy is not None and curve[-1].accuracy >= training.target_accuracy:
            break
        batch = examples.select(batch_at(step, len(examples), training))
        losses.append(_step(model, optimizer, batch, learning_rate_at(step, training)))
        if step == end or _due(step, end, training.evaluate_every):
            curve.append(CurvePoint(step, accuracy(model, held_out)))
        if state is not None and _due(step, end, training.checkpoint_every):
            save_state(state, trained, optimizer, settings, losses, curve)
        progress(step)
    round_parameters(trained.values(), training.stored_as)
    return Outcome(tuple(curve), tuple(losses), accuracy(model, held_out))


def _due(step: int, end: int, every: int | None) -> bool:
    """Whether something done every so many steps, and then at the end, is due; never if `every` is None."""
    return every is not None and (step % every == 0 or step == end)


def _digest(examples: Examples) -> str:
    """Differs where the examples do."""
    parts = (examples.tokens, examples.lengths, examples.answers)
    return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()


def _check_training(examples: Examples, held_out: Examples, training: Training) -> None:
    if not (len(examples) and len(held_out)):
        raise InputError(f"expected training and held-out examples; got {len(examples)} and {len(held_out)}")
    if training.warmup >= training.steps:
        raise InputError(f"warmup must be from 0 to steps - 1; got {training.warmup} of {training.steps} steps")
    if training.batch > len(examples):
        raise InputError(f"batch must be from 1 to the {len(examples)} examples; got {training.batch}")


def learning_rate_at(step: int, training: Training) -> float:
    """The learning rate of step number `step`, from one: at its peak in step `warmup + 1`, 0 after the last step."""
    rising = step / (training.warmup + 1)
    falling = (training.steps + 1 - step) / (training.steps - training.warmup)
    return training.learning_rate * min(rising, falling)


def batch_at(step: int, n_examples: int, training: Training) -> Int[Tensor, " batch"]:
    """Which examples step number `step`, from one, sees: each example once per epoch, reshuffled every epoch.

    What is left at the end of an epoch and does not fill a batch is not used in that epoch.
    """
    per_epoch = n_examples // training.batch
    epoch, place = divmod(step - 1, per_epoch)
    g = torch.Generator().manual_seed(training.seed * 1_000_003 + epoch)
    return torch.randperm(n_examples, generator=g).split(training.batch)[place]


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Examples, rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    logits = answer_logits(model, batch)
    loss = nn.functional.cross_entropy(logits.float(), batch.answer_tokens.to(logits.device))
    if not loss.isfinite():
        raise InputError(f"the loss is {loss.item()}: choose a smaller learning rate, or float32 weights")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], _LARGEST_GRADIENT)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def round_parameters(parameters: Iterable[nn.Parameter], stored_as: str) -> None:
    """Gives each parameter the value it will have after being stored in 16 bits, in place."""
    dtype = getattr(torch, stored_as)
    for parameter in parameters:
        parameter.copy_(parameter.to(dtype))
