"""A circuit drawn over a prompt: tokens across, layers up, heads at their role's column, arrows for its stages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import altair as alt
import numpy as np

from circuitdiff.circuit import Circuit, Head
from circuitdiff.report import charts
from circuitdiff.study.sections.discovery import Sweep

MOST_TOKENS = 64  # a longer prompt is cut to the tokens near its roles
NEAR = 3
COLUMN_PX = 14.0
DOT = 0.75  # columns between two heads of one layer and role
BOW = 3.0  # columns that a link within one column bends aside
_CURVE = 24  # points of a link's curve
LONG = 6.0  # columns: a longer link has room for its words halfway, a shorter one has them beside its senders


class Point(NamedTuple):
    x: float
    y: float


@dataclass(frozen=True)
class Column:
    """One token across, or `…` for tokens left out; `position` is -1 for those."""

    position: int
    text: str
    centre: float
    width: float


@dataclass(frozen=True)
class Scene:
    """A circuit with the prompt that it is drawn over."""

    circuit: Circuit
    n_layers: int
    stages: Sequence[Sweep]
    tokens: Sequence[str]
    roles: Mapping[str, int]  # only roles that the prompt has

    @property
    def placed_groups(self) -> list[str]:
        return [name for name, group in self.circuit.groups.items() if group.heads and group.at in self.roles]

    def heads_at(self, position: int) -> list[tuple[Head, str]]:
        """The heads drawn at a token, each with its group; two roles may share the token."""
        groups = ((name, self.circuit.groups[name]) for name in self.placed_groups)
        return [(head, name) for name, group in groups if self.roles[group.at] == position for head in group.heads]

    @property
    def columns(self) -> list[Column]:
        """The tokens left to right; a column is as wide as the most heads that it holds in one layer."""
        placed, edge = [], 0.0
        for position in kept_positions(len(self.tokens), self.shown_roles.values()):
            in_layer = Counter(head.layer for head, _ in self.heads_at(position))
            width = 1.0 + (max(in_layer.values(), default=1) - 1) * DOT
            text = "…" if position < 0 else visible(self.tokens[position])
            placed.append(Column(position, text, edge + width / 2, width))
            edge += width
        return placed

    @property
    def shown_roles(self) -> dict[str, int]:
        """The roles at which this circuit sends or receives, in the prompt's order."""
        named = {*self.circuit.roles, *(role for stage in self.stages for role in (stage.at, stage.receivers_at))}
        return {role: p for role, p in sorted(self.roles.items(), key=lambda item: item[1]) if role in named}

    @property
    def layer_px(self) -> float:
        return min(max(220, 13 * self.n_layers), 480) / (self.n_layers + 1)

    @property
    def colour(self) -> alt.Color:
        return charts.colour("group", self.placed_groups, "group", symbolType="circle", symbolOpacity=1)

    def centre(self, role: str) -> float:
        return next(column.centre for column in self.columns if column.position == self.roles[role])


def scene_of(
    circuit: Circuit, stages: Sequence[Sweep], n_layers: int, tokens: Sequence[str], roles: Mapping[str, int]
) -> Scene | None:
    """None without a head that has a place in the prompt."""
    scene = Scene(circuit, n_layers, stages, tokens, {role: p for role, p in roles.items() if 0 <= p < len(tokens)})
    return scene if scene.placed_groups else None


def kept_positions(n_tokens: int, roles: Iterable[int]) -> list[int]:
    """All positions of a short prompt; of a long one those near a role, with -1 for each gap."""
    if n_tokens <= MOST_TOKENS:
        return list(range(n_tokens))
    near = {p + d for p in [0, n_tokens - 1, *roles] for d in range(-NEAR, NEAR + 1)}
    kept: list[int] = []
    for position in range(n_tokens):
        if position in near:
            kept.append(position)
        elif kept[-1] >= 0:
            kept.append(-1)
    return kept


def visible(token: str) -> str:
    """The token without surrounding space; a token of nothing but space as a sign for it."""
    return token.strip() or ("↵" if "\n" in token else "␣")


