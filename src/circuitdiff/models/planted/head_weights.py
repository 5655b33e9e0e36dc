"""What one head computes, in features: scores that add up, and moves from subspace to subspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.models.planted.space import D_MODEL

D_HEAD = 24


@dataclass(frozen=True)
class HeadWeights:
    """One head's weights; queries have a bias."""

    q: Float[Tensor, "d_model d_head"]
    q_bias: Float[Tensor, " d_head"]
    k: Float[Tensor, "d_model d_head"]
    v: Float[Tensor, "d_model d_head"]
    o: Float[Tensor, "d_head d_model"]


@dataclass(frozen=True)
class Score:
    """A part of the attention score: `gain` times the product of query and key features.

    Without a `query`, `gain` times the key's feature, from every position.
    """

    gain: float
    query: Float[Tensor, "d_model n"] | None
    key: Float[Tensor, "d_model n"]


@dataclass(frozen=True)
class Move:
    """A part of the output: the features read at the attended position, written elsewhere."""

    read: Float[Tensor, "d_model n"]
    write: Float[Tensor, "n d_model"]


def wire(scores: Sequence[Score], moves: Sequence[Move]) -> HeadWeights:
    """The head whose scores and outputs are the sums of these parts."""
    q, q_bias, k = zip(*(_query_and_key(score) for score in scores), strict=True)
    return HeadWeights(
        q=_padded(torch.cat(q, dim=1)),
        q_bias=_padded(torch.cat(q_bias)[None])[0],
        k=_padded(torch.cat(k, dim=1)),
        v=_padded(torch.cat([move.read for move in moves], dim=1)),
        o=_padded(torch.cat([move.write for move in moves]).T).T,
    )


def _query_and_key(score: Score) -> tuple[Tensor, Tensor, Tensor]:
    gain = score.gain * D_HEAD**0.5  # attention divides by sqrt(d_head)
    n = score.key.shape[1]
    if score.query is None:
        return torch.zeros(D_MODEL, n, dtype=torch.float64), torch.full((n,), gain, dtype=torch.float64), score.key
    return gain * score.query, torch.zeros(n, dtype=torch.float64), score.key


def _padded(columns: Float[Tensor, "rows n"]) -> Float[Tensor, "rows d_head"]:
    """Raises: ValueError if the parts need more dimensions than a head has."""
    missing = D_HEAD - columns.shape[1]
    if missing < 0:
        raise ValueError(f"a planted head has {D_HEAD} dimensions; its parts need {columns.shape[1]}")
    return torch.nn.functional.pad(columns, (0, missing))


def rotated(head: HeadWeights, rotation: Float[Tensor, "d_head d_head"]) -> HeadWeights:
    """The same function with z in another basis."""
    return HeadWeights(head.q, head.q_bias, head.k, head.v @ rotation, rotation.T @ head.o)
