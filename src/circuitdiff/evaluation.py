"""A circuit on its own: everything outside it held at its mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdiff.circuit import Circuit, Group
from circuitdiff.engine import Batch, Model, executor_named
from circuitdiff.engine.capture import read_model, sum_z_by_slot
from circuitdiff.engine.executor import Ablation, Readout
from circuitdiff.errors import InputError
from circuitdiff.heads import Head
from circuitdiff.metrics import hit, log_prob, logit_difference
from circuitdiff.prompts import Bucket, Pairs, buckets
from circuitdiff.statistics import Interval, accuracy_interval

By = Literal["slot", "kind"]
Progress = Callable[[int, int], None]  # done, of how many

_PROMPTS_AT_ONCE = 64


@dataclass(frozen=True)
class Means:
    """The mean z of every head at every slot of a template."""

    values: Float[Tensor, "slot layer head d_head"]
    by: By


@dataclass(frozen=True)
class Evaluation:
    """What a model or a circuit answers, prompt by prompt."""

    hits: Bool[Tensor, " prompt"]  # the most likely token of the whole vocabulary is the answer
    predictions: Int[Tensor, " prompt"]
    logit_differences: Float[Tensor, " prompt"]
    log_probs: Float[Tensor, " prompt"]
    scenarios: Int[Tensor, " prompt"]

    @property
    def accuracy(self) -> Interval:
        """Share of hits, with a bootstrap interval over scenarios."""
        return accuracy_interval(self.hits.numpy(), self.scenarios.numpy())


@dataclass(frozen=True)
class SlotSums:
    """Sums of every head's z over the tokens of each slot, from which means of either kind follow."""

    total: Float[Tensor, "slot layer head d_head"]
    count: Float[Tensor, " slot"]
    slot_kinds: Sequence[str]

    def means(self, by: By, dtype: torch.dtype) -> Means:
        """By "slot": label of segment 3. By "kind": labels of all segments pooled; nan where nothing was seen."""
        if by not in ("slot", "kind"):
            raise InputError(f"means go by 'slot' or by 'kind'; got {by!r}")
        total, count = self.total, self.count
        if by == "kind":
            member = _numbered(self.slot_kinds).to(total.device)
            total = torch.zeros_like(total).index_add_(0, member, total)[member]
            count = torch.zeros_like(count).index_add_(0, member, count)[member]
        return Means((total / count[:, None, None, None]).to(dtype), by)


def slot_sums(model: Model, pairs: Pairs) -> SlotSums:
    """Runs the counterfactual prompts, which have no valid query, and sums z by slot.

    Raises: InputError if a slot of the clean prompts never occurs in the counterfactual ones.
    """
    prompts = pairs.counterfactual_prompts
    total, count = sum_z_by_slot(model, prompts)
    needed = pairs.clean_prompts.slots[pairs.clean_prompts.slots >= 0].unique()
    missing = [prompts.slot_names[i] for i in needed.tolist() if count[i] == 0]
    if missing:
        raise InputError(f"no counterfactual prompt has slot {missing[0]!r}, so it has no mean; sample more prompts")
    return SlotSums(total, count, prompts.slot_kinds)


def mean_activations(model: Model, pairs: Pairs, by: By = "slot") -> Means:
    """The mean z of every head over the counterfactual prompts (which have no valid query), at each slot.

    By "slot": label of segment 3, as in the paper; the segment's address stays in. By "kind": labels of all segments
    pooled, which takes the address out.

    Raises: InputError if a slot of the clean prompts never occurs in the counterfactual ones.
    """
    return slot_sums(model, pairs).means(by, model.dtype)


def _numbered(names: Sequence[str]) -> Int[Tensor, " name"]:
    known = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([known[name] for name in names])


def evaluate_model(model: Model, pairs: Pairs) -> Evaluation:
    """What the model answers to the clean prompts."""
    return _evaluation(read_model(model, pairs.clean_prompts, _readout(pairs, model.device)), pairs)


def evaluate_circuit(
    model: Model, circuit: Circuit, pairs: Pairs, means: Means, executor: str = "window"
) -> Evaluation:
    """What the circuit alone answers: every head outside it, at every position, is held at its mean.

    Raises: InputError if the circuit names a head that the model lacks or a role that the task lacks.
    """
    return evaluate_circuits(model, [circuit], pairs, means, executor)[0]


