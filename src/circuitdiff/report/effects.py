"""Heat map of one discovery stage: the effect of every head, layer by head."""

from __future__ import annotations

import altair as alt

from circuitdiff.circuit import Head
from circuitdiff.report.look import HELPS, HURTS, INK, NEUTRAL, Figure, finish
from circuitdiff.report.numbers import finite, interval, number

NOT_MEASURED = "not measured"
SELECTED = "selected: the head helps"
HURTING = "selected: the head hurts"
BELOW_NOISE = "below the noise floor"
NOT_SELECTED = "not selected"


def effect_rows(stage: dict) -> list[dict]:
    """One row per head: its name, effect, interval and what the stage decided about it."""
    return [
        _row(stage, Head(layer, index))
        for layer, effects in enumerate(stage["effects"])
        for index in range(len(effects))
    ]


def _row(stage: dict, head: Head) -> dict:
    low, high = (_at(stage.get(end), head) for end in ("low", "high"))
    effect = _at(stage["effects"], head)
    return {
        "head": str(head),
        "layer": head.layer,
        "index": head.index,
        "effect": effect,
        "low": low,
        "high": high,
        "printed": number(effect),
        "interval": interval({"low": low, "high": high}),
        "status": _status(stage, head, effect),
    }


def _at(table: list | None, head: Head) -> float | None:
    return finite(table[head.layer][head.index]) if table else None


def _status(stage: dict, head: Head, effect: float | None) -> str:
    place = [head.layer, head.index]
    if place in stage.get("hurting", []):
        return HURTING
    if place in stage.get("selected", []):
        return SELECTED
    if effect is None:
        return NOT_MEASURED
    return BELOW_NOISE if abs(effect) <= (finite(stage.get("noise_floor")) or 0.0) else NOT_SELECTED


def describe(stage: dict) -> str:
    """What was patched into what, in words."""
    receivers = stage.get("receivers_from") or ", ".join(str(Head(*head)) for head in stage.get("receivers") or [])
    to = f"into {stage.get('via') or 'the input'} of {receivers}" if receivers else "straight to the output"
    where = f", read at {stage['receivers_at']}" if stage.get("receivers_at") else ""
    return f"senders at {stage.get('at')}, {to}{where}; {stage.get('metric', 'effect')}"


def effect_map(stage: dict) -> Figure:
    """Layers up, heads across; blue (negative) helps, orange (positive) hurts, white is zero.

    The scale is symmetric and the stage's own. A head without a number is hatched, never white.
    """
    rows = effect_rows(stage)
    step = 26 if max(row["index"] for row in rows) < 16 else 15
    base = alt.Chart().encode(
        x=alt.X("index:O", title="head", axis=alt.Axis(orient="bottom", labelAngle=0, labelOverlap=True)),
        y=alt.Y("layer:O", title="layer", sort="descending", axis=alt.Axis(labelOverlap=True)),
        tooltip=[
            alt.Tooltip("head:N"),
            alt.Tooltip("printed:N", title="effect"),
            alt.Tooltip("interval:N", title="95 % interval"),
            alt.Tooltip("status:N"),
        ],
    )
    layers = [*_cells(base, rows), *_hatching(base), *_outlines(base, step)]
    legend = ["outlined: selected, helps · dashed with a dot: selected, hurts", "hatched: not measured"]
    subtitle = [describe(stage), *legend]
    return finish(layers, str(stage["name"]), subtitle, width=alt.Step(step), height=alt.Step(15), rows=rows)


def _cells(base: alt.Chart, rows: list[dict]) -> list[alt.Chart]:
    sizes = [abs(row["effect"]) for row in rows if row["effect"] is not None]
    if not sizes:
        return []
    largest = max(sizes) or 1.0
    scale = alt.Scale(domain=[-largest, 0, largest], range=[HELPS, NEUTRAL, HURTS], interpolate="rgb")
    legend = alt.Legend(
        title=["effect", "negative = the head helps"], gradientLength=140, format=".3~g", values=[-largest, 0, largest]
    )
    measured = base.transform_filter(alt.datum.effect != None)  # noqa: E711 (a Vega expression)
    cells = measured.mark_rect(stroke="white", strokeWidth=1)
    return [cells.encode(color=alt.Color("effect:Q", scale=scale, legend=legend))]


def _hatching(base: alt.Chart) -> list[alt.Chart]:
    missing = base.transform_filter(alt.datum.effect == None)  # noqa: E711 (a Vega expression)
    return [
        missing.mark_rect(fill="#d5d5d5", stroke="white", strokeWidth=1),
        missing.mark_point(shape="M-1,1L1,-1", size=90, stroke="#777777", strokeWidth=1, fill=None),
    ]


def _outlines(base: alt.Chart, step: int) -> list[alt.Chart]:
    helps = base.transform_filter(alt.datum.status == SELECTED)
    hurts = base.transform_filter(alt.datum.status == HURTING)
    outline = {"fill": None, "stroke": INK, "strokeWidth": 2, "width": step - 2, "height": 13}
    return [
        helps.mark_rect(**outline),
        hurts.mark_rect(**outline, strokeDash=[3, 2]),
        hurts.mark_point(shape="circle", filled=True, size=18, color=INK, opacity=1),
    ]
