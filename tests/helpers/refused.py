"""Wrong task files: the words that they are written with, and the one line in which they are refused."""

from __future__ import annotations

import pytest

from circuitdiff.errors import InputError
from helpers.tiny_tokenizers import word_level

THINGS, COLOURS = "apple book cup pen lamp door key box", "red blue green white black grey pink brown"


def word_tokenizer():
    return word_level([*["The", "the", "is", ".", ",", "What", "At", "In"], *THINGS.split(), *COLOURS.split()])


def refusal(path, use):
    with pytest.raises(InputError) as caught:
        use()
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value).replace(f"{path.parent}/", "")
