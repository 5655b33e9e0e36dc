"""Circuits made from a circuit, or from nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch

from circuitdiff.circuit import Circuit, Group, Head


@runtime_checkable
class WithHeads(Protocol):
    """A model, or what is known of one."""

    @property
    def n_layers(self) -> int: ...

    @property
    def n_heads(self) -> int: ...


def all_heads(model: WithHeads, roles: Sequence[str]) -> Circuit:
    """Every head at each of the roles: a reference for a circuit at these roles, not a bound."""
    heads = tuple(Head(layer, i) for layer in range(model.n_layers) for i in range(model.n_heads))
    return Circuit({role: Group(role, heads) for role in roles})


def minus(circuit: Circuit, removed: Circuit) -> Circuit:
    """The circuit without the heads of `removed`, each at its own role."""
    for role in removed.roles:
        circuit = circuit.without(removed.heads_at(role), role)
    return circuit


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
    """As many heads at each role, without repeats, from the layers between the circuit's first and last there.

    The circuit's own heads may be among them: where a role has few layers and many heads, most will be.
    """
    groups: dict[str, Group] = {}
    for role in circuit.roles:
        heads = circuit.heads_at(role)
        first, last = min(head.layer for head in heads), max(head.layer for head in heads)
        pool = [Head(layer, i) for layer in range(first, last + 1) for i in range(n_heads)]
        chosen = torch.randperm(len(pool), generator=generator)[: len(heads)]
        groups[role] = Group(role, tuple(pool[i] for i in chosen.tolist()))
    return Circuit(groups)
