"""Prompts and answers from a JSONL file, each answer one token."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError
from circuitdiff.models.finetune import Examples


def read_examples(path: Path, tokenizer: PreTrainedTokenizerBase, n_examples: int | None = None) -> Examples:
    """The first `n_examples` (or all) lines `{"prompt": "2 + 3 =", "answer": " 5"}`.

    The answer follows the prompt as both are written.

    Raises: InputError naming the line that is not such an object or whose answer is not one token.
    """
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read examples from {path}: {error}; give a JSONL file of prompt and answer"
        ) from error
    if not lines or len(lines) < (n_examples or 0):
        raise InputError(f"{path} holds {len(lines)} examples; expected {n_examples or 'at least one'}")
    rows = [_encode(line, f"{path} line {i}", tokenizer) for i, line in enumerate(lines[:n_examples], start=1)]
    prompts = [torch.tensor(prompt) for prompt, _ in rows]
    return Examples(
        tokens=pad_sequence(prompts, batch_first=True),
        lengths=torch.tensor([len(prompt) for prompt in prompts]),
        answers=torch.tensor([answer for _, answer in rows]),
    )


def _encode(line: str, where: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """The tokens of the prompt and that of the answer."""
    try:
        example = json.loads(line)
        prompt, answer = example["prompt"], example["answer"]
        together = prompt + answer
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise InputError(f'{where}: expected {{"prompt": "...", "answer": "..."}}; got {line[:60]!r}') from error
    before, after = _tokens(prompt, tokenizer), _tokens(together, tokenizer)
    if not before or after[:-1] != before:
        added = tokenizer.convert_ids_to_tokens(after[len(before) :])
        raise InputError(
            f"{where}: the tokenizer does not keep the answer {answer!r} as one token after its prompt (it adds "
            f"{added}); choose answers that are one token, with their leading space in the answer"
        )
    return before, after[-1]


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """As the tokenizer writes it, without the EOS that some put at the end."""
    ids: list[int] = tokenizer(text)["input_ids"]  # pyright: ignore[reportAssignmentType]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
