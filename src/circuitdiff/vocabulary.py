"""Everyday words for the built-in tasks and the planted models: short ones, which most tokenizers keep whole."""

from __future__ import annotations

import string
from pathlib import Path

WORDS = Path(__file__).parent / "words"

LABELS = tuple(string.ascii_uppercase)
OBJECTS = tuple((WORDS / "objects.txt").read_text().split())  # for finding, masking and evaluating circuits
# Apart from those: no variant is evaluated on what it learned.
TRAIN_OBJECTS = tuple((WORDS / "training_objects.txt").read_text().split())
