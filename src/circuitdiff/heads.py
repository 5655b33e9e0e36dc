"""The name of an attention head."""

from __future__ import annotations

from dataclasses import dataclass

from circuitdiff.errors import InputError


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
