"""A training run's checkpoints: accuracy, faithfulness and overlap with the base over training steps."""

from __future__ import annotations

import altair as alt

from circuitdiff.report.look import CATEGORIES, Figure, finish, inline
from circuitdiff.report.numbers import finite, interval, number

_MEASURES = (
    "accuracy",
    "faithfulness of the base's circuit",
    "faithfulness of its own circuit",
    "heads in common with the base (Jaccard)",
)


def series_key(title: str) -> str:
    return f"series/{title}"


def series_of(results: dict) -> dict[str, dict[str, int]]:
    """By title, the models of each series and their training steps."""
    return ((results.get("study") or {}).get("settings") or {}).get("series") or {}


def series_figures(results: dict) -> dict[str, Figure]:
    """One figure per series that has a number."""
    drawn = {}
    for title in series_of(results):
        if rows := series_rows(results, title):
            drawn[series_key(title)] = over_steps(title, rows)
    return drawn


def series_rows(results: dict, title: str) -> list[dict]:
    """One row per checkpoint and measure, in the order of steps."""
    rows = []
    for model, step in sorted(series_of(results)[title].items(), key=lambda each: each[1]):
        for measure, found in zip(_MEASURES, _measured(results, model), strict=True):
            if finite(found.get("value")) is not None:
                bounds = {end: finite(found.get(end)) for end in ("value", "low", "high")}
                printed = f"{number(found['value'])} ({interval(found)})" if "low" in found else number(found["value"])
                rows.append({"step": step, "model": model, "measure": measure, "printed": printed} | bounds)
    return rows


def _measured(results: dict, model: str) -> list[dict]:
    """In the order of `_MEASURES`; empty where it was not measured."""
    base = next(iter(results.get("models") or {}), "")
    faithfulness = results.get("faithfulness") or {}
    groups = ((results.get("overlap") or {}).get(model) or {}).get("groups") or []
    jaccard = next((group.get("jaccard") for group in groups if group.get("group") == "all groups"), None)
    return [
        ((results.get("models") or {}).get(model) or {}).get("accuracy") or {},
        (faithfulness.get(base) or {}).get(model) or {},
        (faithfulness.get(model) or {}).get(model) or {},
        {"value": 1.0 if model == base and faithfulness.get(base) else jaccard},
    ]


def over_steps(title: str, rows: list[dict]) -> Figure:
    """Lines over training steps; bars are 95 % intervals."""
    measures = [measure for measure in _MEASURES if any(row["measure"] == measure for row in rows)]
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("step:Q", title="training step"),
        color=alt.Color(
            "measure:N", sort=measures, scale=alt.Scale(domain=measures, range=CATEGORIES), title=None,
            legend=alt.Legend(orient="bottom", direction="vertical", labelLimit=400),
        ),
        tooltip=["model:N", "step:Q", "measure:N", "printed:N"],
    )  # fmt: skip
    lines = base.mark_line(point=True).encode(y=alt.Y("value:Q", title="value"))
    bars = base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", title="value"), y2="high:Q")
    return finish([bars, lines], f"Over training: {title}", ["with 95 % intervals"], width=420, height=240)
