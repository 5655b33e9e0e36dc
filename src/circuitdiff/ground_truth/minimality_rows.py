"""Claims about minimality: of a circuit with decoys in it, the decoys go and the planted heads stay."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from circuitdiff.circuit import Circuit, Group
from circuitdiff.evaluation import mean_activations
from circuitdiff.ground_truth.rows import Row, exactly
from circuitdiff.ground_truth.subjects import Subject
from circuitdiff.heads import Head
from circuitdiff.methods.minimality import HeadCost, MinimalityResult, MinimalityRule, minimality

N_DECOYS = 6  # put into the circuit, spread over its groups
# Probability of the answer; less is no need. The point of Prakash et al. 2024: decoys write a little everywhere.
RULE = MinimalityRule(threshold=0.01)


def minimality_rows(subject: Subject) -> list[Row]:
    """The planted circuit and some decoys, all else at its mean by kind: a mean by slot does what the readers do."""
    means = mean_activations(subject.model, subject.prompts["mask"], "kind")
    decoys = drawn_decoys(subject)
    found = minimality(subject.model, with_decoys(subject, decoys), subject.prompts["evaluation"], means, RULE)
    return judged(subject, decoys, found)


def drawn_decoys(subject: Subject, n_decoys: int = N_DECOYS) -> list[Head]:
    """Some decoys, no head twice, always the same for a model."""
    pool, g = sorted(subject.decoys), torch.Generator().manual_seed(0)
    return [pool[i] for i in torch.randperm(len(pool), generator=g)[:n_decoys].tolist()]


def with_decoys(subject: Subject, decoys: Sequence[Head]) -> Circuit:
    """The planted circuit, each group with its share of the decoys at its end."""
    groups = subject.truth.circuit.groups
    more = {name: tuple(decoys[i :: len(groups)]) for i, name in enumerate(groups)}
    return Circuit({name: Group(group.at, group.heads + more[name]) for name, group in groups.items()})


def judged(subject: Subject, decoys: Sequence[Head], found: MinimalityResult) -> list[Row]:
    """How many decoys stayed, and how many planted heads went."""
    name = subject.model.name
    costs = [(group, cost) for group, each in found.groups.items() for cost in each.costs]
    stayed = [_named(group, cost) for group, cost in costs if cost.head in decoys and cost.kept]
    went = [_named(group, cost) for group, cost in costs if cost.head not in decoys and not cost.kept]
    n_planted = len(costs) - len(decoys)
    return [
        exactly(name, "minimality: decoys that stay", len(stayed), 0, _listed(len(decoys), stayed)),
        exactly(name, "minimality: planted heads that go", len(went), 0, _listed(n_planted, went)),
    ]


def _listed(n_heads: int, heads: Sequence[str]) -> str:
    return "; ".join([f"of {n_heads}", *heads])


def _named(group: str, cost: HeadCost) -> str:
    low, high = (float(bound) for bound in (cost.cost.low, cost.cost.high))
    return f"{group} {cost.head} (cost {float(cost.cost.value):+.3f}, {low:+.3f} to {high:+.3f})"
