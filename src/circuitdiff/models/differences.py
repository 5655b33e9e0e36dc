"""Are two models what they are said to be? Their settings and tokenizers in words, their weights in numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from transformers import PreTrainedTokenizerBase

from circuitdiff.engine import Model
from circuitdiff.models.comparable import differing_settings
from circuitdiff.models.weight_changes import WeightChange, WeightChanges, summed, weight_changes
from circuitdiff.readable import Readable, data_frame

_NAMED = 5  # tokens that are named before "and n more"
_RULES = {
    "normalizer": "the normalisation of texts differs",
    "pre_tokenizer": "the splitting into words differs",
    "post_processor": "what is put around a text differs",
    "decoder": "the way from tokens to text differs",
}
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, repr=False)
class ModelDifferences(Readable):
    """Everything in which a variant differs from its base; what is in words says the variant's first."""

    base: str
    variant: str
    settings: tuple[str, ...]  # of the config, that change what is computed
    tokenizer: tuple[str, ...]
    weights: tuple[WeightChange, ...]
    not_compared: tuple[str, ...]  # tensors, or rows of them, that only one of the two has
    whole: WeightChange  # of all weights together

    @property
    def same_weights(self) -> bool:
        return not self.whole.n_changed and not self.not_compared

    def to_pandas(self) -> Any:
        """A row for each kind of weights in each layer. Raises: InputError if there is no pandas."""
        names = [each.name for each in fields(WeightChange)]
        return data_frame(" ".join(names), ([getattr(each, name) for name in names] for each in self.weights))


def model_differences(base: Model, variant: Model) -> ModelDifferences:
    """In what `variant` differs from `base`, both loaded. No prompt is run.

    Raises: CheckError if a weight of the two is no longer what was recorded when its model was loaded.
    """
    configs = [each.module.config.get_text_config().to_dict() for each in (base, variant)]
    found = weight_changes(base, variant)
    return differences_of((base.name, variant.name), configs, (base.tokenizer, variant.tokenizer), found)


def differences_of(
    names: Sequence[str],
    configs: Sequence[Mapping[str, Any]],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    found: WeightChanges,
) -> ModelDifferences:
    """All differences of a base and a variant, whose names, configs and tokenizers stand in this order."""
    words = tuple(settings_in_words(*configs)), tuple(tokenizers_in_words(*tokenizers))
    return ModelDifferences(names[0], names[1], *words, *found, summed(None, "all", found.weights))


def settings_in_words(base: Mapping[str, Any], variant: Mapping[str, Any]) -> Iterator[str]:
    """Like "hidden size 64, not 48"."""
    for key, (one, other) in differing_settings(base, variant).items():
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from (f"{key.replace('_', ' ')}: {each}" for each in settings_in_words(other, one))
        else:
            yield f"{key.replace('_', ' ')} {_short(one)}, not {_short(other)}"


def tokenizers_in_words(base: PreTrainedTokenizerBase, variant: PreTrainedTokenizerBase) -> Iterator[str]:
    """Like "2 tokens more: '<a>', '<b>'"."""
    own, theirs = variant.get_vocab(), base.get_vocab()
    for sign, here, there in (("more", own, theirs), ("fewer", theirs, own)):
        if only := [repr(token) for token in sorted(here.keys() - there.keys(), key=here.__getitem__)]:
            yield f"{_tokens(len(only))} {sign}: {_listed(only)}"
    moved = [
        f"{token!r} is {own[token]}, not {number}"
        for token, number in sorted(theirs.items(), key=lambda each: each[1])
        if own.get(token, number) != number
    ]
    if moved:
        yield f"{_tokens(len(moved))} with another number: {_listed(moved)}"
    for name in _SPECIAL:
        if (one := getattr(variant, name)) != (other := getattr(base, name)):
            yield f"{name.replace('_', ' ')} {one!r}, not {other!r}"
    yield from _rules_in_words(*(_rules(each) for each in (base, variant)))
    if variant.chat_template != base.chat_template:
        yield (
            "the chat template differs"
            if variant.chat_template and base.chat_template
            else ("it has a chat template" if variant.chat_template else "it has no chat template")
        )


def _rules_in_words(base: Mapping[str, Any], variant: Mapping[str, Any]) -> Iterator[str]:
    yield from (words for part, words in _RULES.items() if base.get(part) != variant.get(part))
    # Of the model all but its vocabulary; of added tokens those in common: the others are named one by one.
    models = [{**(each.get("model") or {}), "vocab": None} for each in (base, variant)]
    if models[0] != models[1]:
        differ = [key for key in models[0].keys() | models[1].keys() if models[0].get(key) != models[1].get(key)]
        yield f"the splitting of words into tokens differs ({', '.join(sorted(differ))})"
    added = [{each["content"]: each for each in rules.get("added_tokens", ())} for rules in (base, variant)]
    if any({**token, "id": 0} != {**added[1].get(text, token), "id": 0} for text, token in added[0].items()):
        yield "tokens that are never split are treated differently"


def _rules(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return {} if backend is None else json.loads(backend.to_str())


def _tokens(n: int) -> str:
    return f"{n:,} token{'s' if n != 1 else ''}"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:_NAMED]) + (f" and {len(words) - _NAMED:,} more" if len(words) > _NAMED else "")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
