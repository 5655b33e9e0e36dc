"""Built-in data for fine-tuning: prompts with answers, as text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError, choices
from circuitdiff.training_data.arithmetic import arithmetic
from circuitdiff.training_data.conversations import conversations
from circuitdiff.training_data.example import TextExample
from circuitdiff.training_data.next_box import next_box
from circuitdiff.training_data.related_tracking import related_tracking

GENERATORS: Mapping[str, Callable[..., list[TextExample]]] = {
    generator.__name__: generator for generator in (related_tracking, arithmetic, conversations, next_box)
}


def generate(
    name: str, tokenizer: PreTrainedTokenizerBase, n_examples: int, seed: int, **options: object
) -> list[TextExample]:
    """The first `n_examples` of the built-in data of that name: the same for the same arguments.

    Raises: InputError if the name or an option is unknown.
    """
    if name not in GENERATORS:
        raise InputError(f"there is no built-in data {name!r}{choices(name, GENERATORS)}")
    known = list(inspect.signature(GENERATORS[name]).parameters)[3:]
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"data {name!r} has no option {unknown[0]!r}{choices(unknown[0], known)}")
    return GENERATORS[name](tokenizer, n_examples, seed, **options)


__all__ = ["GENERATORS", "TextExample", "generate"]
