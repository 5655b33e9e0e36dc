"""Whether activations or weights of one model mean anything in another."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from circuitdiff.engine import Model
from circuitdiff.errors import InputError


@dataclass(frozen=True)
class Shape:
    """What two models must have in common before one's heads can stand in for the other's."""

    model: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    architecture: str
    vocabulary: str  # hash of every token and its id

    @classmethod
    def of(cls, model: Model) -> Shape:
        tokens = sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return cls(
            model=model.name,
            n_layers=model.n_layers,
            n_heads=model.n_heads,
            n_kv_heads=model.n_kv_heads,
            d_head=model.d_head,
            d_model=model.module.config.get_text_config().hidden_size,
            architecture=type(model.module).__name__,
            vocabulary=hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16],
        )


_NAMES = {
    "architecture": "architecture",
    "n_layers": "layers",
    "n_heads": "heads",
    "n_kv_heads": "key/value heads",
    "d_head": "head size",
    "d_model": "width",
    "vocabulary": "tokenizer",
}


def check_comparable(donor: Shape, recipient: Shape) -> None:
    """Raises: InputError naming everything in which the two differ."""
    differ = [
        f"{words} ({getattr(donor, field)}, not {getattr(recipient, field)})"
        for field, words in _NAMES.items()
        if getattr(donor, field) != getattr(recipient, field)
    ]
    if differ:
        raise InputError(
            f"{donor.model} cannot be patched into {recipient.model}: they differ in {', '.join(differ)}; choose two "
            f"models tuned from one base"
        )
