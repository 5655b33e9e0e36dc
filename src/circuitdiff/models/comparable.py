"""Whether activations or weights of one model mean anything in another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

from circuitdiff.engine import Model
from circuitdiff.errors import InputError
from circuitdiff.models.sources import Outline
from circuitdiff.prompts import Pairs

Tokens = Mapping[int, str | None]


@dataclass(frozen=True)
class Shape:
    """What two models must have in common before one's heads can stand in for the other's on some prompts.

    Their vocabularies may differ, as after tokens were added, but not in the tokens of these prompts.
    """

    model: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    architecture: str
    tokens: Tokens  # of the prompts and their answers, as the tokenizer writes them

    @classmethod
    def of(cls, model: Model, pairs: Pairs) -> Shape:
        return cls(
            model=model.name,
            n_layers=model.n_layers,
            n_heads=model.n_heads,
            n_kv_heads=model.n_kv_heads,
            d_head=model.d_head,
            d_model=model.module.config.get_text_config().hidden_size,
            architecture=type(model.module).__name__,
            tokens=_tokens_of(pairs, model.tokenizer),
        )

    @classmethod
    def outlined(cls, name: str, outline: Outline, pairs: Pairs) -> Shape:
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
            tokens=_tokens_of(pairs, outline.tokenizer),
        )


def _tokens_of(pairs: Pairs, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    answers = (pairs.right_answers, pairs.foils, pairs.counterfactual_answers, pairs.continuations)
    rows = [*pairs.clean_prompts.rows(), *pairs.counterfactual_prompts.rows()]
    rows += [part[part >= 0].tolist() for part in answers if part is not None]
    ids, size = sorted(set(chain(*rows))), len(tokenizer)
    return {token: tokenizer.convert_ids_to_tokens(token) if token < size else None for token in ids}  # pyright: ignore[reportReturnType]


# Settings that say who wrote a config, how a model is trained or used, or what weights and tokenizer say themselves.
_NOT_COMPUTED = frozenset(
    [
        *("architectures", "transformers_version", "dtype", "tie_word_embeddings", "vocab_size", "initializer_range"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "id2label", "label2id", "problem_type"),
        *("attention_dropout", "return_dict", "output_attentions", "output_hidden_states"),
    ]
)

_NAMES = {
    "architecture": "architecture",
    "n_layers": "layers",
    "n_heads": "heads",
    "n_kv_heads": "key/value heads",
    "d_head": "head size",
    "d_model": "width",
}


def differences(one: Shape, other: Shape) -> dict[str, str]:
    """In words, by field, in what the first differs from the second."""
    differ = {
        field: f"{words} ({getattr(one, field)}, not {getattr(other, field)})"
        for field, words in _NAMES.items()
        if getattr(one, field) != getattr(other, field)
    }
    renamed = [
        f"{i} is {one.tokens[i]!r}, not {other.tokens[i]!r}" for i in one.tokens if one.tokens[i] != other.tokens.get(i)
    ]
    if renamed:
        more = f" and {len(renamed) - 3} more" if len(renamed) > 3 else ""
        differ["tokens"] = f"tokens of the prompts ({', '.join(renamed[:3])}{more})"
    return differ


def differing_settings(base: Mapping[str, Any], variant: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Of what two configs say about what a model computes, where they differ: the variant's value and the base's."""
    keys = sorted(key for key in base.keys() | variant.keys() if key not in _NOT_COMPUTED and not key.startswith("_"))
    return {key: (variant.get(key), base.get(key)) for key in keys if base.get(key) != variant.get(key)}


def other_settings(base: Mapping[str, Any], variant: Mapping[str, Any]) -> str:
    """In what the variant's config says other things than the base's that change what a model computes, in words."""
    differ = differing_settings(base, variant)
    return ", ".join(f"{key} ({one}, not {other})" for key, (one, other) in differ.items())


def check_comparable(donor: Shape, recipient: Shape) -> None:
    """Raises: InputError naming everything in which the two differ."""
    differ = differences(donor, recipient).values()
    if differ:
        raise InputError(
            f"{donor.model} cannot be patched into {recipient.model}: they differ in {', '.join(differ)}; choose two "
            f"models tuned from one base"
        )
