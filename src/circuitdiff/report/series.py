"""A training run's checkpoints: accuracy, faithfulness and overlap with the base over training steps."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt

from circuitdiff.report import charts
from circuitdiff.report.numbers import number
from circuitdiff.report.parts import Part, Table
from circuitdiff.study.estimates import Estimate
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections import accuracy, faithfulness, overlap

_MEASURES = (
    "accuracy",
    "faithfulness of the base's circuit",
    "faithfulness of its own circuit",
    "heads in common with the base (Jaccard)",
)


def view(results: CommonResults) -> Part:
    columns = {"step": "step", "model": "model", "measure": "", "printed": "value (95 % interval)"}
    series = results.study.settings.get("series") or {}  # by title, models and their training steps
    rows = {title: series_rows(results, steps) for title, steps in series.items()}
    return Part(
        "Over training",
        "Checkpoints of one training run.",
        figures={f"series/{title}": _over_steps(title, each) for title, each in rows.items() if each},
        tables=[Table(title, each, columns) for title, each in rows.items()],
    )


def series_rows(results: CommonResults, steps: dict[str, int]) -> list[dict]:
    """One row per checkpoint and measure, in the order of steps."""
    return [
        {"step": step, "model": model, "measure": measure}
        | charts.bounds(estimate)
        | ({"printed": number(estimate.value)} if estimate.low is None else {})
        for model, step in sorted(steps.items(), key=lambda each: each[1])
        for measure, estimate in zip(_MEASURES, _measured(results, model), strict=True)
        if estimate is not None and estimate.value is not None
    ]


def _measured(results: CommonResults, model: str) -> Iterator[Estimate | None]:
    """In the order of `_MEASURES`; None where it was not measured."""
    base, circuits = next(iter(results.models), ""), part_of(results, faithfulness.SECTION)
    answers, alike = part_of(results, accuracy.SECTION).get(model), part_of(results, overlap.SECTION).get(model)
    yield None if answers is None else answers.accuracy
    yield circuits.get(base, {}).get(model)
    yield circuits.get(model, {}).get(model)
    whole = [each.jaccard for each in (() if alike is None else alike.groups or ()) if each.group is None]
    jaccard = 1.0 if model == base and base in circuits else next(iter(whole), None)
    yield Estimate(jaccard, None, None)


def _over_steps(title: str, rows: list[dict]) -> charts.Figure:
    measures = [measure for measure in _MEASURES if any(row["measure"] == measure for row in rows)]
    legend = {"orient": "bottom", "direction": "vertical", "labelLimit": 400}
    base = alt.Chart(charts.inline(rows)).encode(
        x=alt.X("step:Q", title="training step"),
        color=charts.colour("measure", measures, None, charts.CATEGORIES, **legend),
        tooltip=charts.tips(model="model", step="step", measure="", printed="value"),
    )
    along = charts.Along("y", "value")
    layers = [along.intervals(base, opacity=0.5), base.mark_line(point=True).encode(y=along.at("value"))]
    return charts.finish(layers, f"Over training: {title}", ["with 95 % intervals"], width=420, height=240)
