"""Circuits and groups made from a circuit, from a group, or from nothing; random ones to hold them against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

import torch

from circuitdiff.circuit import Circuit, Group, Head


def all_heads(n_layers: int, n_heads: int, roles: Sequence[str]) -> Circuit:
    """Every head at each of the roles: a reference for a circuit at these roles, not a bound."""
    heads = tuple(Head(layer, i) for layer in range(n_layers) for i in range(n_heads))
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


def random_group(
    group: Group,
    n_layers: int,
    n_heads: int,
    generator: torch.Generator,
    *,
    same_layers: bool = True,
    besides: Collection[Head] = (),
) -> Group:
    """As many heads at the group's role, without repeats, and none of the group's own while there are enough others.

    Nor any of `besides`, while there are enough without them.

    With `same_layers`, as many in each layer as the group has there; else from all layers.
    """
    wanted = Counter(head.layer for head in group.heads) if same_layers else Counter({None: len(group.heads)})
    drawn: list[Head] = []
    for layer, n in sorted(wanted.items(), key=lambda item: -1 if item[0] is None else item[0]):
        layers = range(n_layers) if layer is None else [layer]
        pool = [Head(each, i) for each in layers for i in range(n_heads)]
        others = [head for head in pool if head not in group.heads]
        apart = [head for head in others if head not in besides]
        chosen = next((each for each in (apart, others) if len(each) >= n), pool)
        drawn += [chosen[i] for i in torch.randperm(len(chosen), generator=generator)[:n].tolist()]
    return Group(group.at, tuple(drawn))
