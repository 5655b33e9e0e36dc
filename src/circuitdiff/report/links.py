"""Arrows of a circuit's drawing: from each stage's senders to its receivers."""

from __future__ import annotations

from typing import Literal

import altair as alt

from circuitdiff.report.layout import BOW, Column, Point, curve, heading
from circuitdiff.report.look import INK, inline
from circuitdiff.report.scene import COLUMN_PX, Scene, group_colour

OUTPUT = "output"
LONG = 6.0  # columns: a longer link has room for its words halfway, a shorter one has them beside its senders
Align = Literal["left", "right", "center"]
ALIGNS: tuple[Align, ...] = ("left", "right", "center")


def links(scene: Scene, placed: list[Column], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """One arrow per stage whose senders and receivers both have a place, with what it goes through."""
    ends = [(stage, *found) for stage in scene.stages if (found := _ends(scene, placed, stage))]
    middle = (placed[-1].centre + placed[-1].width / 2) / 2
    rows = [_link(scene, middle, number, *link) for number, link in enumerate(ends)]
    return _marks(scene, rows, x, y) if rows else []


def _link(scene: Scene, middle: float, number: int, stage: dict, start: Point, end: Point) -> dict:
    side = -1 if start[0] > middle else 1
    upright, long = start[0] == end[0], abs(start[0] - end[0]) > LONG
    path = curve(start, end, BOW * side if upright else 0.0)
    shared = {"group": stage["name"], "link": number, "what": _what(stage)}
    halfway, beside = path[len(path) // 2], (start[0] + side * 1.2, start[1])
    words = (halfway[0] + 0.4 * side, halfway[1]) if upright else halfway if long else beside
    return {
        "align": "center" if long else "left" if side > 0 else "right",
        "path": [{**shared, "x": px, "y": py, "order": order} for order, (px, py) in enumerate(path)],
        "arrow": {**shared, **_at(path[-2]), "angle": heading(path[-4], path[-1], COLUMN_PX, scene.layer_px)},
        "label": {**shared, **_at(words)},
    }


def _at(point: Point) -> dict[str, float]:
    return {"x": point[0], "y": point[1]}


def _ends(scene: Scene, placed: list[Column], stage: dict) -> tuple[Point, Point] | None:
    """From the middle of the sending group to the middle of the receiving one, or to the output."""
    if stage["name"] not in scene.placed_groups:
        return None
    start = _middle(scene, placed, stage["name"])
    if stage.get("receivers_from") is None:
        return None if stage.get("receivers") else (start, (start[0], float(scene.n_layers)))
    if stage["receivers_from"] not in scene.placed_groups:
        return None
    return start, _middle(scene, placed, stage["receivers_from"])


def _middle(scene: Scene, placed: list[Column], group: str) -> Point:
    heads = scene.circuit.groups[group].heads
    layer = sum(head.layer for head in heads) / len(heads)
    return _centre(scene, placed, scene.circuit.groups[group].at), layer


def _what(stage: dict) -> str:
    return f"via {stage['via']}" if stage.get("via") else f"to the {OUTPUT}"


def _centre(scene: Scene, placed: list[Column], role: str) -> float:
    return next(column.centre for column in placed if column.position == scene.roles[role])


def _marks(scene: Scene, rows: list[dict], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    colour = group_colour(scene)
    lines = alt.Chart(inline([point for row in rows for point in row["path"]])).mark_line(strokeWidth=2, opacity=0.75)
    arrows = alt.Chart(inline([row["arrow"] for row in rows])).mark_point(
        shape="triangle-up", size=90, opacity=1, filled=True
    )
    return [
        lines.encode(x=x, y=y, color=colour, detail="link:N", order="order:Q"),
        arrows.encode(x=x, y=y, color=colour, angle=alt.Angle("angle:Q", scale=None), tooltip=["group:N", "what:N"]),
        *(label for align in ALIGNS for label in _labels(rows, align, x, y)),
    ]


def _labels(rows: list[dict], align: Align, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """The words on a white halo, so that they can be read across lines."""
    chosen = [row["label"] for row in rows if row["align"] == align]
    base = alt.Chart(inline(chosen)).encode(x=x, y=y, text="what:N")
    text = {"align": align, "dy": -9, "fontSize": 11, "baseline": "middle"}
    halo = base.mark_text(**text, stroke="white", strokeWidth=4, strokeJoin="round", color="white")
    return [halo, base.mark_text(**text, color=INK)] if chosen else []
