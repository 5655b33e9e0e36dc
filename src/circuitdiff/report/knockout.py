"""Attention knockout: accuracies by layer, and which role needs to see which."""

from __future__ import annotations

import altair as alt

from circuitdiff.report.look import CATEGORIES, HURTS, INK, MUTED, NEUTRAL, Figure, finish, inline
from circuitdiff.report.numbers import finite, hits, interval, number

_DASHES = ([1, 0], [6, 3], [2, 2])  # for each round of the colours
FLOWS = {"yes": "flows", "no": "does not", "not established": "?"}


def curves_key(model: str) -> str:
    return f"knockout/{model}/curves"


def matrix_key(model: str) -> str:
    return f"knockout/{model}/matrix"


def knockout_figures(results: dict) -> dict[str, Figure]:
    """Curves and matrix of each model that has them."""
    drawn = {}
    for model, entry in (results.get("knockout") or {}).items():
        if matrix_rows(entry):
            drawn[matrix_key(model)] = matrix_map(model, entry)
        if curve_rows(entry):
            drawn[curves_key(model)] = curves(model, entry)
    return drawn


def curve_rows(entry: dict) -> list[dict]:
    """One row per blocked path and layer."""
    return [
        {
            "path": f"{curve['query']} to {curve['key']}",
            "layer": point["layer"],
            **{key: finite(point.get(key)) for key in ("value", "low", "high")},
            "accuracy": number(point.get("value")),
            "interval": interval(point),
            "hits": hits(point),
        }
        for curve in entry.get("curves") or []
        for point in curve.get("points") or []
    ]


def curves(model: str, entry: dict) -> Figure:
    """Accuracy with a path blocked from each layer upward (or in that layer alone); the line is the whole model."""
    rows, found = curve_rows(entry), entry["curves"]
    paths, single = list(dict.fromkeys(row["path"] for row in rows)), bool(found[0].get("single_layers"))
    styles = [divmod(i, len(CATEGORIES)) for i in range(len(paths))]
    scale = alt.Scale(domain=paths, range=[CATEGORIES[colour] for _, colour in styles])
    dashes = alt.Scale(domain=paths, range=[_DASHES[dash % len(_DASHES)] for dash, _ in styles])
    dash = alt.StrokeDash("path:N", sort=paths, scale=dashes, title="blocked")
    legend = alt.Legend(symbolOpacity=1, symbolType="stroke")
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("layer:Q", title="layer" if single else "blocked from this layer upward", axis=alt.Axis(tickMinStep=1)),
        color=alt.Color("path:N", sort=paths, scale=scale, title="blocked", legend=legend),
        tooltip=["path:N", "layer:Q", "accuracy:N", "interval:N", "hits:N"],
    )
    value = alt.Y("value:Q", title="accuracy", scale=alt.Scale(domain=[0, 1]))
    bands = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", title="accuracy"), y2="high:Q")
    lines = base.mark_line(strokeWidth=2, point=True).encode(y=value, strokeDash=dash)
    clean = alt.Chart(inline([{"clean": finite((found[0].get("clean") or {}).get("value"))}]))
    rule = clean.mark_rule(color=INK, strokeDash=[4, 3]).encode(y="clean:Q")
    subtitle = [f"{entry.get('n_prompts')} prompts, with 95 % intervals; dashed: nothing blocked"]
    return finish([rule, bands, lines], f"Attention knockout in {model}", subtitle, width=420, height=220)


def matrix_rows(entry: dict) -> list[dict]:
    """One row per query and key role; of a key that does not come first only the place."""
    return [_cell(cell) for cell in (entry.get("matrix") or {}).get("cells") or []]


def _cell(cell: dict) -> dict:
    loss, beyond = cell.get("loss") or {}, cell.get("loss_beyond_random") or {}
    return {
        "query": cell["query"],
        "key": cell["key"],
        "loss": finite(loss.get("value")),
        "printed": number(loss.get("value")),
        "interval": interval(loss),
        "beyond": _printed(beyond),
        "answer": cell.get("answer") or "the key does not come first",
        "mark": FLOWS.get(cell.get("answer") or "", ""),
    }


def knockout_caption(model: str, entry: dict) -> str:
    clean = _printed((entry.get("matrix") or {}).get("clean"))
    return f"Attention knockout in {model}: {entry.get('n_prompts')} prompts, accuracy with nothing blocked {clean}"


def knockout_table_rows(entry: dict) -> list[dict]:
    """The matrix in numbers with their intervals, but for keys that do not come first; the control is the query's."""
    found = entry.get("matrix") or {}
    control = found.get("control") or {}
    return [
        {
            "query": cell["query"],
            "key": cell["key"],
            "accuracy": _printed(cell.get("accuracy")),
            "loss": _printed(cell.get("loss")),
            "control": _printed(control.get(cell["query"])),
            "beyond": _printed(cell.get("loss_beyond_random")),
            "answer": cell["answer"],
        }
        for cell in found.get("cells") or []
        if cell.get("answer") is not None
    ]


def _printed(estimate: dict | None) -> str:
    return f"{number((estimate or {}).get('value'))} ({interval(estimate)})"


def matrix_map(model: str, entry: dict) -> Figure:
    """Loss of accuracy when the row's role cannot see the column's, in all layers at once."""
    rows, found = matrix_rows(entry), entry["matrix"]
    roles = list(found["roles"])
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("key:N", sort=roles, title="does not see", axis=alt.Axis(labelAngle=-40)),
        y=alt.Y("query:N", sort=roles, title="role"),
        tooltip=[
            "query:N",
            "key:N",
            alt.Tooltip("printed:N", title="loss of accuracy"),
            alt.Tooltip("interval:N", title="95 % interval"),
            alt.Tooltip("beyond:N", title="beyond a random position"),
            alt.Tooltip("answer:N", title="information flows"),
        ],
    )
    largest = max((abs(row["loss"]) for row in rows if row["loss"] is not None), default=0.0) or 1.0
    scale = alt.Scale(domain=[0, largest], range=[NEUTRAL, HURTS], clamp=True)
    known = base.transform_filter(alt.datum.loss != None)  # noqa: E711 (a Vega expression)
    cells = known.mark_rect(stroke="white").encode(color=alt.Color("loss:Q", scale=scale, title="loss"))
    marks = known.mark_text(fontSize=10, color=INK).encode(text="mark:N")
    missing = base.transform_filter(alt.datum.loss == None)  # noqa: E711 (a Vega expression)
    empty = missing.mark_point(shape="M-1,1L1,-1", size=60, stroke=MUTED, strokeWidth=1, fill=None)
    subtitle = [
        f"{entry.get('n_prompts')} prompts; flows: costs accuracy, and more than a random position",
        f"does not: surely costs less than {number(found.get('margin'))}; struck out: the key does not come first",
    ]
    title = f"What each role needs to see in {model}"
    return finish([cells, marks, empty], title, subtitle, width=alt.Step(52), height=alt.Step(26))


def knockout_sentences(model: str, entry: dict) -> list[str]:
    """Where information surely flows and where it surely does not, in words."""
    by_answer: dict[str, list[str]] = {}
    for row in matrix_rows(entry):
        by_answer.setdefault(row["answer"], []).append(f"{row['query']} to {row['key']} ({row['printed']})")
    said = {"yes": "information flows where it attends from", "no": "nothing is lost without attention from"}
    return [
        f"In {model}, {words} {', '.join(by_answer[answer])}." for answer, words in said.items() if answer in by_answer
    ]
