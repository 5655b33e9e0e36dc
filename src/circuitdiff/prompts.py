"""Prompts with named positions, and pairs of them: what a task yields and every method takes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitdiff.errors import InputError
from circuitdiff.readable import Readable, data_frame

T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class PromptSet(Readable):
    """Prompts of any lengths, right-padded, with the position of each role and the slot of each token.

    All tensors are int64 on the CPU. A *role* names one token of each prompt, where methods look and patch; a *slot*
    names what each token is there for, so that means are taken over like tokens.
    `tokens` [prompt, pos]: ids, beyond each length one padding token. `lengths` [prompt]: from 1.
    `positions`: for each role the position [prompt] of its token, from 0; -1 where the prompt lacks the role.
    `slots` [prompt, pos]: each token's slot as an index into `slot_names`; -1 on padding, and only there.
    `slot_names`: all different, like "segment_3.label"; in their order the numbers of `slots`.
    `slot_kinds`: for each slot the name that it shares with its like in other segments, "segment.label".
    """

    tokens: Int[Tensor, "prompt pos"]
    lengths: Int[Tensor, " prompt"]
    positions: Mapping[str, Int[Tensor, " prompt"]]
    slots: Int[Tensor, "prompt pos"]
    slot_names: Sequence[str]
    slot_kinds: Sequence[str]

    def __post_init__(self) -> None:
        check_numbers("PromptSet.tokens", self.tokens, (None, None))
        shape = n, width = self.tokens.shape
        check_numbers("PromptSet.lengths", self.lengths, (n,))
        check_numbers("PromptSet.slots", self.slots, shape)
        _check_rows("PromptSet.lengths", self.lengths, (self.lengths < 1) | (self.lengths > width), f"1 to {width}")
        inside = torch.arange(width) < self.lengths[:, None]
        _check_rows("PromptSet.tokens", self.tokens, inside & (self.tokens < 0), "token ids, from 0")
        self._check_padding(inside)
        self._check_positions()
        self._check_slots(inside)

    def _check_padding(self, inside: Bool[Tensor, "prompt pos"]) -> None:
        """Only tokens[:length] are run, so padding in front would cut the question off: the end then holds real tokens.

        Prompts that all end in the same token, one longer than the others, give that token away at their end.
        """
        beyond = self.tokens[~inside]
        if not len(beyond):
            return
        right = f"only padding beyond the length, which is one token everywhere, here {int(beyond[0])}"
        advice = "move the padding to the right (tokenizer.padding_side = 'right')"
        _check_rows("PromptSet.tokens", self.tokens, ~inside & (self.tokens != beyond[0]), right, advice)
        last = self.tokens.gather(1, self.lengths[:, None] - 1)
        ends = "a prompt that does not end in what pads the others"
        _check_rows("PromptSet.tokens", last, last == beyond[0], ends, advice + ", or pad with another token")

    def _check_positions(self) -> None:
        for role, at in self.positions.items():
            field = f"PromptSet.positions[{role!r}]"
            check_numbers(field, at, self.lengths.shape, at_least=-1)
            _check_rows(field, at, at >= self.lengths, "a position before the prompt's length, or -1 for none")

    def _check_slots(self, inside: Bool[Tensor, "prompt pos"]) -> None:
        n_names, n_kinds = len(self.slot_names), len(self.slot_kinds)
        if n_names != n_kinds or len(set(self.slot_names)) < n_names:
            raise InputError(
                f"PromptSet.slot_names: expected names that differ, and a kind for each; got {n_names} names, "
                f"{len(set(self.slot_names))} of them different, and {n_kinds} slot_kinds"
            )
        expected = f"a slot from 0 to {n_names - 1} within the prompt's length, and -1 beyond it"
        wrong = (self.slots >= n_names) | ((self.slots >= 0) != inside) | (self.slots < -1)
        _check_rows("PromptSet.slots", self.slots, wrong, expected)

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self) -> list[list[int]]:
        """Each prompt's tokens, without padding."""
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)]

    def fingerprint(self) -> str:
        """The same for the same content: tokens, lengths, roles and slots, but not what pads them."""
        names = [*self.slot_names, *self.slot_kinds, *sorted(self.positions)]
        roles = [self.positions[role] for role in sorted(self.positions)]
        tokens = self.tokens.masked_fill(self.slots < 0, -1)
        return fingerprint_of(names, tokens, self.lengths, self.slots, *roles)

    def select(self, prompts: Int[Tensor, " chosen"]) -> PromptSet:
        """The chosen prompts, in the order given."""
        return selected(self, prompts)


