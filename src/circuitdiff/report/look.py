"""The look that all figures share, and the keys they are known by."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

Figure = alt.LayerChart

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
INK, MUTED, FAINT = "#222222", "#666666", "#e4e4e0"
HELPS, NEUTRAL, HURTS = "#1c5d99", "#f8f8f5", "#c8590b"  # distinct to every kind of colour vision
# Okabe & Ito 2008, without yellow, which is too light for a dot on white.
CATEGORIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")


def circuit_key(circuit: str) -> str:
    return f"circuit/{circuit}"


def stage_key(circuit: str, number: int, stage: str) -> str:
    return f"effects/{circuit}/{number} {stage}"


def random_key(circuit: str, model: str) -> str:
    return f"random/{circuit}/{model}"


def inline(rows: Sequence[dict]) -> dict:
    """The rows as data of a figure; as a dict, for Altair checks and copies its own data classes row by row."""
    return {"values": list(rows)}


def finish(
    layers: Sequence[alt.Chart],
    title: str,
    subtitle: list[str],
    *,
    width: int | float | alt.Step,
    height: int | float | alt.Step,
    rows: Sequence[dict] = (),
) -> Figure:
    """The layers as one figure with a title and the common fonts; `rows` are for layers without data of their own."""
    heading = alt.TitleParams(
        text=title, subtitle=subtitle, anchor="start", frame="group", offset=12, fontSize=13, subtitleFontSize=11
    )
    data = inline(rows) if rows else alt.Undefined
    return (
        alt.LayerChart(data=data, layer=list(layers), title=heading, width=width, height=height)
        .configure(font=FONT, background="transparent")
        .configure_title(color=INK, subtitleColor=MUTED)
        .configure_view(stroke=None)
        .configure_axis(labelColor=INK, titleColor=MUTED, titleFontWeight="normal", gridColor=FAINT)
        .configure_legend(labelColor=INK, titleColor=MUTED, titleFontWeight="normal", labelLimit=320)
    )
