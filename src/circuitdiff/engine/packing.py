"""Prompts that begin alike, in one row: the tokens that they share once, then each prompt's own.

Questions about one scenario have most of their tokens in common, so a row of several costs little more than one prompt.
Each token sees those of its own prompt, at the positions that they have there: what comes out is what the prompts give
one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdiff.engine.attention import AttentionCall, attend
from circuitdiff.prompts import PromptSet, buckets

LONGEST = 2  # a row, in lengths of a prompt: attention grows with its square
_MOST = 4  # prompts in rows that run together, in `at_once`: each has logits


@dataclass(frozen=True)
class Pack:
    """Rows of one shape: prompts of one length, equally many to a row, with equally many tokens in common."""

    prompts: Int[Tensor, "row member"]  # which prompts of the set
    length: int
    n_shared: int  # less than the length: the last token is each prompt's own

    @cached_property
    def positions(self) -> Int[Tensor, " place"]:
        """Where the token in each place of a row sits in its prompt."""
        own = torch.arange(self.n_shared, self.length)
        return torch.cat([torch.arange(self.n_shared), own.repeat(self.prompts.shape[1])])

    @cached_property
    def ends(self) -> Int[Tensor, " member"]:
        """The place of each prompt's last token."""
        members = torch.arange(1, self.prompts.shape[1] + 1)
        return self.n_shared + members * (self.length - self.n_shared) - 1

    def join(self, each: Float[Tensor, "prompt pos d_model"]) -> Float[Tensor, "row place d_model"]:
        """Rows from the prompts one by one, in the order of `prompts`."""
        rows = each.unflatten(0, self.prompts.shape)
        return torch.cat([rows[:, 0, : self.n_shared], rows[:, :, self.n_shared :].flatten(1, 2)], dim=1)

    def attend(self, call: AttentionCall) -> Float[Tensor, "row place head d_head"]:
        """z, where each token sees those of its own prompt only; `call.allowed` is by places and positions."""
        keys = self.positions.to(call.allowed.device)
        return attend(replace(call, allowed=call.allowed[..., keys] & self._together.to(call.allowed.device)))

    @cached_property
    def _together(self) -> Bool[Tensor, "place place"]:
        """The key belongs to the query's prompt, as shared ones do to all. What comes later the model's mask bars."""
        members = torch.arange(self.prompts.shape[1]).repeat_interleave(self.length - self.n_shared)
        shared = torch.full((self.n_shared,), -1)
        member = torch.cat([shared, members])
        return (member == -1) | (member[:, None] == member)


def packs(prompts: PromptSet, at_once: int) -> Iterator[Pack]:
    """Every prompt once; as many rows together as have the tokens of `at_once` prompts, and few times so many prompts.

    Prompts that agree in the first half of their tokens share a row, as long as it stays short.
    """
    for bucket in buckets(prompts, []):
        rows: dict[tuple[int, int], list[Tensor]] = {}
        for alike, n_shared in _alike(prompts.tokens[bucket.prompts, : bucket.length]):
            n_members = min(_MOST * at_once, (LONGEST * bucket.length - n_shared) // (bucket.length - n_shared))
            for members in alike.split(n_members):
                rows.setdefault((len(members), n_shared), []).append(bucket.prompts[members])
        for (n_members, n_shared), some in rows.items():
            whole = Pack(torch.stack(some), bucket.length, n_shared)
            n_rows = min(at_once * bucket.length // len(whole.positions), _MOST * at_once // n_members)
            for part in whole.prompts.split(max(1, n_rows)):
                yield replace(whole, prompts=part)


def _alike(tokens: Int[Tensor, "prompt pos"]) -> Iterator[tuple[Int[Tensor, " some"], int]]:
    """Prompts that begin alike, and in how many tokens they do."""
    length = tokens.shape[1]
    _, kind = torch.unique(tokens[:, : max(1, length // 2)], dim=0, return_inverse=True)
    for i in range(int(kind.max()) + 1):
        some = (kind == i).nonzero()[:, 0]
        agree = (tokens[some] == tokens[some[0]]).all(0)
        yield some, min(int(agree.long().cumprod(0).sum()), length - 1)
