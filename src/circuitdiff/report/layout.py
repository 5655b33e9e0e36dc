"""Where the drawing of a circuit puts things: columns for tokens, dots for heads, curves for links."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_TOKENS = 64  # a longer prompt is cut to the tokens near its roles
NEAR = 3
DOT = 0.75  # columns between two heads of one layer and role
BOW = 3.0  # columns that a link within one column bends aside

Point = tuple[float, float]


@dataclass(frozen=True)
class Column:
    """One token across, or `…` for tokens left out; `position` is None for those."""

    position: int | None
    text: str
    centre: float
    width: float


def kept_positions(n_tokens: int, roles: Iterable[int]) -> list[int | None]:
    """All positions of a short prompt; of a long one those near a role, with None for each gap."""
    if n_tokens <= MOST_TOKENS:
        return list(range(n_tokens))
    near = {p + d for p in [0, n_tokens - 1, *roles] for d in range(-NEAR, NEAR + 1)}
    kept: list[int | None] = []
    for position in range(n_tokens):
        if position in near:
            kept.append(position)
        elif kept[-1] is not None:
            kept.append(None)
    return kept


def columns(tokens: Sequence[str], roles: Iterable[int], most_heads: dict[int, int]) -> list[Column]:
    """The tokens left to right; a column is as wide as the most heads that it holds in one layer."""
    placed, edge = [], 0.0
    for position in kept_positions(len(tokens), roles):
        text = "…" if position is None else visible(tokens[position])
        heads = 1 if position is None else most_heads.get(position, 1)
        width = 1.0 if heads <= 1 else 1.0 + (heads - 1) * DOT
        placed.append(Column(position, text, edge + width / 2, width))
        edge += width
    return placed


def visible(token: str) -> str:
    """The token without surrounding space; a token of nothing but space as a sign for it."""
    return token.strip() or ("↵" if "\n" in token else "␣")


def fan(heads: Sequence[tuple[int, int]]) -> list[float]:
    """Sideways offsets that keep heads of one layer apart, centred, in the order of their index."""
    offsets = [0.0] * len(heads)
    for layer in {layer for layer, _ in heads}:
        row = sorted((index, place) for place, (at, index) in enumerate(heads) if at == layer)
        for rank, (_, place) in enumerate(row):
            offsets[place] = (rank - (len(row) - 1) / 2) * DOT
    return offsets


def curve(start: Point, end: Point, bend: float, n_points: int = 24) -> list[Point]:
    """A quadratic Bezier curve from `start` to `end`, its middle pulled `bend` sideways."""
    middle = ((start[0] + end[0]) / 2 + bend, (start[1] + end[1]) / 2)
    return [_bezier(start, middle, end, i / (n_points - 1)) for i in range(n_points)]


def _bezier(start: Point, middle: Point, end: Point, t: float) -> Point:
    weights = ((1 - t) ** 2, 2 * t * (1 - t), t**2)
    x, y = (sum(w * p[axis] for w, p in zip(weights, (start, middle, end), strict=True)) for axis in (0, 1))
    return x, y


def heading(before: Point, after: Point, column_px: float, layer_px: float) -> float:
    """Direction of travel on screen in degrees, clockwise from straight up."""
    return math.degrees(math.atan2((after[0] - before[0]) * column_px, (after[1] - before[1]) * layer_px))
