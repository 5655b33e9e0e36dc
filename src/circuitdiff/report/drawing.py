"""The circuit drawn over the prompt: tokens across, layers up, heads at their role's column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import altair as alt

from circuitdiff.circuit import Circuit
from circuitdiff.report.layout import BOW, Column, Point, columns, curve, fan, heading
from circuitdiff.report.look import CATEGORIES, FAINT, INK, MUTED, Figure, finish, inline

COLUMN_PX = 15
OUTPUT = "output"
LABEL_ALIGN: tuple[tuple[int, Literal["left", "right"]], ...] = ((-1, "right"), (1, "left"))


@dataclass(frozen=True)
class Scene:
    """A circuit with the prompt that it is drawn over."""

    circuit: Circuit
    n_layers: int
    stages: Sequence[dict]
    tokens: Sequence[str]
    roles: Mapping[str, int]  # only roles that the prompt has

    @property
    def placed_groups(self) -> list[str]:
        return [name for name, group in self.circuit.groups.items() if group.heads and group.at in self.roles]

    @property
    def columns(self) -> list[Column]:
        most: dict[int, int] = {}
        for name in self.placed_groups:
            at = self.circuit.groups[name].at
            together = Counter(head.layer for head in self.circuit.heads_at(at))
            most[self.roles[at]] = max(together.values())
        return columns(self.tokens, self.shown_roles.values(), most)

    @property
    def shown_roles(self) -> dict[str, int]:
        """The roles at which this circuit sends or receives, in the prompt's order."""
        named = set(self.circuit.roles) | {s.get(key) for s in self.stages for key in ("at", "receivers_at")}
        return {role: p for role, p in sorted(self.roles.items(), key=lambda item: item[1]) if role in named}

    @property
    def layer_px(self) -> float:
        return min(max(220, 13 * self.n_layers), 480) / (self.n_layers + 1)


def scene(results: dict, circuit: str) -> Scene | None:
    """What is to be drawn for `circuit`, or None without an example or without a head that has a place."""
    example, named = results.get("example") or {}, results["circuits"][circuit]
    tokens, roles = example.get("tokens") or [], example.get("roles") or {}
    known = Circuit.from_dict(named, source=f"circuit {circuit!r} in the results")
    model = (results.get("models") or {}).get(named.get("model")) or {}
    highest = max((head.layer for group in known.groups.values() for head in group.heads), default=0)
    stages = ((results.get("discovery") or {}).get(circuit) or {}).get("stages") or []
    found = Scene(
        known,
        max(model.get("n_layers") or 0, highest + 1),
        stages,
        tokens,
        {role: at for role, at in roles.items() if isinstance(at, int) and 0 <= at < len(tokens)},
    )
    return found if found.placed_groups else None


