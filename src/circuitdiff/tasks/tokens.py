"""Prompts made of named slots, and where each slot's tokens are: by characters, never by a fixed offset.

Also which words a tokenizer writes as one token of their own, in the contexts where a task uses them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError
from circuitdiff.prompts import PromptSet

Span = tuple[int, int]

CHAT = "chat"  # the slot of a chat template's text
START = "start"  # the slot of what the tokenizer puts before the text, such as a BOS token
_OURS = re.compile(r"last|start|chat|text_\d+")


class Piece(NamedTuple):
    """A stretch of a prompt and the slot that it fills. The space before a word belongs to the word."""

    slot: str
    text: str


@dataclass(frozen=True)
class Prompt:
    """Pieces in reading order, and the roles that depend on more than the template.

    Each slot is a role of its own name; `roles` adds names for some of them, like `correct_object`.
    """

    pieces: tuple[Piece, ...]
    roles: Mapping[str, str]  # role -> the slot where it sits
    words: Mapping[str, str] = field(default_factory=dict)  # slot -> its word, to be held against its tokens

    def __post_init__(self) -> None:
        slots = [piece.slot for piece in self.pieces]
        if len(set(slots)) < len(slots):
            raise InputError(f"a template names each slot once; got {', '.join(slots)}")
        if unknown := set(self.roles.values()) - set(slots):
            raise InputError(f"a role must sit at a slot of its prompt; the prompt has no {sorted(unknown)[0]!r}")

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def cut_at_roles(text: str, roles: Mapping[str, Span | str], origin: str) -> Prompt:
    """The text cut wherever a role begins or ends, each a span of characters or the word that stands there.

    A slot is called after the role that ends with it, or by its number; `last` is the end.

    Raises: InputError if a span lies outside, a word is missing or stands there twice, or two roles end together.
    """
    spans = {role: _span(text, role, place, origin) for role, place in roles.items()}
    ends = {end: role for role, (_, end) in spans.items()}
    if len(ends) < len(spans):
        role = next(role for role, (_, end) in spans.items() if ends[end] != role)
        raise InputError(
            f"{origin}: the roles {role!r} and {ends[spans[role][1]]!r} end at one place; give each its own"
        )
    edges = sorted({len(text), *(edge for span in spans.values() for edge in span)} - {0})
    pieces = tuple(
        Piece(ends.get(end, f"text_{i}"), text[start:end])
        for i, (start, end) in enumerate(zip([0, *edges[:-1]], edges, strict=True))
    )
    return Prompt(pieces, {"last": pieces[-1].slot} | {role: role for role in spans})


def _span(text: str, role: str, place: Span | str, origin: str) -> Span:
    if isinstance(place, str):
        found = [each.span() for each in re.finditer(rf"(?<!\w){re.escape(place)}(?!\w)", text)] if place else []
        if len(found) != 1:
            raise InputError(
                f"{origin}: role {role!r} is at the word {place!r}, which stands {len(found)} times in {text!r}; "
                + ("give its characters, [start, end]" if found else "name a word of the prompt")
            )
        return found[0]
    if not 0 <= place[0] < place[1] <= len(text):
        raise InputError(
            f"{origin}: role {role!r} is at characters {place[0]} to {place[1]} of a prompt of {len(text)}; give "
            f"[start, end] with start < end, and end {len(text)} at most"
        )
    return place


@dataclass(frozen=True)
class _Tokenised:
    """One prompt's token ids with the slot name of each; and of each slot its position as a role, and its tokens."""

    ids: list[int] = field(default_factory=list)
    slots: list[str] = field(default_factory=list)
    role_token: dict[str, int] = field(default_factory=dict)
    of_slot: dict[str, list[int]] = field(default_factory=dict)


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    roles: Iterable[str] | None = None,
    before: str = "",
) -> PromptSet:
    """The prompts as the tokenizer itself writes them (its BOS included), with every slot, and these roles (None: all).

    A role whose slot fills several tokens sits at the last of them; one that comes after a field, `after_label`, at the
    first, the very next token. Tokens after the first of a slot have slot names of their own, `segment_3.label#1`.
    Special tokens after the text (an EOS) are left out: the answer goes there. `before`: a chat template's text before
    each prompt, which has the special tokens in it, and the slot `chat`.

    Raises: InputError if a token holds characters of two slots, a slot has no token, a word is unknown or is not what
    its tokens say, or the tokenizer is slow.
    """
    if before:
        prompts = [Prompt((Piece(CHAT, before), *each.pieces), each.roles, each.words) for each in prompts]
    rows = _tokenise_each(tokenizer, prompts, add_special_tokens=not before)
    _check_words(tokenizer, prompts, rows)
    names = list(dict.fromkeys(name for row in rows for name in row.slots))
    index = {name: i for i, name in enumerate(names)}
    return PromptSet(
        tokens=_right_padded([row.ids for row in rows], _padding_id(tokenizer)),
        lengths=torch.tensor([len(row.ids) for row in rows]),
        positions=_positions(prompts, rows, roles),
        slots=_right_padded([[index[name] for name in row.slots] for row in rows], -1),
        slot_names=names,
        slot_kinds=[re.sub(r"\b(segment|change)_\d+\.", r"\1.", name) for name in names],
    )