@dataclass(frozen=True, repr=False)
class Pairs(Readable):
    """Clean prompts, each with its counterfactual, answers and scenario; from texts by `Pairs.from_texts`.

    `clean_prompts`, `counterfactual_prompts`: as many of each, in one order, with the same roles and slot names.
    `answers` [prompt]: the token that is right after each clean prompt.
    `foils` [prompt, k]: what is wrong though it was listed; at least one, and never the answer. A logit
    difference is the answer's logit minus that of the best of them; a prompt with fewer repeats one.
    `counterfactual_answers` [prompt]: what is right after the counterfactual; None: it has no answer of its own.
    `scenarios` [prompt]: a number for each; prompts of one scenario are not independent, so intervals resample these.
    `queried` [prompt]: which item, from 0, is asked for; accuracies are also told by it. 0 where there is one only.
    `right` [prompt, m]: where several answers are right, the first token of each, `answers` in column 0, which also
    fills a row up. A hit is then any of them, probability is that of all together, the logit difference takes the best.
    `continuations` [prompt, t]: the tokens of the answer after its first, which `evaluate_model` scores and all else
    refuses; -1 behind the last. None: all answers are one token.
    """

    _shown = ("clean_prompts", "lengths", "positions", "scenarios", "queried", "answers", "foils")

    # (tokenizer, clean=, counterfactual=, answers=, foils=, ...): checked pairs of texts; by `tasks.texts`, which is
    # above this room and attaches it.
    from_texts: ClassVar[Callable[..., Pairs]]

    clean_prompts: PromptSet
    counterfactual_prompts: PromptSet
    answers: Int[Tensor, " prompt"]
    foils: Int[Tensor, "prompt k"]
    counterfactual_answers: Int[Tensor, " prompt"] | None
    scenarios: Int[Tensor, " prompt"]
    queried: Int[Tensor, " prompt"]
    right: Int[Tensor, "prompt m"] | None = None  # None: `answers` alone
    continuations: Int[Tensor, "prompt t"] | None = None

    def __post_init__(self) -> None:
        n, clean, other = len(self.clean_prompts), self.clean_prompts, self.counterfactual_prompts
        check_count("Pairs.counterfactual_prompts", other, n)
        if set(clean.positions) != set(other.positions) or list(clean.slot_names) != list(other.slot_names):
            raise InputError(
                f"Pairs.counterfactual_prompts: expected the clean prompts' roles ({', '.join(clean.positions)}) and "
                f"slot_names; got roles {', '.join(other.positions)}, and slot_names that "
                f"{'agree' if list(clean.slot_names) == list(other.slot_names) else 'differ'}: give both the same"
            )
        check_numbers("Pairs.answers", self.answers, (n,), at_least=0)
        check_numbers("Pairs.foils", self.foils, (n, None), at_least=0)
        if self.counterfactual_answers is not None:
            check_numbers("Pairs.counterfactual_answers", self.counterfactual_answers, (n,), at_least=0)
        check_numbers("Pairs.scenarios", self.scenarios, (n,))
        check_numbers("Pairs.queried", self.queried, (n,), at_least=0)
        if self.foils.shape[1] == 0:
            raise InputError("Pairs.foils: expected at least one other listed answer of each prompt; got none")
        self._check_right(n)
        self._check_continuations(n)
        twice = (self.foils[:, :, None] == self.right_answers[:, None]).any(2)
        _check_rows("Pairs.foils", self.foils, twice, "other tokens than the answer")

    def _check_right(self, n_prompts: int) -> None:
        if self.right is None:
            return
        check_numbers("Pairs.right", self.right, (n_prompts, None), at_least=0)
        first = self.right[:, :1]
        if first.shape[1] == 0:
            raise InputError("Pairs.right: expected at least one right answer of each prompt; got none")
        _check_rows("Pairs.right", first, first != self.answers[:, None], "the prompt's answer in the first column")

    def _check_continuations(self, n_prompts: int) -> None:
        if self.continuations is None:
            return
        check_numbers("Pairs.continuations", self.continuations, (n_prompts, None), at_least=-1)
        ended = (self.continuations < 0).cumsum(1) > 0
        _check_rows("Pairs.continuations", self.continuations, ended & (self.continuations >= 0), "-1 behind a -1")
        several = (self.right_answers != self.answers[:, None]).any(1, keepdim=True) & ~ended
        _check_rows("Pairs.continuations", self.continuations, several, "-1, as several answers are right")

    def __len__(self) -> int:
        return len(self.answers)

    def to_pandas(self) -> Any:
        """A row for each pair, in tokens. Raises: InputError if there is no pandas."""
        own = [None] * len(self) if self.counterfactual_answers is None else self.counterfactual_answers.tolist()
        asked = (self.scenarios.tolist(), self.queried.tolist())
        texts = (self.clean_prompts.rows(), self.counterfactual_prompts.rows())
        rows = zip(*asked, *texts, self.answers.tolist(), self.foils.tolist(), own, strict=True)
        return data_frame("scenario queried clean counterfactual answer foils counterfactual_answer", rows)

    def fingerprint(self) -> str:
        """The same for the same content: prompts, counterfactuals, answers and scenarios."""
        both = [self.clean_prompts.fingerprint(), self.counterfactual_prompts.fingerprint()]
        answers = [self.answers, self.foils, self.counterfactual_answers]
        more = [] if self.right is None and self.continuations is None else [self.right, self.continuations]
        return fingerprint_of(both, *answers, self.scenarios, self.queried, *more)

    @property
    def right_answers(self) -> Int[Tensor, "prompt m"]:
        """The first token of every right answer; one may stand more than once."""
        return self.answers[:, None] if self.right is None else self.right

    def check_one_token(self, method: str) -> None:
        """Raises: InputError if an answer has several tokens, of which `method` would see the first alone."""
        several = [] if self.continuations is None else (self.continuations >= 0).any(1).nonzero()[:, 0].tolist()
        if several:
            raise InputError(
                f"{method} compares the next token only, and {len(several)} of {len(self)} answers have several tokens "
                f"(the first in row {several[0]}, from 0): score the first token (`answer_tokens: first` in the task's "
                f"file), or give answers of one token"
            )

    @property
    def clean(self) -> Int[Tensor, "prompt pos"]:
        return self.clean_prompts.tokens

    @property
    def counterfactual(self) -> Int[Tensor, "prompt pos"]:
        return self.counterfactual_prompts.tokens

    @property
    def lengths(self) -> Int[Tensor, " prompt"]:
        return self.clean_prompts.lengths

    @property
    def counterfactual_lengths(self) -> Int[Tensor, " prompt"]:
        return self.counterfactual_prompts.lengths

    @property
    def positions(self) -> Mapping[str, Int[Tensor, " prompt"]]:
        return self.clean_prompts.positions

    @property
    def counterfactual_positions(self) -> Mapping[str, Int[Tensor, " prompt"]]:
        return self.counterfactual_prompts.positions

    def select(self, prompts: Int[Tensor, " chosen"]) -> Pairs:
        """The chosen pairs, in the order given."""
        return selected(self, prompts)