@torch.no_grad()
def evaluate_circuits(
    model: Model,
    circuits: Sequence[Circuit],
    pairs: Pairs,
    means: Means,
    executor: str = "window",
    progress: Progress | None = None,
) -> list[Evaluation]:
    """`evaluate_circuit` for many circuits on the same prompts, which costs far less than one by one."""
    for circuit in circuits:
        circuit.check_fits(model.n_layers, model.n_heads, pairs.positions)
    roles = list(dict.fromkeys(role for circuit in circuits for role in circuit.roles))
    _check_places(pairs, roles)
    dtype = torch.promote_types(model.dtype, torch.float32)
    values = torch.empty(len(circuits), len(pairs), len(_COLUMNS), dtype=dtype)
    done = 0
    for bucket in buckets(pairs.clean_prompts, roles, _PROMPTS_AT_ONCE, same_slots=True):
        ablation = _ablation(model, circuits, pairs, bucket, means)
        batch = Batch(model, pairs.clean[bucket.prompts, : bucket.length].to(model.device))
        readout = _readout(pairs.select(bucket.prompts), model.device)
        values[:, bucket.prompts] = executor_named(executor).ablated(batch, ablation, readout).cpu()
        done += len(bucket.prompts)
        if progress:
            progress(done, len(pairs))
    return [_evaluation(value, pairs) for value in values]


def _check_places(pairs: Pairs, roles: Sequence[str]) -> None:
    for role in roles:
        if (pairs.positions[role] < 0).any():
            raise InputError(f"the circuit has heads at {role!r}, which has no place in some prompts")


def _ablation(model: Model, circuits: Sequence[Circuit], pairs: Pairs, bucket: Bucket, means: Means) -> Ablation:
    """The circuits as kept heads at the bucket's positions; the last position is always among them."""
    positions = sorted({*bucket.positions.values(), bucket.length - 1})
    kept = torch.zeros(len(circuits), model.n_layers, len(positions), model.n_heads, dtype=torch.bool)
    for i, circuit in enumerate(circuits):
        for group in circuit.groups.values():
            for head in group.heads:
                kept[i, head.layer, positions.index(bucket.positions[group.at]), head.index] = True
    slots = pairs.clean_prompts.slots[bucket.prompts[0], : bucket.length].to(means.values.device)
    constants = means.values[slots].transpose(0, 1)[:, None]
    return Ablation(tuple(positions), kept.to(model.device), constants)


_COLUMNS = ("hit", "prediction", "logit_difference", "log_prob")


def _readout(pairs: Pairs, device: torch.device) -> Readout:
    answers, alternatives = pairs.answers.to(device), pairs.alternatives.to(device)

    def readout(logits: Float[Tensor, "row d_vocab"], prompt: Int[Tensor, " row"]) -> Float[Tensor, "row value"]:
        answer = answers[prompt]
        columns = [
            hit(logits, answer),
            logits.argmax(dim=-1),
            logit_difference(logits, answer, alternatives[prompt]),
            log_prob(logits, answer),
        ]
        wide = torch.promote_types(logits.dtype, torch.float32)  # token ids below 2^24 are exact
        return torch.stack([column.to(wide) for column in columns], dim=-1)

    return readout


def _evaluation(values: Float[Tensor, "prompt value"], pairs: Pairs) -> Evaluation:
    return Evaluation(values[:, 0].bool(), values[:, 1].long(), values[:, 2], values[:, 3], pairs.scenarios)


def all_heads(model: Model, roles: Sequence[str]) -> Circuit:
    """Every head at each of the roles: a reference for a circuit at these roles, not a bound."""
    heads = tuple(Head(layer, i) for layer in range(model.n_layers) for i in range(model.n_heads))
    return Circuit({role: Group(role, heads) for role in roles})


def moved(circuit: Circuit, roles_of: Callable[[str], Sequence[str]]) -> Circuit:
    """The circuit with each group at all of `roles_of(its role)` instead of its role."""
    return Circuit(
        {
            f"{name}@{role}": Group(role, group.heads)
            for name, group in circuit.groups.items()
            for role in roles_of(group.at)
        }
    )


def random_circuit(circuit: Circuit, n_heads: int, generator: torch.Generator) -> Circuit:
    """As many heads at each role, without repeats, from the layers between the circuit's first and last there."""
    groups: dict[str, Group] = {}
    for role in circuit.roles:
        heads = circuit.heads_at(role)
        first, last = min(head.layer for head in heads), max(head.layer for head in heads)
        pool = [Head(layer, i) for layer in range(first, last + 1) for i in range(n_heads)]
        chosen = torch.randperm(len(pool), generator=generator)[: len(heads)]
        groups[role] = Group(role, tuple(pool[i] for i in chosen.tolist()))
    return Circuit(groups)
