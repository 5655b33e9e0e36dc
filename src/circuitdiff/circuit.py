"""Heads, circuits (named groups of heads, each at one role), and what two circuits have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from circuitdiff.config.reading import read_json
from circuitdiff.errors import InputError, choices
from circuitdiff.readable import Readable


@dataclass(frozen=True, order=True)
class Head:
    """One attention head, written `9.6` for layer 9, head 6 (both from zero)."""

    layer: int
    index: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.index}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """The head written as `9.6`.

        Raises: InputError if `text` is anything else.
        """
        layer, dot, index = text.partition(".")
        if not (dot and layer.isdecimal() and index.isdecimal()):
            raise InputError(f"a head is written layer.index, like 9.6; got {text!r}")
        return cls(int(layer), int(index))


@dataclass(frozen=True, repr=False)
class Group(Readable):
    """Heads that act together at one role, strongest first."""

    at: str
    heads: tuple[Head, ...]


@dataclass(frozen=True, repr=False)
class Mlps(Readable):
    """The MLPs of some layers at one role: a part that can be patched beside groups of heads."""

    at: str
    layers: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class Circuit(Readable):
    """Groups by name. A head may serve two groups only at different roles."""

    groups: Mapping[str, Group]

    def __len__(self) -> int:
        return sum(len(group.heads) for group in self.groups.values())

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles at which the circuit has heads, each once, in the groups' order."""
        return tuple(dict.fromkeys(group.at for group in self.groups.values() if group.heads))

    def heads_at(self, role: str) -> frozenset[Head]:
        """All heads that the circuit keeps at `role`."""
        return frozenset(h for group in self.groups.values() if group.at == role for h in group.heads)

    def without(self, heads: Iterable[Head], role: str) -> Circuit:
        """The circuit with `heads` taken out of every group at `role`."""
        gone, groups = frozenset(heads), dict(self.groups)
        for name, group in groups.items():
            if group.at == role:
                groups[name] = Group(role, tuple(head for head in group.heads if head not in gone))
        return Circuit(groups)

    def check_fits(self, n_layers: int, n_heads: int, roles: Iterable[str]) -> None:
        """Raises: InputError naming the first head or role that a model or task lacks."""
        known = set(roles)
        for name, group in self.groups.items():
            if group.at not in known:
                raise InputError(
                    f"group {name!r} sits at role {group.at!r}, which the task lacks{choices(group.at, sorted(known))}"
                )
            for head in group.heads:
                if not (0 <= head.layer < n_layers and 0 <= head.index < n_heads):
                    raise InputError(
                        f"group {name!r} names head {head}, but the model has {n_layers} layers "
                        f"of {n_heads} heads; was the circuit found in another model?"
                    )

    def to_dict(self) -> dict:
        groups = self.groups.items()
        return {"groups": {name: {"at": g.at, "heads": [[h.layer, h.index] for h in g.heads]} for name, g in groups}}

    @classmethod
    def from_dict(cls, data: object, source: str = "circuit") -> Circuit:
        """The circuit in its JSON form, `{"groups": {name: {"at": role, "heads": [[layer, head], ...]}}}`.

        Raises: InputError if `data` has another form; `source` says where it came from.
        """
        try:
            groups = {
                str(name): Group(str(group["at"]), tuple(Head(_whole(layer), _whole(i)) for layer, i in group["heads"]))
                for name, group in data["groups"].items()  # pyright: ignore[reportIndexIssue]
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f'{source} is not a circuit: expected {{"groups": {{name: {{"at": role, '
                f'"heads": [[layer, head], ...]}}}}}} ({type(error).__name__}: {error})'
            ) from error
        return cls(groups)

    def to_json(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> Circuit:
        """Raises: InputError if the file is missing, not JSON, or not a circuit."""
        return cls.from_dict(read_json(path), source=str(path))


def _whole(number: object) -> int:
    """A head that is written 3.7, "1" or true is a mistake, not head 3 or 1."""
    if type(number) is not int:
        raise TypeError(f"a head is two whole numbers; got {number!r}")
    return number


class Overlap(NamedTuple):
    """Sizes of two sets of heads and of what they share. The shares are nan where they would divide by 0."""

    first: int
    second: int
    common: int

    @property
    def precision(self) -> float:
        """The share of the first that the second has, too."""
        return self.common / self.first if self.first else math.nan

    @property
    def recall(self) -> float:
        """The share of the second that the first has, too."""
        return self.common / self.second if self.second else math.nan

    @property
    def jaccard(self) -> float:
        """Shared heads among all: 0 = none in common, 1 = the same set."""
        either = self.first + self.second - self.common
        return self.common / either if either else math.nan


def overlap(first: Iterable[Hashable], second: Iterable[Hashable]) -> Overlap:
    """How many heads two groups have in common."""
    one, other = frozenset(first), frozenset(second)
    return Overlap(len(one), len(other), len(one & other))


def joined(first: Circuit, second: Circuit) -> Circuit:
    """Group by group, the heads of both."""
    groups = dict(first.groups)
    for name, group in second.groups.items():
        own = groups.get(name, Group(group.at, ()))
        groups[name] = Group(own.at, tuple(dict.fromkeys([*own.heads, *group.heads])))
    return Circuit(groups)


def beyond(second: Circuit, first: Circuit) -> Circuit:
    """Group by group, the heads of the second that the first lacks at their role; without empty groups."""
    left = {
        name: Group(group.at, tuple(head for head in group.heads if head not in first.heads_at(group.at)))
        for name, group in second.groups.items()
    }
    return Circuit({name: group for name, group in left.items() if group.heads})


def circuit_overlap(first: Circuit, second: Circuit) -> dict[str, Overlap]:
    """The overlap of each group, by name. A group that one circuit lacks is empty there."""
    groups, others, nothing = first.groups, second.groups, Group("", ())
    names = dict.fromkeys([*groups, *others])
    return {name: overlap(groups.get(name, nothing).heads, others.get(name, nothing).heads) for name in names}


def total_overlap(first: Circuit, second: Circuit) -> Overlap:
    """The overlap of the whole circuits: heads with the role that they act at, whatever their groups are called."""
    places = ([(g.at, head) for g in each.groups.values() for head in g.heads] for each in (first, second))
    return overlap(*places)