def circuit_drawing(name: str, scene: Scene) -> Figure:
    """Dots are heads, coloured by group; an arrow leads from a group to the one that receives it."""
    placed = scene.columns
    total = placed[-1].centre + placed[-1].width / 2
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, total], nice=False, zero=False))
    y_scale = alt.Scale(domain=[-0.5, scene.n_layers + 0.5], nice=False, zero=False)
    ticks = list(range(0, scene.n_layers, max(1, -(-scene.n_layers // 16))))
    y = alt.Y("y:Q", title="layer", scale=y_scale, axis=alt.Axis(values=ticks, domain=False, ticks=False))
    height = scene.layer_px * (scene.n_layers + 1)
    layers = [*_prompt(scene, placed, x, height), *_links(scene, placed, x, y), _dots(scene, placed, x, y)]
    size = {"width": total * COLUMN_PX, "height": height}
    missing = [n for n in scene.circuit.groups if n not in scene.placed_groups]
    subtitle = "dots are heads at their role's token; arrows lead from senders to receivers"
    note = [f"not drawn, having no head or no place in this prompt: {', '.join(missing)}"] if missing else []
    return finish(layers, size, f"Circuit: {name}", [subtitle, *note])


def _prompt(scene: Scene, placed: list[Column], x: alt.X, height: float) -> list[alt.Chart]:
    shown: dict[int, list[str]] = {}
    for role, position in scene.shown_roles.items():
        shown.setdefault(position, []).append(role)
    rows = [
        {
            "x": column.centre,
            "left": column.centre - column.width / 2,
            "right": column.centre + column.width / 2,
            "token": column.text,
            "role": ", ".join(shown.get(-1 if column.position is None else column.position, [])),
        }
        for column in placed
    ]
    base = alt.Chart(inline(rows))
    roles = base.transform_filter(alt.datum.role != "")
    bands = roles.mark_rect(color=FAINT, opacity=0.7).encode(
        x=alt.X("left:Q", axis=None), x2="right:Q", y=alt.value(0), y2=alt.value(height)
    )
    text = {"fontSize": 11, "baseline": "middle"}
    tokens = base.mark_text(**text, angle=270, align="right", color=INK).encode(
        x=x, y=alt.value(height + 6), text="token:N"
    )
    names = roles.mark_text(**text, angle=325, align="left", color=MUTED).encode(x=x, y=alt.value(-8), text="role:N")
    return [bands, tokens, names]


def _centre(scene: Scene, placed: list[Column], role: str) -> float:
    return next(column.centre for column in placed if column.position == scene.roles[role])


def _dots(scene: Scene, placed: list[Column], x: alt.X, y: alt.Y) -> alt.Chart:
    rows = [row for role in scene.circuit.roles if role in scene.roles for row in _dots_at(scene, placed, role)]
    chart = alt.Chart(inline(rows)).mark_point(filled=True, size=75, opacity=1, stroke="white", strokeWidth=1)
    return chart.encode(
        x=x,
        y=y,
        color=_group_colour(scene),
        tooltip=["head:N", "group:N", "role:N"],
    )


def _dots_at(scene: Scene, placed: list[Column], role: str) -> list[dict]:
    members = [
        (head, name)
        for name in scene.placed_groups
        if scene.circuit.groups[name].at == role
        for head in scene.circuit.groups[name].heads
    ]
    offsets = fan([(head.layer, head.index) for head, _ in members])
    centre = _centre(scene, placed, role)
    return [
        {"x": centre + offset, "y": head.layer, "head": str(head), "group": group, "role": role}
        for (head, group), offset in zip(members, offsets, strict=True)
    ]


def _group_colour(scene: Scene) -> alt.Color:
    scale = alt.Scale(domain=scene.placed_groups, range=CATEGORIES)
    return alt.Color("group:N", scale=scale, title="group", legend=alt.Legend(orient="right"))


def _links(scene: Scene, placed: list[Column], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    drawn = [(stage, *ends) for stage in scene.stages if (ends := _ends(scene, placed, stage))]
    middle = (placed[-1].centre + placed[-1].width / 2) / 2
    points, heads, labels = [], [], []
    for number, (stage, start, end) in enumerate(drawn):
        side = -1 if start[0] > middle else 1
        path = curve(start, end, BOW * side if abs(start[0] - end[0]) < BOW else 0.0)
        row = {"group": stage["name"], "link": number, "what": _what(stage)}
        points += [{**row, "x": px, "y": py, "order": i} for i, (px, py) in enumerate(path)]
        angle = heading(path[-4], path[-1], COLUMN_PX, scene.layer_px)
        heads.append({**row, "x": path[-2][0], "y": path[-2][1], "angle": angle})
        labels.append({**row, "x": path[12][0] + 0.3 * side, "y": path[12][1], "side": side})
    return _link_marks(scene, points, heads, labels, x, y) if drawn else []


def _ends(scene: Scene, placed: list[Column], stage: dict) -> tuple[Point, Point] | None:
    """From the middle of the sending group to the middle of the receiving one, or to the output."""
    if stage["name"] not in scene.placed_groups:
        return None
    start = _middle(scene, placed, stage["name"])
    if stage.get("receivers_from") is None:
        return None if stage.get("receivers") else (start, (start[0], scene.n_layers))
    if stage["receivers_from"] not in scene.placed_groups:
        return None
    return start, _middle(scene, placed, stage["receivers_from"])


def _middle(scene: Scene, placed: list[Column], group: str) -> Point:
    heads = scene.circuit.groups[group].heads
    layer = sum(head.layer for head in heads) / len(heads)
    return _centre(scene, placed, scene.circuit.groups[group].at), layer


def _what(stage: dict) -> str:
    return f"via {stage['via']}" if stage.get("via") else f"to the {OUTPUT}"


def _link_marks(
    scene: Scene, points: list[dict], heads: list[dict], labels: list[dict], x: alt.X, y: alt.Y
) -> list[alt.Chart]:
    colour, solid = _group_colour(scene), {"opacity": 1, "filled": True}
    lines = alt.Chart(inline(points)).mark_line(strokeWidth=2, opacity=0.75)
    arrows = alt.Chart(inline(heads)).mark_point(shape="triangle-up", size=90, **solid)
    sides = [
        alt.Chart(inline([row for row in labels if row["side"] == side]))
        .mark_text(align=align, fontSize=11, fontStyle="italic", color=INK, baseline="middle")
        .encode(x=x, y=y, text="what:N")
        for side, align in LABEL_ALIGN
    ]
    return [
        lines.encode(x=x, y=y, color=colour, detail="link:N", order="order:Q"),
        arrows.encode(x=x, y=y, color=colour, angle=alt.Angle("angle:Q", scale=None), tooltip=["group:N", "what:N"]),
        *sides,
    ]
