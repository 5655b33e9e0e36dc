"""The words that a planted model knows, in the order of their ids, and its tokenizer."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from circuitdiff.vocabulary import LABELS, OBJECTS, TRAIN_OBJECTS

UNKNOWN, PADDING, END = "<unk>", "<pad>", "<eos>"
_TEMPLATE_WORDS = ("The", "the", "is", "in", "Box", "contains", ",", ".")
TOKENS = (UNKNOWN, PADDING, END, *_TEMPLATE_WORDS, *LABELS, *OBJECTS, *TRAIN_OBJECTS)
LABEL_IDS = [TOKENS.index(label) for label in LABELS]
N_OBJECTS = len(OBJECTS) + len(TRAIN_OBJECTS)
OBJECT_IDS = slice(len(TOKENS) - N_OBJECTS, len(TOKENS))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word and punctuation mark."""
    tokenizer = Tokenizer(WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, pad_token=PADDING, eos_token=END, padding_side="right"
    )