def fingerprint_of(names: Sequence[str], *parts: Tensor | None) -> str:
    """A SHA-256 of names and numbers, in their order."""
    digest = hashlib.sha256(repr(list(names)).encode())
    for part in parts:
        digest.update(b"none" if part is None else repr(tuple(part.shape)).encode())
        digest.update(b"" if part is None else part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def selected(whole: T, rows: Int[Tensor, " chosen"]) -> T:
    """Some rows of a set that was checked, not checked again: sets are selected for every batch."""
    part = copy(whole)
    part.__dict__.update({name: _rows_of(value, rows) for name, value in vars(whole).items()})
    return part


def _rows_of(value: Any, rows: Int[Tensor, " chosen"]) -> Any:
    """Rows of what has some; names of slots, and what is None, are of the whole set."""
    if isinstance(value, Mapping):
        return {name: each[rows] for name, each in value.items()}
    if isinstance(value, PromptSet):
        return value.select(rows)
    return value[rows] if isinstance(value, Tensor) else value


def check_numbers(field: str, values: object, shape: Sequence[int | None], *, at_least: int | None = None) -> None:
    """Raises: InputError unless these are int64 on the CPU, of this shape (None: any size), and none is smaller."""
    if not isinstance(values, Tensor) or values.dtype != torch.int64 or values.device.type != "cpu":
        kind = f"{values.dtype} on {values.device}" if isinstance(values, Tensor) else type(values).__name__
        raise InputError(
            f"{field}: expected an int64 tensor on the CPU; got {kind}: give torch.tensor(..., dtype=int64)"
        )
    same = [n if size is None else size for size, n in zip(shape, values.shape, strict=False)] == list(values.shape)
    if not same or len(shape) != values.dim():
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(f"{field}: expected the shape [{sizes}]; got {list(values.shape)}: correct it")
    if at_least is not None:
        _check_rows(field, values, values < at_least, f"numbers from {at_least}")


def check_count(field: str, prompts: PromptSet, n_prompts: int) -> None:
    """Raises: InputError unless there are so many prompts."""
    if len(prompts) != n_prompts:
        raise InputError(f"{field}: expected {n_prompts} prompts, one for each of the others; got {len(prompts)}")


def _check_rows(
    field: str,
    values: Int[Tensor, " prompt *any"],
    wrong: Bool[Tensor, " prompt *any"],
    expected: str,
    advice: str = "correct it",
) -> None:
    """Raises: InputError naming the first value that is wrong."""
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        raise InputError(f"{field}, row {place[0]} (from 0): expected {expected}; got {int(values[*place])}: {advice}")


@dataclass(frozen=True)
class Bucket:
    """Prompts of one length whose roles sit at the same positions, so that every tensor is dense."""

    prompts: Int[Tensor, " prompt"]  # which prompts of the set
    length: int
    positions: Mapping[str, int]


def buckets(
    prompts: PromptSet, roles: Sequence[str], largest: int | None = None, *, same_slots: bool = False
) -> list[Bucket]:
    """Every prompt once, grouped by length and by the positions of `roles`, at most `largest` together.

    With `same_slots`, prompts of a bucket also have the same slot at every position.
    """
    keys = [prompts.lengths, *(prompts.positions[role] for role in roles)]
    if same_slots:
        keys.append(torch.unique(prompts.slots, dim=0, return_inverse=True)[1])
    kinds, member = torch.unique(torch.stack(keys, dim=1), dim=0, return_inverse=True)
    return [
        Bucket(part, int(kind[0]), dict(zip(roles, kind[1 : 1 + len(roles)].tolist(), strict=True)))
        for i, kind in enumerate(kinds)
        for part in torch.split((member == i).nonzero()[:, 0], largest or len(prompts))
    ]


def halves(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """The pairs in two parts that share no scenario; every other scenario, and so of each queried item.

    Raises: InputError if there are fewer than four scenarios.
    """
    queried: dict[int, int] = {}  # of each scenario's first prompt
    for scenario, item in zip(pairs.scenarios.tolist(), pairs.queried.tolist(), strict=True):
        queried.setdefault(scenario, item)
    if len(queried) < 4:
        raise InputError(f"two halves need at least 4 scenarios; got {len(queried)}; sample more prompts")
    ordered = sorted(queried, key=lambda scenario: (queried[scenario], scenario))
    in_first = torch.isin(pairs.scenarios, torch.tensor(ordered[::2]))
    return pairs.select(in_first.nonzero()[:, 0]), pairs.select((~in_first).nonzero()[:, 0])