def circuit_drawing(name: str, scene: Scene) -> charts.Figure:
    """Dots are heads, coloured by group; an arrow leads from a group to the one that receives it."""
    columns = scene.columns
    total = columns[-1].centre + columns[-1].width / 2
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, total], nice=False, zero=False))
    y_scale = alt.Scale(domain=[-0.5, scene.n_layers + 0.5], nice=False, zero=False)
    ticks = list(range(0, scene.n_layers, max(1, -(-scene.n_layers // 16))))
    y = alt.Y("y:Q", title="layer", scale=y_scale, axis=alt.Axis(values=ticks, domain=False, ticks=False))
    height = scene.layer_px * (scene.n_layers + 1)
    layers = [*_prompt(scene, x, height), _dots(scene, x, y), *_links(scene, total / 2, x, y)]
    missing = [group for group in scene.circuit.groups if group not in scene.placed_groups]
    subtitle = "dots are heads at their role's token; arrows lead from senders to receivers"
    note = [f"not drawn, having no head or no place in this prompt: {', '.join(missing)}"] if missing else []
    return charts.finish(layers, f"Circuit: {name}", [subtitle, *note], width=total * COLUMN_PX, height=height)


def _prompt(scene: Scene, x: alt.X, height: float) -> list[alt.Chart]:
    rows = [
        {
            "x": column.centre,
            "left": column.centre - column.width / 2,
            "right": column.centre + column.width / 2,
            "token": column.text,
            "role": ", ".join(role for role, position in scene.shown_roles.items() if position == column.position),
        }
        for column in scene.columns
    ]
    base = alt.Chart(charts.inline(rows))
    roles = base.transform_filter(alt.datum.role != "")
    left, text = alt.X("left:Q", axis=None), {"fontSize": 11, "baseline": "middle"}
    bands = roles.mark_rect(color=charts.FAINT, opacity=0.7)
    tokens = base.mark_text(**text, angle=270, align="right", color=charts.INK)
    names = roles.mark_text(**text, angle=325, align="left", color=charts.MUTED)
    return [
        bands.encode(x=left, x2="right:Q", y=alt.value(0), y2=alt.value(height)),
        tokens.encode(x=x, y=alt.value(height + 6), text="token:N"),
        names.encode(x=x, y=alt.value(-8), text="role:N"),
    ]


def _dots(scene: Scene, x: alt.X, y: alt.Y) -> alt.Chart:
    rows = []
    for column in scene.columns:
        members = scene.heads_at(column.position)
        for (head, group), offset in zip(members, _fan([head for head, _ in members]), strict=True):
            place = {"x": column.centre + offset, "y": head.layer}
            rows.append(place | {"head": str(head), "group": group, "role": scene.circuit.groups[group].at})
    dots = alt.Chart(charts.inline(rows)).mark_point(filled=True, size=75, opacity=1, stroke="white", strokeWidth=1)
    return dots.encode(x=x, y=y, color=scene.colour, tooltip=charts.tips("head", "group", "role"))


def _fan(heads: Sequence[Head]) -> list[float]:
    """Sideways offsets that keep heads of one layer apart, centred, in the order of their index."""
    offsets = [0.0] * len(heads)
    for layer in {head.layer for head in heads}:
        row = sorted((head.index, place) for place, head in enumerate(heads) if head.layer == layer)
        for rank, (_, place) in enumerate(row):
            offsets[place] = (rank - (len(row) - 1) / 2) * DOT
    return offsets


def _links(scene: Scene, middle: float, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """One arrow per stage whose senders and receivers both have a place, with what it goes through."""
    linked = [(stage, *places) for stage in scene.stages if (places := _ends(scene, stage))]
    rows = [_link(scene, middle, number, *link) for number, link in enumerate(linked)]
    if not rows:
        return []
    paths = alt.Chart(charts.inline([point for row in rows for point in row["path"]]))
    ends = alt.Chart(charts.inline([row["arrow"] for row in rows]))
    lines = paths.mark_line(strokeWidth=2, opacity=0.75)
    arrows = ends.mark_point(shape="triangle-up", size=90, opacity=1, filled=True)
    angle, tips = alt.Angle("angle:Q", scale=None), charts.tips("group", what="")
    return [
        lines.encode(x=x, y=y, color=scene.colour, detail="link:N", order="order:Q"),
        arrows.encode(x=x, y=y, color=scene.colour, angle=angle, tooltip=tips),
        *(label for align in ("left", "right", "center") for label in _labels(rows, align, x, y)),
    ]


def _link(scene: Scene, middle: float, number: int, stage: Sweep, start: Point, end: Point) -> dict:
    side = -1 if start.x > middle else 1
    upright, long = start.x == end.x, abs(start.x - end.x) > LONG
    path = _curve(start, end, BOW * side if upright else 0.0)
    what = f"via {stage.via}" if stage.via else "to the output"
    shared = {"group": stage.name, "link": number, "what": what}
    halfway, beside = path[len(path) // 2], Point(start.x + side * 1.2, start.y)
    words = Point(halfway.x + 0.4 * side, halfway.y) if upright else halfway if long else beside
    before, after = path[-4], path[-1]  # the arrow's angle, on screen: clockwise from straight up
    angle = math.degrees(math.atan2((after.x - before.x) * COLUMN_PX, (after.y - before.y) * scene.layer_px))
    return {
        "align": "center" if long else "left" if side > 0 else "right",
        "path": [{**shared, **point._asdict(), "order": order} for order, point in enumerate(path)],
        "arrow": {**shared, **path[-2]._asdict(), "angle": angle},
        "label": {**shared, **words._asdict()},
    }


def _ends(scene: Scene, stage: Sweep) -> tuple[Point, Point] | None:
    """From the middle of the sending group to the middle of the receiving one, or to the output."""
    if stage.name not in scene.placed_groups:
        return None
    start = _middle(scene, stage.name)
    if stage.receivers_from is None:
        return None if stage.receivers else (start, Point(start.x, float(scene.n_layers)))
    if stage.receivers_from not in scene.placed_groups:
        return None
    return start, _middle(scene, stage.receivers_from)


def _middle(scene: Scene, group: str) -> Point:
    heads = scene.circuit.groups[group].heads
    return Point(scene.centre(scene.circuit.groups[group].at), sum(head.layer for head in heads) / len(heads))


def _curve(start: Point, end: Point, bend: float) -> list[Point]:
    """A quadratic Bezier curve from `start` to `end`, its middle pulled `bend` sideways."""
    t = np.arange(_CURVE)[:, None] / (_CURVE - 1)
    middle = ((start.x + end.x) / 2 + bend, (start.y + end.y) / 2)
    points = (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(middle) + t**2 * np.array(end)
    return [Point(*point) for point in points.tolist()]


def _labels(rows: list[dict], align: str, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """The words on a white halo, so that they can be read across lines."""
    chosen = [row["label"] for row in rows if row["align"] == align]
    base = alt.Chart(charts.inline(chosen)).encode(x=x, y=y, text="what:N")
    text = {"align": align, "dy": -9, "fontSize": 11, "baseline": "middle"}
    halo = base.mark_text(**text, stroke="white", strokeWidth=4, strokeJoin="round", color="white")
    return [halo, base.mark_text(**text, color=charts.INK)] if chosen else []
