"""Model and circuit without the same parts, against each other."""

from __future__ import annotations

import altair as alt

from circuitdiff.report import charts
from circuitdiff.report.numbers import number, printed
from circuitdiff.report.parts import Part, Table
from circuitdiff.study.registry import CommonResults, cells_of
from circuitdiff.study.sections.completeness import SECTION, PartsRemoved, Removed

_RANDOM, _GROUP, _WORST = "a random part", "a whole group", "the worst part found"
_NOTHING, _EVERYTHING = "nothing removed", "the whole circuit"
_KINDS = (_RANDOM, _GROUP, _WORST, _NOTHING, _EVERYTHING)
_QUANTITIES = {
    "hits": "accuracy",
    "probability": "mean probability of the answer",
    "logit_difference": "mean logit difference",
}
_COLUMNS = {"removed": "removed", "n_removed": "heads", "model_printed": "the model without it"}
_COLUMNS |= {"circuit_printed": "the circuit without it", "difference": "difference", "absolute": "absolute"}


def view(results: CommonResults) -> Part:
    cells = cells_of(results, SECTION)
    return Part(
        "Is something missing from the circuit?",
        "The same heads are taken out of the circuit and out of the whole model.",
        [sentence for cell in cells if (sentence := _sentence(*cell))],
        {f"completeness/{circuit}/{model}": _scatter(circuit, model, each) for circuit, model, each in cells},
        [_table(*cell) for cell in cells],
    )


def _sentence(circuit: str, model: str, parts: PartsRemoved) -> str:
    """Both terms for the worst part that was found, and the floor beside them."""
    worst, floor = parts.greedy, parts.everything_removed.circuit
    if worst is None:
        return ""
    return (
        f"Without the worst {worst.n_removed} heads that a search found, {model} scores {number(worst.model.value)} "
        f"and {circuit} alone {number(worst.circuit.value)}: a difference of {printed(worst.difference)}. "
        f"With no head kept at all the score is {number(floor.value)}."
    )


def _table(circuit: str, model: str, parts: PartsRemoved) -> Table:
    quantity = f"{_QUANTITIES[parts.quantity]}, with 95 % intervals"
    return Table(f"{circuit} and {model} without the same heads: {quantity}", part_rows(parts), _COLUMNS)


def part_rows(parts: PartsRemoved) -> list[dict]:
    """One row per part that was removed, with both terms, their difference, and what the part is."""
    return [
        *(_row(_RANDOM, each) for each in parts.random),
        *(_row(_GROUP, each, f", {each.group}") for each in parts.groups),
        *([] if parts.greedy is None else [_row(_WORST, parts.greedy)]),
        _row(_NOTHING, parts.nothing_removed),
        _row(_EVERYTHING, parts.everything_removed),
    ]


def _row(kind: str, removed: Removed, name: str = "") -> dict:
    row: dict = {"kind": kind, "removed": kind + name, "n_removed": removed.n_removed}
    for term, estimate in (("circuit", removed.circuit), ("model", removed.model)):
        row |= {term: estimate.value, f"{term}_low": estimate.low, f"{term}_high": estimate.high}
        row[f"{term}_printed"] = printed(estimate)
    return row | {"difference": printed(removed.difference), "absolute": printed(removed.absolute_difference)}


def _scatter(circuit: str, model: str, parts: PartsRemoved) -> charts.Figure:
    """Circuit across, model up, one point per part. On the diagonal both lose alike; above it the model does better."""
    rows, unit = part_rows(parts), _QUANTITIES[parts.quantity]
    columns = [f"{term}{end}" for term in ("circuit", "model") for end in ("", "_low", "_high")]
    values = [row[column] for row in rows for column in columns if row[column] is not None]
    ends = [min(values, default=0.0), max(values, default=1.0)]
    across = charts.Along("x", f"the circuit without the part: {unit}", ends)
    up, look = charts.Along("y", f"the model without it: {unit}", ends), {"nice": True, "zero": False}
    kinds = [kind for kind in _KINDS if any(row["kind"] == kind for row in rows)]
    palette = [charts.CATEGORIES[_KINDS.index(kind)] for kind in kinds]
    base = alt.Chart(charts.inline(rows)).encode(
        color=charts.colour("kind", kinds, "removed", palette, symbolOpacity=1),
        tooltip=charts.tips(**_COLUMNS),
    )
    x, y = across.at("circuit", **look), up.at("model", **look)
    diagonal = alt.Chart(charts.inline([{"circuit": end, "model": end} for end in ends]))
    layers = [
        diagonal.mark_line(color=charts.MUTED, strokeDash=[4, 3]).encode(x=x, y=y),
        base.mark_rule(opacity=0.45).encode(y=y, x=across.at("circuit_low", **look), x2="circuit_high:Q"),
        base.mark_rule(opacity=0.45).encode(x=x, y=up.at("model_low", **look), y2="model_high:Q"),
        base.mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y),
    ]
    r = parts.correlation
    correlation = "" if r.value is None else f"; over random parts r = {printed(r)}"
    subtitle = [
        f"above the diagonal something outside the circuit stands in for the part{correlation}",
        "with 95 % intervals; near the floor, where neither does anything, being alike says nothing",
    ]
    return charts.finish(layers, f"Completeness: {circuit} in {model}", subtitle, width=340, height=340)
