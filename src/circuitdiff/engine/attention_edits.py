"""Edits of what happens inside an attention layer: keys that a query does not see, patterns, contributions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace as with_fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitdiff.engine.edits import Edit, Knockout
from circuitdiff.errors import InputError


def block(
    allowed: Bool[Tensor, " variant #prompt head query pos"],  # the leading space keeps ruff from unquoting it
    knockout: Knockout,
    rows: Int[Tensor, " some"],
    query: int,
) -> Bool[Tensor, "variant prompt head query pos"]:
    """`allowed` without the knockout's keys; `rows` says where its variants are, `query` where its query is.

    Raises: InputError if the query sees no key any more: its softmax would have nothing to share out.
    """
    n_prompts = max(allowed.shape[1], knockout.blocked.shape[1])
    allowed = allowed.expand(-1, n_prompts, -1, -1, -1)
    index = (
        rows[:, None, None],
        torch.arange(n_prompts, device=rows.device)[None, :, None],
        knockout.heads.to(rows.device)[None, None, :],
        torch.tensor(query, device=rows.device),
    )
    seen = allowed[index] & ~knockout.blocked.to(rows.device)[:, :, None]
    if not seen.any(-1).all():
        raise InputError(
            f"the query at position {knockout.at} sees no key any more in layer {knockout.layer}: it cannot attend to "
            f"nothing; block fewer keys"
        )
    return allowed.index_put(index, seen)


def pattern_as_z(edit: Edit, values: Float[Tensor, "#some prompt edited pos d_head"]) -> Edit:
    """The edit of z at the query's position that does what an edit of its pattern does, given the values it sees.

    Exact with `keep`, too: z is linear in the pattern.
    """
    z = (edit.replacement[..., None, :] @ values)[..., 0, :]
    return with_fields(edit, what="z", replacement=z)


def without_contribution(edit: Edit, z: Float[Tensor, "*any d_head"]) -> Edit:
    """The edit of z that takes away what the heads write, before something else is added in its place."""
    return with_fields(edit, what="z", replacement=z.new_zeros(1, 1, len(edit.heads), z.shape[-1]))


@contextmanager
def edited_output(attention: nn.Module, edited: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While this lasts, `edited` changes what an attention module writes into the residual stream."""

    def hook(_: nn.Module, __: tuple[Any, ...], output: tuple[Any, ...]) -> tuple[Any, ...]:
        return (edited(output[0]), *output[1:])

    handle = attention.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
