"""Edits as data: where, what, and by what it is replaced.

Every method of circuitdiff builds edits and hands them to an executor; no method sees a hook.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as with_fields
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

What = Literal["z", "q", "k", "v", "pattern", "contribution"]


@dataclass(frozen=True)
class Edit:
    """Replace what some heads of one layer carry at one position, in some variants of a run.

    The value becomes keep * (its own value in this run) + (1 - keep) * replacement; without `keep`, the replacement.
    Heads are query heads throughout: where query heads share a key or value, only the named ones see the edit.
    `read_at`, for k and v: only queries at that position see the edit; None: all later ones.

    A "pattern" is what a head's query at `at` gives to each position of the prompt; the values are the run's own. A
    "contribution" is what a head writes into the residual stream: its z after the output projection, less the bias.
    """

    layer: int
    what: What
    at: int
    heads: Int[Tensor, " edited"]
    variants: Int[Tensor, " some"]
    replacement: Float[Tensor, "#some #prompt edited width"]  # d_head; the prompt's length; or d_model
    keep: Float[Tensor, "#some #prompt edited"] | None = None
    read_at: int | None = None

    def __post_init__(self) -> None:
        assert self.read_at is None or self.what in ("k", "v"), "only a key or value is read by other positions"
        assert self.keep is None or self.what != "contribution", "a contribution is replaced as a whole"

    @property
    def first_changed(self) -> int:
        """The first position whose residual stream the edit can change."""
        return self.at if self.read_at is None else self.read_at


@dataclass(frozen=True)
class Knockout:
    """Queries of some heads at one position do not see some keys: their scores are -inf before the softmax."""

    what: ClassVar = "knockout"

    layer: int
    at: int  # the queries' position
    heads: Int[Tensor, " edited"]
    variants: Int[Tensor, " some"]
    blocked: Bool[Tensor, "#some #prompt pos"]

    @property
    def first_changed(self) -> int:
        """The first position whose residual stream the knockout can change."""
        return self.at


@dataclass(frozen=True)
class ResidualEdit:
    """Replace the residual stream that enters one layer at one position, in some variants of a run."""

    what: ClassVar = "resid_pre"

    layer: int
    at: int
    variants: Int[Tensor, " some"]
    replacement: Float[Tensor, "#some #prompt d_model"]

    @property
    def first_changed(self) -> int:
        """The first position whose residual stream the edit can change."""
        return self.at


@dataclass(frozen=True)
class MlpEdit:
    """Replace what one layer's MLP adds to the residual stream at one position, in some variants of a run.

    What it adds is defined in `engine.mlp`.
    """

    what: ClassVar = "mlp_out"

    layer: int
    at: int
    variants: Int[Tensor, " some"]
    replacement: Float[Tensor, "#some #prompt d_model"]

    @property
    def first_changed(self) -> int:
        """The first position whose residual stream the edit can change."""
        return self.at


AnyEdit = Edit | Knockout | ResidualEdit | MlpEdit
SenderEdit = Edit | MlpEdit  # what a frozen run can have: of z, or of what an MLP adds


@dataclass(frozen=True)
class Site:
    """What some heads of one layer carry at one position, to be read off."""

    layer: int
    what: What
    at: int
    heads: Int[Tensor, " wanted"]


def replace(
    own: Float[Tensor, "variant prompt head width"], edit: Edit, rows: Int[Tensor, " some"]
) -> Float[Tensor, "variant prompt head width"]:
    """`own` after the edit, out of place; `rows` says where in `own` the edit's variants are."""
    n_prompts = own.shape[1]
    index = (
        rows[:, None, None],
        torch.arange(n_prompts, device=own.device)[None, :, None],
        edit.heads[None, None, :],
    )
    new = edit.replacement
    if edit.keep is not None:
        keep = edit.keep[..., None]
        new = keep * own[index] + (1 - keep) * new
    return own.index_put(index, new.expand(len(rows), n_prompts, *new.shape[2:]))


def replace_residual(
    own: Float[Tensor, "variant prompt pos d_model"], edit: ResidualEdit | MlpEdit, rows: Int[Tensor, " some"], at: int
) -> Float[Tensor, "variant prompt pos d_model"]:
    """`own` after the edit, out of place; `rows` says where in `own` its variants are, and `at` its position."""
    new = edit.replacement.to(own.device).expand(len(rows), own.shape[1], -1)
    return own.select_scatter(own[:, :, at].index_copy(0, rows, new), dim=2, index=at)


def pattern_as_z(edit: Edit, values: Float[Tensor, "#some prompt edited pos d_head"]) -> Edit:
    """The edit of z at the query's position that does what an edit of its pattern does, given the values it sees.

    Exact with `keep`, too: z is linear in the pattern.
    """
    z = (edit.replacement[..., None, :] @ values)[..., 0, :]
    return with_fields(edit, what="z", replacement=z)


def without_contribution(edit: Edit, z: Float[Tensor, "*any d_head"]) -> Edit:
    """The edit of z that takes away what the heads write, before something else is added in its place."""
    return with_fields(edit, what="z", replacement=z.new_zeros(1, 1, len(edit.heads), z.shape[-1]))
