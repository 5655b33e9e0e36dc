"""Circuits on their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch

from circuitdiff.circuit import Circuit, Head
from circuitdiff.engine import Batch, Model, executor_named
from circuitdiff.engine.executor import Ablation, Progress
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB, check_pairs
from circuitdiff.errors import InputError
from circuitdiff.evaluation.answers import N_VALUES, Evaluation, answers_readout, evaluation_of
from circuitdiff.evaluation.constants import Replacement, Shared, check_replacement, prompts_at_once
from circuitdiff.prompts import Bucket, Pairs, buckets


def evaluate_circuit(
    model: Model, circuit: Circuit, pairs: Pairs, means: Replacement, executor: str = "window"
) -> Evaluation:
    """What the circuit alone answers: every head outside it, at every position, is held at its mean.

    Instead of means: "resample", each head's z in the counterfactual prompt, at the same slot; or "zero".

    Raises: InputError if the circuit names a head that the model lacks or a role that the task lacks, or a prompt has
    a slot of which there is no mean.
    """
    return evaluate_circuits(model, [circuit], pairs, means, executor)[0]


@torch.no_grad()
def evaluate_circuits(
    model: Model,
    circuits: Sequence[Circuit],
    pairs: Pairs,
    means: Replacement,
    executor: str = "window",
    progress: Progress | None = None,
    *,
    shared: Shared | None = None,
    memory_gb: float = DEFAULT_MEMORY_GB,
) -> list[Evaluation]:
    """`evaluate_circuit` for many circuits on the same prompts, which costs far less than one by one.

    What they have in common is computed once, and what several calls have in common, too, if they are given the same
    `shared`.

    Raises: InputError as `evaluate_circuit` does.
    """
    roles = checked_roles(model, circuits, pairs, means)
    known = shared or Shared()
    at_once = prompts_at_once(model, pairs, means, memory_gb)
    values = torch.empty(len(circuits), len(pairs), N_VALUES, dtype=torch.promote_types(model.dtype, torch.float32))
    done = 0
    for bucket in buckets(pairs.clean_prompts, roles, at_once, same_slots=True):
        tokens = known.constant_tokens(model, pairs, bucket, means, memory_gb)
        positions, kept = _kept(model, circuits, bucket)
        ablation = Ablation(positions, kept, tokens.constants, tokens if tokens.shared else None, memory_gb)
        batch = Batch(model, pairs.clean[bucket.prompts, : bucket.length].to(model.device))
        readout = answers_readout(pairs.select(bucket.prompts), model.device)
        values[:, bucket.prompts] = executor_named(executor).ablated(batch, ablation, readout).cpu()
        done += len(bucket.prompts)
        if progress:
            progress(done, len(pairs))
    return [evaluation_of(value, pairs) for value in values]


def checked_roles(model: Model, circuits: Sequence[Circuit], pairs: Pairs, means: Replacement) -> list[str]:
    """The roles at which some of the circuits have heads.

    Raises: InputError if the model or task lacks a head or role, or a prompt has a slot of which there is no mean.
    """
    check_pairs(model, pairs, "ablation")
    for circuit in circuits:
        circuit.check_fits(model.n_layers, model.n_heads, pairs.positions)
    roles = list(dict.fromkeys(role for circuit in circuits for role in circuit.roles))
    check_roles(pairs, roles)
    check_replacement(pairs, means)
    return roles


def check_circuit(model: Model, circuit: Circuit, pairs: Pairs, method: str) -> None:
    """Raises: InputError if a group is empty or holds a head twice, or the model or task lacks a head or role.

    Or if an answer has several tokens, which the method does not compare.
    """
    check_pairs(model, pairs, method)
    check_groups(circuit, model.n_layers, model.n_heads, pairs)


def check_groups(circuit: Circuit, n_layers: int, n_heads: int, pairs: Pairs) -> None:
    """As `check_circuit`, for a model of this size that need not be there."""
    circuit.check_fits(n_layers, n_heads, pairs.positions)
    if not circuit.groups:
        raise InputError("the circuit has no groups, so there is nothing to test; give one with heads")
    for name, group in circuit.groups.items():
        if not group.heads:
            raise InputError(f"group {name!r} has no heads, so there is nothing to test; leave the group out")
        if len(set(group.heads)) < len(group.heads):
            twice = next(head for head in group.heads if group.heads.count(head) > 1)
            raise InputError(f"group {name!r} names head {twice} twice; name it once")
    check_roles(pairs, circuit.roles)


def check_roles(pairs: Pairs, roles: Iterable[str], *, in_counterfactuals: bool = False) -> None:
    """Raises: InputError if a role does not exist, or a prompt (or counterfactual) has no place for it."""
    for role in roles:
        check_known_roles(pairs, [role])
        both = [pairs.positions, pairs.counterfactual_positions] if in_counterfactuals else [pairs.positions]
        if any((positions[role] < 0).any() for positions in both):
            raise InputError(f"role {role!r} has no place in some prompts; choose a role that every prompt has")


def check_known_roles(pairs: Pairs, roles: Iterable[str]) -> None:
    """Raises: InputError if a role does not exist."""
    for role in roles:
        if role not in pairs.positions:
            raise InputError(f"the task has no role {role!r}; it has {', '.join(sorted(pairs.positions))}")


def check_heads(model: Model, heads: Iterable[Head]) -> None:
    """Raises: InputError naming the first that is no head, or that the model lacks."""
    for head in heads:
        if not isinstance(head, Head):
            raise InputError(f"heads are given as Head(layer, index); got {head!r}")
        if not (0 <= head.layer < model.n_layers and 0 <= head.index < model.n_heads):
            raise InputError(
                f"head {head} does not exist: {model.name} has {model.n_layers} layers of {model.n_heads} heads"
            )


def check_layers(model: Model, layers: Collection[int]) -> None:
    """Raises: InputError if there are none, or if the model lacks one."""
    if not layers or min(layers) < 0 or max(layers) >= model.n_layers:
        raise InputError(f"layers are from 0 to {model.n_layers - 1} in {model.name}; got {list(layers)}")


def _kept(model: Model, circuits: Sequence[Circuit], bucket: Bucket) -> tuple[tuple[int, ...], torch.Tensor]:
    """The positions at which circuits keep heads, the last always among them; and the heads, as in `Ablation`."""
    positions = sorted({*bucket.positions.values(), bucket.length - 1})
    kept = torch.zeros(len(circuits), model.n_layers, len(positions), model.n_heads, dtype=torch.bool)
    for i, circuit in enumerate(circuits):
        for group in circuit.groups.values():
            if group.heads:
                layers, heads = zip(*((head.layer, head.index) for head in group.heads), strict=True)
                kept[i, layers, positions.index(bucket.positions[group.at]), heads] = True
    return tuple(positions), kept.to(model.device)
