"""Learning one mask: which heads to patch so that the target becomes the answer, and no more than it takes.

1. Keep values start at 1. Each step patches (1 - keep) of the source into the group's heads on some training prompts.
2. The loss is the target's cross-entropy plus `penalty` for each head patched.
3. Now and then the mask, rounded, is tried on the validation prompts. The best one is the result; of equally good ones
   that with fewer heads; before the first step nothing is patched.

Source: Davies et al. 2023 (arXiv:2307.03637); Prakash et al. 2024 (arXiv:2402.14811), section 3.3. We differ in the
loss (theirs, -target logit, can fall without the answer changing; it is an option), in ties, and in keeping train,
validation and test apart by scenario.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from circuitdiff.circuit import Head
from circuitdiff.config.settings import Count
from circuitdiff.config.validation import check_fields
from circuitdiff.methods.component_mask.patching import Patching, Quantity
from circuitdiff.readable import Readable
from circuitdiff.stats.metrics import log_prob


def kept(mask: Float[Tensor, " head"]) -> Bool[Tensor, " head"]:
    """Which heads a fitted mask keeps: clamped to [0, 1], then rounded, 0.5 to 0.

    Source: Davies et al. 2023 (arXiv:2307.03637); Prakash et al. 2024 (arXiv:2402.14811).
    """
    return torch.round(mask.clamp(0, 1)) == 1


def selected(mask: Float[Tensor, " head"], heads: Sequence[Head]) -> list[Head]:
    """The heads that a fitted mask patches, hence the ones that carry the desideratum; in the order of `heads`."""
    return [head for head, keep in zip(heads, kept(mask).tolist(), strict=True) if not keep]


@dataclass(frozen=True)
class Gates:
    """How keep values are parametrised. All start at 1: nothing patched."""

    start: float  # of each parameter
    halfway: float  # how far a parameter must go before its head counts as patched
    pace: float  # how far a parameter goes where a clamped keep value goes from 1 to 0; scales the learning rate
    sample: Callable[[Float[Tensor, " head"], torch.Generator], Float[Tensor, " head"]]  # keep, while training
    keep: Callable[[Float[Tensor, " head"]], Float[Tensor, " head"]]  # without chance
    n_patched: Callable[[Float[Tensor, " head"]], Float[Tensor, ""]]  # what the penalty counts; differentiable
    project: Callable[[Tensor], object]  # in place, after each step
    n_steps: int  # that a training takes, at most
    patience: int  # checks in a row with the same rounded mask that end it


# Louizos et al. 2018 (arXiv:1712.01312), section 3: a concrete variable stretched to (-0.1, 1.1) and clamped, which
# is exactly 0 or 1 with some probability. Here it is 1 - keep.
_TEMPERATURE, _LOW, _HIGH = 2 / 3, -0.1, 1.1
_SHUT = math.log(11)  # sigmoid of minus this = 1/12, which is stretched to exactly 0: keep = 1


def _stretched(s: Tensor) -> Tensor:
    return (s * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def _hard_concrete(log_alpha: Tensor, generator: torch.Generator) -> Tensor:
    u = torch.rand(len(log_alpha), generator=generator, dtype=log_alpha.dtype).clamp(1e-6, 1 - 1e-6)
    noise = (u.log() - (1 - u).log()).to(log_alpha.device)
    return 1 - _stretched(torch.sigmoid((noise + log_alpha) / _TEMPERATURE))


def _expected_patched(log_alpha: Tensor) -> Tensor:
    """The expected number of gates that patch at all."""
    return torch.sigmoid(log_alpha - _TEMPERATURE * math.log(-_LOW / _HIGH)).sum()


GATES = {
    "clamped": Gates(
        start=1.0,
        halfway=0.5,
        pace=1.0,
        sample=lambda keep, _: keep,
        keep=lambda keep: keep,
        n_patched=lambda keep: (1 - keep).sum(),
        project=lambda keep: keep.clamp_(0, 1),
        n_steps=40,
        patience=3,
    ),
    "hard_concrete": Gates(
        start=-_SHUT,
        halfway=_SHUT,
        pace=2.0,
        sample=_hard_concrete,
        keep=lambda log_alpha: 1 - _stretched(torch.sigmoid(log_alpha)),
        n_patched=_expected_patched,
        project=lambda log_alpha: log_alpha.clamp_(-_SHUT, _SHUT),  # a gate shut further would hardly ever open
        n_steps=60,  # they move by chance, and shut ones often have no gradient
        patience=8,
    ),
}


@dataclass(frozen=True, repr=False)
class Training(Readable):
    """How a mask is learned."""

    loss: Literal["cross_entropy", "target_logit"] = "cross_entropy"
    gates: Literal["clamped", "hard_concrete"] = "clamped"
    steps: Count | None = None  # at most; None: as the gates need, 40 (clamped) or 60
    prompts_per_step: Count = 32
    positions_per_step: Count = 224  # a group far from the end takes fewer prompts a step, so that no step costs much
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    check_every: Count = 5  # steps
    patience: Count | None = None  # equal rounded masks at checks in a row that end it; None: 3 (clamped) or 8

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def most_steps(self) -> int:
        return self.steps or GATES[self.gates].n_steps

    @property
    def first_move(self) -> int:
        """The first step after which a head can be patched at all; sameness before it means nothing."""
        gates = GATES[self.gates]
        return int(round(gates.halfway / (self.learning_rate * gates.pace), 6)) + 1


class Check(NamedTuple):
    """How the rounded mask did on the validation prompts after some steps."""

    step: int
    n_patched: int
    accuracy: float


@dataclass(frozen=True, repr=False)
class Mask(Readable):
    """A learned mask."""

    heads: tuple[Head, ...]  # of the group
    keep: Float[Tensor, " head"]
    penalty: float
    seed: int
    checks: tuple[Check, ...]
    validation_accuracy: float

    @property
    def patched(self) -> tuple[Head, ...]:
        """The heads that carry what the desideratum asks for, in the group's order."""
        return tuple(selected(self.keep, self.heads))


