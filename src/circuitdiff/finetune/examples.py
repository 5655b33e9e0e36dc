"""Prompts with the tokens that should follow: from text, or from a JSONL file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from circuitdiff.config.reading import read_jsonl
from circuitdiff.errors import InputError

NO_ANSWER = -100  # fills answers up


@dataclass(frozen=True)
class Examples:
    """Right-padded inputs, each with the tokens that should follow its last ones.

    An input is the prompt and all of its answer but the last token: the first answer token follows the prompt, the
    last one follows the whole input.
    """

    tokens: Int[Tensor, "prompt pos"]
    lengths: Int[Tensor, " prompt"]
    answers: Int[Tensor, "prompt answer"]  # from the first column on; NO_ANSWER behind the last token

    def __len__(self) -> int:
        return len(self.answers)

    def select(self, prompts: Int[Tensor, " chosen"]) -> Examples:
        """The chosen examples in the order given, without columns that only hold padding."""
        lengths = self.lengths[prompts]
        return Examples(self.tokens[prompts, : int(lengths.max())], lengths, self.answers[prompts])

    @property
    def answer_places(self) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
        """For every answer token, prompt by prompt: the row of its input, and the position that it follows."""
        row, place = (self.answers != NO_ANSWER).nonzero(as_tuple=True)
        n_answers = (self.answers != NO_ANSWER).sum(dim=1)
        return row, (self.lengths - n_answers)[row] + place

    @property
    def answer_tokens(self) -> Int[Tensor, " token"]:
        """The answer tokens, prompt by prompt."""
        return self.answers[self.answers != NO_ANSWER]


def encode_examples(texts: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> Examples:
    """Prompts and answers as tokens; an answer follows its prompt as both are written.

    Raises: InputError if there is none, or the tokenizer joins an answer to its prompt.
    """
    if not texts:
        raise InputError("expected examples of prompt and answer; got none")
    return _padded([_encode(prompt, answer, tokenizer) for prompt, answer in texts])


def read_examples(
    path: Path, tokenizer: PreTrainedTokenizerBase, n_examples: int | None = None, *, whole_answers: bool = False
) -> Examples:
    """The first `n_examples` (or all) lines `{"prompt": "2 + 3 =", "answer": " 5"}`.

    An answer is one token, which is what circuits are found for; with `whole_answers` it may be any text.

    Raises: InputError naming the line that is not such an object, or whose answer the tokenizer splits or joins to
    its prompt.
    """
    lines = read_jsonl(path, n_examples)
    if not lines or len(lines) < (n_examples or 0):
        raise InputError(f"{path} holds {len(lines)} examples; expected {n_examples or 'at least one'}")
    return _padded([_encode_line(line, origin, tokenizer, whole_answers) for origin, line in lines])


def _padded(rows: Sequence[tuple[list[int], list[int]]]) -> Examples:
    inputs = [torch.tensor([*prompt, *answer[:-1]]) for prompt, answer in rows]
    return Examples(
        tokens=pad_sequence(inputs, batch_first=True),
        lengths=torch.tensor([len(tokens) for tokens in inputs]),
        answers=pad_sequence([torch.tensor(answer) for _, answer in rows], True, NO_ANSWER),
    )


def _encode_line(
    example: Mapping[str, object], where: str, tokenizer: PreTrainedTokenizerBase, whole_answers: bool
) -> tuple[list[int], list[int]]:
    prompt, answer = example.get("prompt"), example.get("answer")
    if not isinstance(prompt, str) or not isinstance(answer, str):
        raise InputError(f'{where}: expected {{"prompt": "...", "answer": "..."}}; got {str(example)[:60]!r}')
    before, after = _encode(prompt, answer, tokenizer, where)
    if len(after) > 1 and not whole_answers:
        raise InputError(
            f"{where}: the tokenizer splits the answer {answer!r} into {tokenizer.convert_ids_to_tokens(after)}; "
            f"choose answers that are one token, or set `answers: text` in the recipe to train on all their tokens"
        )
    return before, after


def _encode(
    prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase, where: str = "training data"
) -> tuple[list[int], list[int]]:
    """The tokens of the prompt and those of the answer."""
    before, after = _tokens(prompt, tokenizer), _tokens(prompt + answer, tokenizer)
    if not before or len(after) == len(before) or after[: len(before)] != before:
        raise InputError(
            f"{where}: the tokenizer does not keep the answer {answer!r} apart from its prompt, which ends in "
            f"{prompt[-20:]!r}; end prompts with a whole word, and put the space before the answer into the answer"
        )
    return before, after[len(before) :]


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """As the tokenizer writes it, without the EOS that some put at the end."""
    ids: list[int] = tokenizer(text)["input_ids"]  # pyright: ignore[reportAssignmentType]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
