"""The circuit drawn over the prompt: tokens across, layers up, heads at their role's column."""

from __future__ import annotations

import altair as alt

from circuitdiff.report.layout import Column, fan
from circuitdiff.report.links import links
from circuitdiff.report.look import FAINT, INK, MUTED, Figure, finish, inline
from circuitdiff.report.scene import COLUMN_PX, Scene, group_colour


def circuit_drawing(name: str, scene: Scene) -> Figure:
    """Dots are heads, coloured by group; an arrow leads from a group to the one that receives it."""
    placed = scene.columns
    total = placed[-1].centre + placed[-1].width / 2
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, total], nice=False, zero=False))
    y_scale = alt.Scale(domain=[-0.5, scene.n_layers + 0.5], nice=False, zero=False)
    ticks = list(range(0, scene.n_layers, max(1, -(-scene.n_layers // 16))))
    y = alt.Y("y:Q", title="layer", scale=y_scale, axis=alt.Axis(values=ticks, domain=False, ticks=False))
    height = scene.layer_px * (scene.n_layers + 1)
    layers = [*_prompt(scene, placed, x, height), _dots(scene, placed, x, y), *links(scene, placed, x, y)]
    missing = [n for n in scene.circuit.groups if n not in scene.placed_groups]
    subtitle = "dots are heads at their role's token; arrows lead from senders to receivers"
    note = [f"not drawn, having no head or no place in this prompt: {', '.join(missing)}"] if missing else []
    return finish(layers, f"Circuit: {name}", [subtitle, *note], width=total * COLUMN_PX, height=height)


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


def _dots(scene: Scene, placed: list[Column], x: alt.X, y: alt.Y) -> alt.Chart:
    rows = [row for column in placed if column.position is not None for row in _dots_in(scene, column)]
    dots = alt.Chart(inline(rows)).mark_point(filled=True, size=75, opacity=1, stroke="white", strokeWidth=1)
    return dots.encode(x=x, y=y, color=group_colour(scene), tooltip=["head:N", "group:N", "role:N"])


def _dots_in(scene: Scene, column: Column) -> list[dict]:
    members = scene.heads_at(-1 if column.position is None else column.position)
    offsets = fan([(head.layer, head.index) for head, _ in members])
    return [
        {
            "x": column.centre + offset,
            "y": head.layer,
            "head": str(head),
            "group": group,
            "role": scene.circuit.groups[group].at,
        }
        for (head, group), offset in zip(members, offsets, strict=True)
    ]
