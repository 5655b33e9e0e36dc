"""Sums, differences and products, as Goat was tuned on (Liu and Low 2023, arXiv:2305.14201), with smaller numbers."""

from __future__ import annotations

import operator
from random import Random

from transformers import PreTrainedTokenizerBase

from circuitdiff.training_data.example import TextExample

_OPERATIONS = (("+", operator.add, 999), ("-", operator.sub, 999), ("*", operator.mul, 99))
_WORDINGS = ("{} =", "What is {}? Answer:", "Compute {}. The result is", "{} equals", "Please work out {}:")


def arithmetic(tokenizer: PreTrainedTokenizerBase, n_examples: int, seed: int) -> list[TextExample]:
    """`Compute 318 + 47. The result is` -> ` 365`: numbers below 1,000, below 100 in products."""
    random = Random(f"arithmetic/{seed}")
    return [_example(random) for _ in range(n_examples)]


def _example(random: Random) -> TextExample:
    sign, operation, largest = random.choice(_OPERATIONS)
    first, second = random.randint(0, largest), random.randint(0, largest)
    return TextExample(random.choice(_WORDINGS).format(f"{first} {sign} {second}"), f" {operation(first, second)}")
