"""The words that a planted model knows, and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from circuitdiff.errors import InputError
from circuitdiff.vocabulary import LABELS

UNKNOWN, PADDING, END = "<unk>", "<pad>", "<eos>"
TEMPLATE_WORDS = ("The", "the", "is", "in", "Box", "contains", ",", ".")


@dataclass(frozen=True)
class Vocabulary:
    """Special tokens, the template's words, labels and objects, in the order of their ids."""

    objects: tuple[str, ...]

    @property
    def tokens(self) -> tuple[str, ...]:
        return (UNKNOWN, PADDING, END, *TEMPLATE_WORDS, *LABELS, *self.objects)

    @property
    def label_ids(self) -> Int[Tensor, " label"]:
        return torch.tensor([self.tokens.index(label) for label in LABELS])

    @property
    def object_ids(self) -> Int[Tensor, " object"]:
        return torch.arange(len(self.tokens) - len(self.objects), len(self.tokens))


def make_vocabulary(objects: Sequence[str]) -> Vocabulary:
    """Raises: InputError if an object is not one plain word, or is there twice, or is a word of the template."""
    vocabulary = Vocabulary(tuple(objects))
    if len(set(vocabulary.tokens)) < len(vocabulary.tokens):
        twice = next(word for word in objects if vocabulary.tokens.count(word) > 1)
        raise InputError(f"a planted model needs objects of different names; {twice!r} is there twice or is no object")
    if strange := [word for word in objects if not word.isalpha()]:
        raise InputError(f"a planted model's objects are plain words; got {strange[0]!r}: leave it out")
    return vocabulary


def make_tokenizer(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """One token for each word and punctuation mark."""
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, pad_token=PADDING, eos_token=END, padding_side="right"
    )
