"""The look that all figures share, and the marks that most of them are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from circuitdiff.report.numbers import interval, number, printed
from circuitdiff.study.estimates import Estimate, Number

Figure = alt.LayerChart
Rows = Sequence[Mapping[str, Any]]
Axis = Literal["x", "y"]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
INK, MUTED, FAINT, GREY = "#222222", "#666666", "#e4e4e0", "#b9b9b4"
HELPS, NEUTRAL, HURTS = "#1c5d99", "#f8f8f5", "#c8590b"  # distinct to every kind of colour vision
# Okabe & Ito 2008, without yellow, which is too light for a dot on white.
CATEGORIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
UNIT = (0.0, 1.0)  # the domain of accuracies
_BIN = 0.02  # width of a bar of accuracies


def inline(rows: Rows) -> dict:
    """The rows as data of a figure; as a dict, for Altair checks and copies its own data classes row by row."""
    return {"values": list(rows)}


def bounds(estimate: Estimate | None) -> dict[str, Any]:
    """An estimate as columns of a row: its numbers for the figure, and as text for tooltip and table."""
    if estimate is None:
        estimate = Estimate(None, None, None)
    ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return ends | {"printed": printed(estimate), "interval": interval(estimate)}


def distinct(rows: Rows, key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def tips(*columns: str, **titles: str) -> list[alt.Tooltip]:
    """A line for each of the columns, under its own name or another one."""
    named = {column: column for column in columns} | titles
    return [alt.Tooltip(f"{column}:N", title=title) for column, title in named.items()]


def colour(
    field: str, names: Sequence[str], title: str | None = None, palette: Sequence[str] = CATEGORIES, **legend: Any
) -> alt.Color:
    """A colour for each name; with more names than colours they come round again."""
    scale = alt.Scale(domain=names, range=[palette[i % len(palette)] for i in range(len(names))])
    shown = alt.Legend(**legend) if legend else alt.Undefined
    return alt.Color(f"{field}:N", sort=list(names), scale=scale, title=title, legend=shown)


def names_along(axis: Axis, rows: Rows, field: str, title: str | None = None, **look: Any) -> Any:
    """The axis of what is compared, in the order of the rows."""
    channel = alt.X if axis == "x" else alt.Y
    look = {"labelLimit": 240} | ({"labelAngle": 0} if axis == "x" else {}) | look
    return channel(f"{field}:N", sort=distinct(rows, field), title=title, axis=alt.Axis(**look))


def side_by_side(axis: Axis, rows: Rows, field: str) -> Any:
    channel = alt.XOffset if axis == "x" else alt.YOffset
    return channel(f"{field}:N", sort=distinct(rows, field))


@dataclass(frozen=True)
class Along:
    """The axis along which numbers are measured, and the marks that stand along it."""

    axis: Axis
    title: str
    domain: Sequence[float] | None = None

    def at(self, field: str, **scale: Any) -> Any:
        channel = alt.X if self.axis == "x" else alt.Y
        if self.domain is not None:
            scale |= {"domain": list(self.domain)}
        return channel(f"{field}:Q", title=self.title, scale=alt.Scale(**scale) if scale else alt.Undefined)

    def intervals(self, base: alt.Chart, **look: Any) -> alt.Chart:
        """Lines from `low` to `high`."""
        ends: dict[str, Any] = {self.axis: self.at("low"), f"{self.axis}2": "high:Q"}
        look = {"strokeWidth": 1.5} | look
        return base.mark_rule(**look).encode(**ends)

    def points(self, base: alt.Chart, **channels: Any) -> alt.Chart:
        """A dot at `value`."""
        return base.mark_point(filled=True, size=60, opacity=1).encode(**{self.axis: self.at("value")}, **channels)

    def points_with_intervals(self, base: alt.Chart, **channels: Any) -> list[alt.Chart]:
        return [self.intervals(base, strokeWidth=2), self.points(base, **channels)]

    def bars(self, base: alt.Chart, **channels: Any) -> alt.Chart:
        """A bar up to `value`."""
        return base.mark_bar().encode(**{self.axis: self.at("value")}, **channels)

    def dashed(self, *values: Number, says: str = "", color: str = MUTED) -> list[alt.Chart]:
        """Dashed lines across the figure at values; none at one that is undefined."""
        channels: dict[str, Any] = {self.axis: self.at("at")} | ({"tooltip": tips(what="")} if says else {})
        defined = [alt.Chart(inline([{"at": value, "what": says}])) for value in values if value is not None]
        return [each.mark_rule(color=color, strokeDash=[4, 3]).encode(**channels) for each in defined]


ACCURACY = Along("y", "accuracy", UNIT)


def known(base: alt.Chart) -> alt.Chart:
    """Of the rows those with a number."""
    return base.transform_filter(alt.datum["value"] != None)  # noqa: E711 (a Vega expression)


def struck_out(base: alt.Chart, **look: Any) -> alt.Chart:
    """A stroke where there is no number."""
    missing = base.transform_filter(alt.datum["value"] == None)  # noqa: E711 (a Vega expression)
    look = {"size": 60, "stroke": MUTED} | look
    return missing.mark_point(shape="M-1,1L1,-1", strokeWidth=1, fill=None, **look)


def among_random(
    title: str,
    accuracies: Iterable[Number],
    references: Mapping[str, Number],
    n_prompts: int,
    drawn: str = "random circuits",
) -> Figure:
    """How random circuits score, with `references` (the real one, the whole model, ...) as rules."""
    values = [each for each in accuracies if each is not None]
    tenths = alt.Axis(values=[i / 10 for i in range(11)], format=".1f", labelAngle=0)
    bars_of_drawn = alt.Chart(inline([{"accuracy": each} for each in values])).mark_bar(color=GREY)
    histogram = bars_of_drawn.encode(
        x=alt.X("accuracy:Q", bin=alt.Bin(step=_BIN, extent=list(UNIT)), title="accuracy", axis=tenths),
        y=alt.Y("count():Q", title=drawn, axis=alt.Axis(tickMinStep=1)),
        tooltip=[alt.Tooltip("count():Q", title=drawn)],
    )
    rows = [
        {"what": f"{what}: {number(value)}", "accuracy": value}
        for what, value in references.items()
        if value is not None
    ]
    palette = (CATEGORIES[5], CATEGORIES[0], MUTED, INK)
    legend = {"orient": "bottom", "direction": "vertical", "symbolType": "stroke"}
    rules = alt.Chart(inline(rows)).mark_rule(strokeWidth=2.5)
    rules = rules.encode(
        x=alt.X("accuracy:Q", title="accuracy"),
        color=colour("what", distinct(rows, "what"), None, palette, **legend),
        tooltip=tips(what=""),
    )
    layers = [histogram, rules] if rows else [histogram]
    return finish(layers, title, [f"{len(values)} {drawn} on {n_prompts} prompts"], width=420, height=150)


def finish(
    layers: Sequence[alt.Chart],
    title: str,
    subtitle: Sequence[str],
    *,
    width: int | float | alt.Step,
    height: int | float | alt.Step,
    rows: Rows = (),
) -> Figure:
    """The layers as one figure with a title and the common fonts; `rows` are for layers without data of their own."""
    heading = alt.TitleParams(
        text=title, subtitle=list(subtitle), anchor="start", frame="group", offset=12, fontSize=13, subtitleFontSize=11
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
