"""What a GGUF file says of itself, and how something in it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gguf import GGUFReader, dequantize
from transformers.integrations.gguf.reader import read_gguf_metadata

from circuitdiff.errors import InputError

_TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class GgufHeader:
    """The settings (metadata keys) and the names of the tensors of a GGUF file.

    `metadata` holds all settings by their full names: the vocabulary as its tokens, other arrays of strings as their
    lengths. `settings` holds those of the architecture, without its name in front.
    """

    path: Path
    architecture: str
    metadata: Mapping[str, Any]
    settings: Mapping[str, Any]
    tensors: frozenset[str]

    def values(self, tensor: str) -> list[float]:
        """The values of a small tensor."""
        stored = next(t for t in GGUFReader(self.path).tensors if t.name == tensor)
        return dequantize(stored.data, stored.tensor_type).flatten().tolist()

    def refuse(self, what: str) -> NoReturn:
        """Raises: InputError that says `what` the file holds."""
        raise InputError(
            f"{self.path} holds {what}, so its numbers could be silently wrong: give the original folder "
            f"(config.json, safetensors) instead"
        )

    def refuse_setting(self, name: str, why: str) -> NoReturn:
        """Raises: InputError that names the setting of the architecture, its value, and `why` it cannot be used."""
        self.refuse(f"{self.architecture}.{name} = {self.settings.get(name, 'nothing')!r}, {why}")


def read_header(path: Path) -> GgufHeader:
    """Raises: what transformers' reader raises where the file is damaged."""
    metadata, tensors = read_gguf_metadata(str(path), (_TOKENS,))
    architecture = metadata["general.architecture"]
    start = f"{architecture}."
    settings = {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)}
    return GgufHeader(path, architecture, metadata, settings, frozenset(tensors))
