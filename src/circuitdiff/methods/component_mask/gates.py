"""From a free parameter per head to its keep value in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.errors import InputError

PerHead = Float[Tensor, " head"]


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


def gates_named(name: str) -> Gates:
    """Raises: InputError naming the gates there are."""
    if name not in _GATES:
        raise InputError(f"expected gates, one of {', '.join(_GATES)}; got {name!r}")
    return _GATES[name]


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


_GATES = {
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
