"""Clauses that change what a listed item holds: put, remove, move; and what is where after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from circuitdiff.errors import InputError
from circuitdiff.tasks.template_file import Changes

_MOST_DRAWS = 2000


@dataclass(frozen=True)
class Change:
    """One change: thing number `thing` is put into, removed from, or moved from the item `at` (to the item `to`).

    Things are numbered as the items that hold them at first; those that are put in follow.
    """

    kind: str
    thing: int
    at: int
    to: int = -1


def draw_changes(random: Random, rule: Changes, n_items: int, asked: Sequence[int]) -> tuple[Change, ...]:
    """Changes, all that are possible at each step equally likely, after which each item asked for holds one thing.

    Raises: InputError if none of many draws ends so.
    """
    for _ in range(_MOST_DRAWS):
        changes: list[Change] = []
        for _ in range(rule.count):
            possible = _possible(rule, changes, n_items)
            if not possible:
                break
            kind = random.choice(sorted({change.kind for change in possible}))
            changes.append(random.choice([change for change in possible if change.kind == kind]))
        held = holds(changes, n_items)
        if len(changes) == rule.count and _can_ask(held, asked):
            return tuple(changes)
    raise InputError(
        f"no {rule.count} changes leave one thing in each item asked for: ask for fewer changes, or list more items"
    )


def _can_ask(held: Sequence[Sequence[int]], asked: Sequence[int]) -> bool:
    """Each item asked for holds one thing, and so does another, which a counterfactual may ask for."""
    alone = [item for item, things in enumerate(held) if len(things) == 1]
    return set(asked) <= set(alone) and len(alone) > 1


def holds(changes: Sequence[Change], n_items: int) -> list[list[int]]:
    """Which things each item holds after the changes."""
    held = [[item] for item in range(n_items)]
    for change in changes:
        if change.kind != "put":
            held[change.at].remove(change.thing)
        if change.kind != "remove":
            held[change.to if change.kind == "move" else change.at].append(change.thing)
    return held


def _possible(rule: Changes, changes: Sequence[Change], n_items: int) -> list[Change]:
    held, kinds = holds(changes, n_items), rule.texts
    new = n_items + sum(change.kind == "put" for change in changes)
    there = [(thing, at) for at, things in enumerate(held) for thing in things]
    put = [Change("put", new, at) for at in range(n_items)]
    remove = [Change("remove", thing, at) for thing, at in there]
    move = [Change("move", thing, at, to) for thing, at in there for to in range(n_items) if to != at]
    return [change for change in (*put, *remove, *move) if change.kind in kinds]
