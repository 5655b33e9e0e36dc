"""A prompt and its answer, as text."""

from __future__ import annotations

from typing import NamedTuple


class TextExample(NamedTuple):
    """The answer follows the prompt as both are written: a space between them belongs to the answer."""

    prompt: str
    answer: str
