"""What a process keeps between units, such as clean runs and constants: together no more than a given memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from circuitdiff.engine import Model

T = TypeVar("T")


class Kept:
    """Things by the model that they are of, their kind and a key, those used longest ago first.

    Some fill up while they are used: such a thing says how far (`may_take_gb`), and others make room for that before.
    What takes more than the whole memory by itself is kept alone. What is dropped is made again, with the same numbers.
    """

    def __init__(self, memory_gb: float) -> None:
        self._bytes = memory_gb * 2**30
        self._things: OrderedDict[tuple[str, str, Hashable], Any] = OrderedDict()

    def get(self, of: str, kind: str, key: Hashable, make: Callable[[], T], *, n_kept: int) -> T:
        """The thing, made unless it is there; at most `n_kept` of one kind of a model."""
        place = (of, kind, key)
        if place not in self._things:
            alike = [each for each in self._things if each[:2] == (of, kind)]
            for each in alike[: max(0, len(alike) - n_kept + 1)]:
                del self._things[each]
            self._things[place] = make()
        self._things.move_to_end(place)
        thing = self._things[place]
        to_come = getattr(thing, "may_take_gb", 0.0) * 2**30 - held_bytes([thing])
        self._make_room(self._bytes - max(0.0, to_come))
        return thing

    def trim(self) -> None:
        """Drops what was used longest ago, until all takes no more than the memory: things may have grown."""
        self._make_room(self._bytes)

    def forget(self, of: str) -> None:
        """Everything of a model."""
        for place in [place for place in self._things if place[0] == of]:
            del self._things[place]

    @property
    def bytes(self) -> int:
        return held_bytes(self._things.values())

    def _make_room(self, n_bytes: float) -> None:
        """Drops what was used longest ago, until all that is left takes no more; but not the last."""
        for place in list(self._things)[:-1]:
            if self.bytes <= n_bytes:
                return
            del self._things[place]


def held_bytes(things: Iterable[Any]) -> int:
    """Of all tensors in these objects, each memory once; models are not theirs."""
    left, seen, sizes = list(things), set[int](), dict[tuple[str, int], int]()
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, Model | str | bytes | int | float | type(None)):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            storage = thing.untyped_storage()
            sizes[str(thing.device), storage.data_ptr()] = storage.nbytes()
        elif isinstance(thing, Mapping):
            left += thing.values()
        elif isinstance(thing, list | tuple | set | frozenset):
            left += thing
        else:
            left += getattr(thing, "__dict__", {}).values()
    return sum(sizes.values())
