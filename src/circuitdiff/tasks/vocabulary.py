"""Which words a tokenizer writes as one token of their own, in the contexts where a task uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError


@dataclass(frozen=True)
class Words:
    """Words of one token each, with its id, in the order given; and those that had to be left out."""

    ids: Mapping[str, int]
    left_out: tuple[str, ...]

    def check_enough(self, n_needed: int, what: str, otherwise: str = "") -> None:
        """Raises: InputError if fewer than `n_needed` words are left; `otherwise` ends its advice."""
        if len(self.ids) < n_needed:
            raise InputError(
                f"this task needs {n_needed} {what} of one token each, but the tokenizer keeps {len(self.ids)} "
                f"of {len(self.ids) + len(self.left_out)} whole: give the task other {what}{otherwise}"
            )


def one_token_words(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], before: str, after: Sequence[str]
) -> Words:
    """The words that add exactly one known token to `before` and stay that token whatever of `after` follows.

    Of words with the same token (as with a tokenizer that ignores case) only the first stays.
    """
    start = _encode(tokenizer, [before])[0]
    ended = _encode(tokenizer, [f"{before} {word}" for word in words])
    followed = [_encode(tokenizer, [f"{before} {word}{rest}" for word in words]) for rest in after]
    ids: dict[str, int] = {}
    for i, word in enumerate(words):
        token = ended[i][-1]
        alone = ended[i] == [*start, token]
        stays = all(longer[i][: len(ended[i])] == ended[i] for longer in followed)
        if alone and stays and token != tokenizer.unk_token_id and token not in ids.values():
            ids[word] = token
    return Words(ids, tuple(word for word in words if word not in ids))


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]
