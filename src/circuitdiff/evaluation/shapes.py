"""Circuits and groups made from a circuit, from a group, or from nothing; random ones to hold them against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import torch

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.errors import InputError

T = TypeVar("T")


def named_parts(given: Group | Circuit | Mapping[str, T], *, per_head: bool) -> dict[str, Group | T]:
    """Parts by name: a lone group is called "group", or with `per_head` its heads are the parts.

    Raises: InputError if there are several groups to take apart.
    """
    if per_head:
        if not isinstance(given, Group):
            raise InputError("per_head takes a single group apart; give a Group, not several")
        return {str(head): Group(given.at, (head,)) for head in given.heads}
    if isinstance(given, Group):
        return {"group": given}
    return dict(given.groups if isinstance(given, Circuit) else given)


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


def roles_rotated(circuit: Circuit) -> Circuit:
    """The same heads at each other's roles: those of a role at the next one, and those of the last at the first.

    Without groups that have no heads.
    """
    roles = circuit.roles
    following = dict(zip(roles, [*roles[1:], *roles[:1]], strict=True))
    return moved(circuit, lambda role: [following[role]] if role in following else [])


def by_layer(heads: Iterable[Head]) -> dict[int, tuple[int, ...]]:
    """The heads of each layer, each once; all from below."""
    found: dict[int, list[int]] = {}
    for head in sorted(set(heads)):
        found.setdefault(head.layer, []).append(head.index)
    return {layer: tuple(indices) for layer, indices in found.items()}


def has_others(heads: Collection[Head], n_layers: int, n_heads: int) -> bool:
    """Whether the model has as many other heads as these, so that random ones can be drawn in their stead."""
    return 2 * len(set(heads)) <= n_layers * n_heads


def random_circuit(circuit: Circuit, n_layers: int, n_heads: int, generator: torch.Generator) -> Circuit:
    """As many other heads at each role, without repeats, from the layers between the circuit's first and last there.

    None of the circuit's own heads at that role. Where these layers have too few others, the layers next to them are
    drawn from, too.

    Raises: InputError if the circuit has more than half of all heads at a role.
    """
    groups: dict[str, Group] = {}
    for role in circuit.roles:
        heads = circuit.heads_at(role)
        layers = range(min(head.layer for head in heads), max(head.layer for head in heads) + 1)
        others = _others(heads, n_layers, n_heads)
        groups[role] = Group(role, _drawn(others, layers, len(heads), generator))
    return Circuit(groups)


def random_group(
    group: Group, n_layers: int, n_heads: int, generator: torch.Generator, *, besides: Collection[Head] = ()
) -> Group:
    """As many other heads at the group's role in each of its layers, without repeats, and none of the group's own.

    None of `besides` either, while a layer has enough without them. Where a layer has too few others, the layers next
    to it are drawn from, too.

    Raises: InputError if the group has more than half of all heads.
    """
    others, drawn = _others(group.heads, n_layers, n_heads), list[Head]()
    for layer, n in sorted(Counter(head.layer for head in group.heads).items()):
        apart = {head for head in others if head.layer == layer} - set(besides)
        chosen = _drawn(apart if len(apart) >= n else others, range(layer, layer + 1), n, generator)
        others -= set(chosen)
        drawn += chosen
    return Group(group.at, tuple(drawn))


def _others(heads: Collection[Head], n_layers: int, n_heads: int) -> set[Head]:
    """All heads of the model but these; as many at least."""
    if not has_others(heads, n_layers, n_heads):
        raise InputError(
            f"of the model's {n_layers * n_heads} heads {len(set(heads))} are to be replaced by as many others, and "
            f"so many there are not; take a smaller circuit or no random ones"
        )
    return {Head(layer, i) for layer in range(n_layers) for i in range(n_heads)} - set(heads)


def _drawn(pool: Collection[Head], layers: range, n: int, generator: torch.Generator) -> tuple[Head, ...]:
    """So many of a pool that has enough: of these layers, or of as many around them as it takes."""
    reach = 0
    while len(near := [head for head in sorted(pool) if -reach <= head.layer - layers.start < len(layers) + reach]) < n:
        reach += 1
    return tuple(near[i] for i in torch.randperm(len(near), generator=generator)[:n].tolist())
