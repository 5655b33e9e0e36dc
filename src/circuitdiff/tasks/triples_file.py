"""Triples of a user's own: a JSONL file, one JSON object a line.

    {"base": "Box F contains the", "source": "Box K contains the", "answer": " apple", "target": " book",
     "base_roles": {"query_label": [4, 5]}, "source_roles": {"query_label": [4, 5]}, "scenario": 0}

Answer and target are what follows the base prompt, space included: one token each. Roles are characters, from
start up to but not including the end; `last` is known without being named. Prompts of one scenario are not independent;
without the field, each line is a scenario of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from circuitdiff.config.reading import read_jsonl
from circuitdiff.config.validation import Strict, validated
from circuitdiff.errors import InputError
from circuitdiff.tasks.tokens import Span, cut_at_roles, tokenise
from circuitdiff.triples import Triples


class Line(Strict):
    """One triple as written; see the module."""

    base: str = Field(min_length=1)
    source: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    target: str = Field(min_length=1)
    base_roles: dict[str, Span] = Field(default_factory=dict)
    source_roles: dict[str, Span] = Field(default_factory=dict)
    scenario: int | None = Field(default=None, ge=0, lt=2**62)  # a 64-bit number, with room for those that lack one
    queried: int = Field(default=-1, ge=-1, lt=2**31)
    source_queried: int = Field(default=-1, ge=-1, lt=2**31)


def read_triples(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> Triples:
    """The triples of a JSONL file, named after it.

    Raises: InputError naming the line whose form is wrong, whose target is not one token, or is the answer.
    """
    path = Path(path)
    lines = [(validated(Line, line, origin), origin) for origin, line in read_jsonl(path)]
    if not lines:
        raise InputError(f"{path} has no triples; expected one JSON object a line")
    base = [cut_at_roles(line.base, line.base_roles, origin) for line, origin in lines]
    source = [cut_at_roles(line.source, line.source_roles, origin) for line, origin in lines]
    return Triples(
        name=path.stem,
        base=tokenise(tokenizer, base),
        source=tokenise(tokenizer, source),
        answers=torch.tensor([_answer_token(tokenizer, line.base, line.answer, origin) for line, origin in lines]),
        targets=torch.tensor([_answer_token(tokenizer, line.base, line.target, origin) for line, origin in lines]),
        pointers={},
        scenarios=_scenarios([line.scenario for line, _ in lines]),
        queried=torch.tensor([line.queried for line, _ in lines]),
        source_queried=torch.tensor([line.source_queried for line, _ in lines]),
    )


def _answer_token(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, origin: str) -> int:
    """The one token that `answer` adds to the prompt."""
    start, whole = tokenizer([prompt, prompt + answer], add_special_tokens=False)["input_ids"]
    added = whole[len(start) :]
    if whole[: len(start)] != start or len(added) != 1 or added[0] == tokenizer.unk_token_id:
        came = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(added))) or "no token"
        raise InputError(
            f"{origin}: {answer!r} must be one token of the vocabulary after the prompt; it came as {came}: choose "
            f"another answer, with its leading space"
        )
    return added[0]


def _scenarios(given: Sequence[int | None]) -> torch.Tensor:
    """Numbers as given; a scenario of its own, beyond them, for each line without one."""
    first_free = max((n for n in given if n is not None), default=-1) + 1
    return torch.tensor([first_free + i if n is None else n for i, n in enumerate(given)])