class Part(NamedTuple):
    """Prompts, and the answers wanted of them once patched."""

    rows: Int[Tensor, " chosen"]
    targets: Int[Tensor, " chosen"]


def train_mask(
    patching: Patching,
    heads: tuple[Head, ...],
    train: Part,
    validation: Part,
    how: Training,
    penalty: float,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> Mask:
    """One mask; `progress` is told of each step."""
    gates, generator = GATES[how.gates], torch.Generator().manual_seed(seed)
    dtype = torch.promote_types(patching.model.dtype, torch.float32)
    parameter = torch.full((len(heads),), gates.start, dtype=dtype, device=patching.model.device, requires_grad=True)
    adam = torch.optim.Adam([parameter], lr=how.learning_rate * gates.pace)
    targets = torch.full((patching.n_prompts,), -1).index_put((train.rows,), train.targets).to(parameter.device)
    quantity = _LOSSES[how.loss](targets)
    patience = how.patience or gates.patience
    checks, keeps, patched = list[Check](), list[Tensor](), list[list[Head]]()

    def check(step: int) -> None:
        keeps.append(gates.keep(parameter.detach()).cpu().clone())
        patched.append(selected(keeps[-1], heads))
        hits = patching.answers(patched[-1], validation.rows) == validation.targets
        checks.append(Check(step, len(patched[-1]), float(hits.double().mean())))

    check(0)
    width = patching.widths[train.rows].double().mean().item()
    at_once = max(1, min(how.prompts_per_step, int(how.positions_per_step / width), len(train.rows)))
    batches = _batches(train.rows, at_once, generator)
    for step, rows in zip(range(1, how.most_steps + 1), batches, strict=False):
        parameter.grad = gradient(patching, heads, parameter, gates, penalty, rows, quantity, generator)
        adam.step()
        with torch.no_grad():
            gates.project(parameter)
        progress()
        if step % how.check_every == 0 or step == how.most_steps:
            check(step)
            if patched[-patience - 1 :] == [patched[-1]] * (patience + 1) and step >= how.first_move:
                break
    best = max(range(len(checks)), key=lambda i: (checks[i].accuracy, -checks[i].n_patched))
    return Mask(heads, keeps[best], penalty, seed, tuple(checks), checks[best].accuracy)


def gradient(
    patching: Patching,
    heads: tuple[Head, ...],
    parameter: Float[Tensor, " head"],
    gates: Gates,
    penalty: float,
    rows: Int[Tensor, " chosen"],
    quantity: Quantity,
    generator: torch.Generator,
) -> Float[Tensor, " head"]:
    """Of the mean loss on the chosen prompts plus the penalty. One bucket's graph is in memory at a time."""
    keep = gates.sample(parameter, generator)
    leaf = keep.detach().requires_grad_()
    slope = torch.zeros_like(leaf)
    for bucket in patching.buckets(rows, training=True):
        loss = patching.values(heads, leaf, bucket, quantity).sum() / len(rows)
        slope += torch.autograd.grad(loss, leaf)[0].to(slope.dtype)
    whole = (keep * slope).sum() + penalty * gates.n_patched(parameter)
    return torch.autograd.grad(whole, parameter)[0]


def _batches(rows: Int[Tensor, " prompt"], size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """All prompts in random order, again and again; what is left of a round and does not fill a step is not used."""
    while True:
        order = rows[torch.randperm(len(rows), generator=generator)]
        yield from order[: len(rows) // size * size].split(size)


def cross_entropy(targets: Int[Tensor, " prompt"]) -> Quantity:
    return lambda logits, row: -log_prob(logits, targets[row, None])


def target_logit(targets: Int[Tensor, " prompt"]) -> Quantity:
    return lambda logits, row: -logits.gather(1, targets[row][:, None])[:, 0]


_LOSSES = {"cross_entropy": cross_entropy, "target_logit": target_logit}
