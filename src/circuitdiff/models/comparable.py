"""Whether activations or weights of one model mean anything in another."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from circuitdiff.engine import Model
from circuitdiff.errors import InputError
from circuitdiff.models.sources import Outline


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
        return cls(
            model=model.name,
            n_layers=model.n_layers,
            n_heads=model.n_heads,
            n_kv_heads=model.n_kv_heads,
            d_head=model.d_head,
            d_model=model.module.config.get_text_config().hidden_size,
            architecture=type(model.module).__name__,
            vocabulary=_hash_of(model.tokenizer),
        )

    @classmethod
    def outlined(cls, name: str, outline: Outline) -> Shape:
        """As the model's settings say it, before its weights are read; to be held against another such."""
        config = outline.config.get_text_config()
        n_heads = int(getattr(config, "num_attention_heads", 0))
        d_model = int(config.hidden_size)
        return cls(
            model=name,
            n_layers=int(config.num_hidden_layers),
            n_heads=n_heads,
            n_kv_heads=int(getattr(config, "num_key_value_heads", None) or n_heads),
            d_head=int(getattr(config, "head_dim", None) or d_model // max(1, n_heads)),
            d_model=d_model,
            architecture=", ".join(outline.config.architectures or [outline.config.model_type]),
            vocabulary=_hash_of(outline.tokenizer),
        )


def _hash_of(tokenizer: PreTrainedTokenizerBase) -> str:
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]


_NAMES = {
    "architecture": "architecture",
    "n_layers": "layers",
    "n_heads": "heads",
    "n_kv_heads": "key/value heads",
    "d_head": "head size",
    "d_model": "width",
    "vocabulary": "tokenizer",
}


def differences(one: Shape, other: Shape) -> dict[str, str]:
    """In words, by field, in what the first differs from the second."""
    return {
        field: f"{words} ({getattr(one, field)}, not {getattr(other, field)})"
        for field, words in _NAMES.items()
        if getattr(one, field) != getattr(other, field)
    }


def check_comparable(donor: Shape, recipient: Shape) -> None:
    """Raises: InputError naming everything in which the two differ."""
    differ = differences(donor, recipient).values()
    if differ:
        raise InputError(
            f"{donor.model} cannot be patched into {recipient.model}: they differ in {', '.join(differ)}; choose two "
            f"models tuned from one base"
        )
