"""Records: tensors with JSON beside them, as bytes that carry their own SHA-256."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

_BLANK = "0" * 64  # where the SHA-256 stands while it is computed
_DIGEST = re.compile(rb'\{\\"sha256\\": \\"([0-9a-f]{64})\\"')


@dataclass(frozen=True)
class Record:
    """What a stage keeps: tensors, and JSON beside them."""

    tensors: Mapping[str, Tensor]
    data: Any


def packed(record: Record, title: str = "") -> bytes:
    """A safetensors file, with a title for people in its metadata.

    The SHA-256 there is that of the whole file with zeros in its place.
    """
    tensors = {name: tensor.contiguous().clone() for name, tensor in record.tensors.items()}  # no views can be saved
    content = save(tensors, metadata={"record": to_json({"sha256": _BLANK, "title": title, "data": record.data})})
    begin, end = _place_of_digest(content)
    return content[:begin] + _digest(content, begin, end) + content[end:]


def unpacked(content: bytes) -> Record:
    """Raises: ValueError unless the content is, byte for byte, what `packed` made."""
    begin, end = _place_of_digest(content)
    if content[begin:end] != _digest(content, begin, end):
        raise ValueError("its SHA-256 is another")
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return Record(load(content), json.loads(header["__metadata__"]["record"])["data"])


def to_json(data: Any, indent: int | None = None) -> str:
    """JSON in the order of `data`; nan becomes null."""
    return json.dumps(_without_nan(data), indent=indent, allow_nan=False)


def hashed(data: Any) -> str:
    """The same for equal data in any order of its keys, in every process."""
    return hashlib.sha256(json.dumps(_without_nan(data), sort_keys=True).encode()).hexdigest()


def _place_of_digest(content: bytes) -> tuple[int, int]:
    place = _DIGEST.search(content)  # metadata come first in the file
    if place is None:
        raise ValueError("it has no SHA-256: cut short, or of an earlier version")
    return place.span(1)


def _digest(content: bytes, begin: int, end: int) -> bytes:
    whole = hashlib.sha256(content[:begin])
    whole.update(_BLANK.encode())
    whole.update(memoryview(content)[end:])
    return whole.hexdigest().encode()


def _without_nan(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): _without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_without_nan(value) for value in data]
    return data
