"""Edits as data: where, what, and by what it is replaced.

Every method of circuitdiff builds edits and hands them to an executor; no method sees a hook.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

What = Literal["z", "q", "k", "v"]


@dataclass(frozen=True)
class Edit:
    """Replace what some heads of one layer carry at one position, in some variants of a run.

    The value becomes keep * (its own value in this run) + (1 - keep) * replacement; without `keep`, the replacement.
    Heads are query heads throughout: where query heads share a key or value, only the named ones see the edit.
    `read_at`, for k and v: only queries at that position see the edit; None: all later ones.
    """

    layer: int
    what: What
    at: int
    heads: Int[Tensor, " edited"]
    variants: Int[Tensor, " some"]
    replacement: Float[Tensor, "#some #prompt edited d_head"]
    keep: Float[Tensor, "#some edited"] | None = None
    read_at: int | None = None

    def __post_init__(self) -> None:
        assert self.read_at is None or self.what in ("k", "v"), "only a key or value is read by other positions"

    @property
    def first_changed(self) -> int:
        """The first position whose residual stream the edit can change."""
        return self.at if self.read_at is None else self.read_at


@dataclass(frozen=True)
class Site:
    """What some heads of one layer carry at one position, to be read off."""

    layer: int
    what: What
    at: int
    heads: Int[Tensor, " wanted"]


def replace(
    own: Float[Tensor, "variant prompt head d_head"], edit: Edit, rows: Int[Tensor, " some"]
) -> Float[Tensor, "variant prompt head d_head"]:
    """`own` after the edit, out of place; `rows` says where in `own` the edit's variants are."""
    n_prompts = own.shape[1]
    index = (
        rows[:, None, None],
        torch.arange(n_prompts, device=own.device)[None, :, None],
        edit.heads[None, None, :],
    )
    new = edit.replacement
    if edit.keep is not None:
        keep = edit.keep[:, None, :, None]
        new = keep * own[index] + (1 - keep) * new
    return own.index_put(index, new.expand(len(rows), n_prompts, *new.shape[2:]))