def check_words_known(tokenizer: PreTrainedTokenizerBase, prompts: PromptSet, origins: Sequence[str]) -> None:
    """Raises: InputError naming the first prompt of whose own text there is a word that the tokenizer does not know."""
    own = torch.tensor([name.partition("#")[0] not in (CHAT, START) for name in prompts.slot_names])[prompts.slots]
    unknown = (prompts.slots >= 0) & own & (prompts.tokens == (-1 if (unk := tokenizer.unk_token_id) is None else unk))
    if unknown.any():
        where = origins[int(unknown.any(1).nonzero()[0])]
        raise InputError(f"{where}: the tokenizer does not know every word: use other words, or another model")


def check_names(roles: Iterable[str], origin: str) -> None:
    """Raises: InputError if a role has the name of a slot that is none, or of the role that each prompt has."""
    if ours := next((role for role in roles if _OURS.fullmatch(role)), None):
        raise InputError(f"{origin}: a role cannot be called {ours!r}, which has a meaning here; choose another name")


def _check_words(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], rows: Sequence[_Tokenised]) -> None:
    """A tokenizer whose offsets are wrong would put every role at a wrong token, silently."""
    seen: dict[tuple[int, ...], str] = {}
    for prompt, row in zip(prompts, rows, strict=True):
        if prompt.words and tokenizer.unk_token_id in row.ids:
            raise InputError(
                f"the tokenizer does not know every word of {prompt.text!r}: use other words, or another model"
            )
        for slot, word in prompt.words.items():
            ids = tuple(row.of_slot[slot])
            if ids not in seen:
                seen[ids] = str(tokenizer.decode(list(ids))).strip().casefold()
            if seen[ids] != word.casefold():
                raise InputError(
                    f"the tokenizer's offsets lead to {seen[ids]!r} where {word!r} stands in {prompt.text!r}: "
                    f"load another version of this tokenizer (use_fast=True)"
                )


def _tokenise_each(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], *, add_special_tokens: bool
) -> list[_Tokenised]:
    if not tokenizer.is_fast:
        raise InputError(
            f"finding a prompt's roles needs a fast tokenizer, which knows each token's characters; "
            f"{type(tokenizer).__name__} does not: load it with transformers.AutoTokenizer or convert it"
        )
    encoded = tokenizer(
        [prompt.text for prompt in prompts],
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
    )
    columns = (encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"])
    return [_with_slots(prompt, *row) for prompt, *row in zip(prompts, *columns, strict=True)]


def _with_slots(
    prompt: Prompt, ids: Sequence[int], offsets: Sequence[tuple[int, int]], special: Sequence[int]
) -> _Tokenised:
    text = prompt.text
    slot_at = [piece.slot for piece in prompt.pieces for _ in piece.text]
    row = _Tokenised()
    for token, (start, end), is_special in zip(ids, offsets, special, strict=True):
        if is_special and row.role_token:  # the text has begun: this one comes after it
            continue
        slot = START if is_special else _slot_of_span(text, slot_at, start, end)
        if slot != START and not (slot in row.role_token and slot.rpartition(".")[2].startswith("after_")):
            row.role_token[slot] = len(row.ids)
        earlier = row.of_slot.setdefault(slot, [])
        row.slots.append(f"{slot}#{len(earlier)}" if earlier else slot)
        row.ids.append(token)
        earlier.append(token)
    if empty := [piece.slot for piece in prompt.pieces if piece.slot not in row.role_token]:
        raise InputError(f"the tokenizer has no token for slot {empty[0]!r} of {text!r}: give it other words")
    return row


def _slot_of_span(text: str, slot_at: Sequence[str], start: int, end: int) -> str:
    """The slot of the characters from `start` to `end`; spaces count only if there is nothing else."""
    span = range(start, max(end, start + 1))  # byte tokens may have an empty span
    written = [i for i in span if not text[i].isspace()] or list(span)
    slots = list(dict.fromkeys(slot_at[i] for i in written))
    if len(slots) > 1:
        raise InputError(
            f"the token {text[start:end]!r} of {text!r} holds characters of the slots {' and '.join(slots)}, "
            f"so these have no position of their own: use words that the tokenizer keeps apart"
        )
    return slots[0]


def _positions(
    prompts: Sequence[Prompt], rows: Sequence[_Tokenised], roles: Iterable[str] | None
) -> dict[str, torch.Tensor]:
    """Each role's position in every prompt: its slot's last token; -1 where the prompt lacks the role."""
    found = [
        row.role_token | {role: row.role_token[slot] for role, slot in prompt.roles.items()}
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    roles = dict.fromkeys(role for positions in found for role in positions) if roles is None else roles
    return {role: torch.tensor([positions.get(role, -1) for positions in found]) for role in roles}


def _right_padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=filler)


def _padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills a row up. Nothing ever computes on it, so any valid id will do."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in candidates if isinstance(token, int))


class WholeWords(NamedTuple):
    """Words of one token each, with its id, in the order given; and those that had to be left out."""

    ids: Mapping[str, int]
    left_out: tuple[str, ...]


def one_token_words(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], before: str, after: Sequence[str]
) -> WholeWords:
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
    return WholeWords(ids, tuple(word for word in words if word not in ids))


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]
