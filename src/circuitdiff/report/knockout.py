"""Attention knockout: accuracies by layer, and which role needs to see which."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from circuitdiff.report import charts
from circuitdiff.report.numbers import hits, number, printed
from circuitdiff.report.parts import Part, Table
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections.knockout import SECTION, Curve, Matrix

_DASHES = ([1, 0], [6, 3], [2, 2])  # for each round of the colours
_TIPS = {"query": "role", "key": "does not see", "printed": "loss of accuracy"}
_TIPS |= {"beyond": "beyond a random position", "answer": "information flows"}
_NOT_RUN = "not run: the key, or any other to hold it against, does not come first"
_FLOWS = {"yes": "flows", "no": "does not", "not established": "?"}
_SAYS = {"yes": "information flows where it attends from", "no": "nothing is lost without attention from"}


def view(results: CommonResults) -> Part:
    models = part_of(results, SECTION)
    figures: dict[str, charts.Figure] = {}
    for model, each in models.items():
        if each.matrix.cells:
            figures[f"knockout/{model}/matrix"] = matrix_figure(model, each.matrix, each.n_prompts)
        if each.curves:
            title = f"Attention knockout in {model}"
            figures[f"knockout/{model}/curves"] = curves_over_layers(title, each.curves, each.n_prompts)
    return Part(
        "Where does information flow?",
        "Attention from one role to another is blocked, in all layers for the tables. The control blocks a random "
        "position that is neither the answer nor the query.",
        [sentence for model, each in models.items() for sentence in sentences_on(model, each.matrix)],
        figures,
        [matrix_table(model, each.matrix, each.n_prompts) for model, each in models.items()],
    )


def sentences_on(model: str, matrix: Matrix) -> list[str]:
    """Where information flows and where it does not, at 95 %."""
    by_answer: dict[str, list[str]] = {}
    for cell in matrix.cells:
        if cell.answer is not None:
            loss = number(None if cell.loss is None else cell.loss.value)
            by_answer.setdefault(cell.answer, []).append(f"{cell.query} to {cell.key} ({loss})")
    return [
        f"In {model}, {says} {', '.join(by_answer[answer])}." for answer, says in _SAYS.items() if answer in by_answer
    ]


def matrix_table(model: str, matrix: Matrix, n_prompts: int) -> Table:
    """The matrix in numbers, but for cells that were not run; the control is the query's."""
    rows = [
        {
            "role": cell.query,
            "does not see": cell.key,
            "accuracy": printed(cell.accuracy),
            "loss": printed(cell.loss),
            "accuracy, a random position blocked": printed(matrix.control.get(cell.query)),
            "loss beyond it": printed(cell.loss_beyond_random),
            "flows": cell.answer,
        }
        for cell in matrix.cells
        if cell.answer is not None
    ]
    clean = f"{n_prompts} prompts, accuracy with nothing blocked {printed(matrix.clean)}"
    return Table(f"Attention knockout in {model}: {clean}", rows)


def curves_over_layers(title: str, curves: Sequence[Curve], n_prompts: int) -> charts.Figure:
    """Accuracy with a path blocked from each layer upward (or in that layer alone); the line is the whole model."""
    rows = [
        {"path": f"{curve.query} to {curve.key or 'a random position'}", "layer": point.layer, "hits": hits(point)}
        | charts.bounds(point)
        for curve in curves
        for point in curve.points
    ]
    paths, single = charts.distinct(rows, "path"), curves[0].single_layers
    dashes = [_DASHES[i // len(charts.CATEGORIES) % len(_DASHES)] for i in range(len(paths))]
    scale = alt.Scale(domain=paths, range=dashes)
    dash = alt.StrokeDash("path:N", sort=paths, scale=scale, title="blocked")
    base = alt.Chart(charts.inline(rows)).encode(
        x=alt.X("layer:Q", title="layer" if single else "blocked from this layer upward", axis=alt.Axis(tickMinStep=1)),
        color=charts.colour("path", paths, "blocked", symbolOpacity=1, symbolType="stroke"),
        tooltip=charts.tips(path="blocked", layer="layer", printed="accuracy", hits="hits"),
    )
    along, lines = charts.Along("y", "accuracy"), base.mark_line(strokeWidth=2, point=True)
    layers = [
        *along.dashed(curves[0].clean.value, color=charts.INK),
        base.mark_area(opacity=0.15).encode(y=along.at("low"), y2="high:Q"),
        lines.encode(y=charts.ACCURACY.at("value"), strokeDash=dash),
    ]
    subtitle = [f"{n_prompts} prompts, with 95 % intervals; dashed: nothing blocked"]
    return charts.finish(layers, title, subtitle, width=420, height=220)


def matrix_figure(model: str, matrix: Matrix, n_prompts: int) -> charts.Figure:
    """Loss of accuracy when the row's role cannot see the column's, in all layers at once."""
    rows = [
        charts.bounds(cell.loss)
        | {"query": cell.query, "key": cell.key, "beyond": printed(cell.loss_beyond_random)}
        | {
            "answer": cell.answer or _NOT_RUN,
            "mark": _FLOWS.get(cell.answer or "", ""),
        }
        for cell in matrix.cells
    ]
    roles = list(matrix.roles)
    base = alt.Chart(charts.inline(rows)).encode(
        x=alt.X("key:N", sort=roles, title="does not see", axis=alt.Axis(labelAngle=-40)),
        y=alt.Y("query:N", sort=roles, title="role"),
        tooltip=charts.tips(**_TIPS),
    )
    largest = max((abs(value) for row in rows if isinstance(value := row["value"], float)), default=0.0) or 1.0
    scale = alt.Scale(domain=[0, largest], range=[charts.NEUTRAL, charts.HURTS], clamp=True)
    known = charts.known(base)
    layers = [
        known.mark_rect(stroke="white").encode(color=alt.Color("value:Q", scale=scale, title="loss")),
        known.mark_text(fontSize=10, color=charts.INK).encode(text="mark:N"),
        charts.struck_out(base),
    ]
    subtitle = [
        f"{n_prompts} prompts; flows: costs accuracy, and more than a random position",
        f"does not: significantly less than {number(matrix.margin)}; struck out: not run",
    ]
    title = f"What each role needs to see in {model}"
    return charts.finish(layers, title, subtitle, width=alt.Step(52), height=alt.Step(26))
