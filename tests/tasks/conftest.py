"""The tiny tokenizers as fixtures."""

import pytest

from circuitdiff.vocabulary import LABELS, OBJECTS, TRAIN_OBJECTS
from helpers.tiny_tokenizers import FRAME, byte_pairs, word_level


@pytest.fixture(scope="session")
def whole_words():
    return word_level([*FRAME, *LABELS, *OBJECTS, *TRAIN_OBJECTS])


@pytest.fixture(scope="session")
def pieces():
    return byte_pairs([*OBJECTS[::2], *TRAIN_OBJECTS[::2]], trim_offsets=False)


@pytest.fixture(scope="session")
def trimmed_pieces():
    return byte_pairs([*OBJECTS[::2], *TRAIN_OBJECTS[::2]], trim_offsets=True)


@pytest.fixture(params=["whole_words", "pieces", "trimmed_pieces"])
def tokenizer(request):
    return request.getfixturevalue(request.param)
