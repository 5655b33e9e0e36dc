"""How much of the behaviour the circuits do: every circuit in every model, and what it is compared with."""

from __future__ import annotations

import altair as alt

from circuitdiff.report import charts
from circuitdiff.report.numbers import all_printed, beside_draws, hits, interval, number, printed
from circuitdiff.report.parts import Part, Table
from circuitdiff.study.estimates import Estimate, Share
from circuitdiff.study.registry import CommonResults, cells_of
from circuitdiff.study.sections.faithfulness import SECTION, CircuitInModel
from circuitdiff.study.sections.faithfulness_controls import RandomCircuits

_KEPT = {
    "model": "the model",
    "circuit": "circuit",
    "every_segment": "heads at every segment",
    "wrong_segment": "heads at a wrong segment",
    "all_heads": "all heads at the circuit's roles",
    "nothing": "every head ablated",
}
_NOTES = {
    ("circuit", "kind"): "the segment's address, if the prompt lists any, is taken out of the means",
    ("every_segment", "slot"): "nothing depends on which segment is asked for",
    ("wrong_segment", "slot"): "control: another segment than the one asked for",
    ("all_heads", "slot"): "a reference, not a bound",
}
_CONTROLS = {
    "next_best": "the heads that help next in each stage",
    "other_roles": "its heads at each other's roles",
    "by_attribution": "heads of the largest activation times gradient",
    "rival": "other heads, of the largest activation times gradient while the circuit is held at its means",
}
_MATRIX_COLUMNS = {"circuit": "circuit of", "model": "in model", "printed": "faithfulness", "normalised": "normalised"}
_MATRIX_COLUMNS |= {"accuracy": "circuit alone", "of_model": "whole model", "random": "random circuits", "note": ""}


def view(results: CommonResults) -> Part:
    cells, figures, tables = cells_of(results, SECTION), {}, []
    if len({model for _, model, _ in cells}) > 1:
        rows = _matrix_rows(cells)
        figures["matrix"] = _matrix(rows)
        tables.append(Table("Every circuit in every model", rows, _MATRIX_COLUMNS))
    for circuit, model, each in cells:
        if each.random is not None and each.random.accuracies:
            figures[f"random/{circuit}/{model}"] = _among_random(circuit, model, each, each.random)
    return Part(
        "How much of it the circuits do",
        "Faithfulness is the circuit's accuracy over the whole model's, with every other head replaced by its mean. "
        "Normalised, it is (circuit − ablated) / (model − ablated). Agreement is the share of prompts on which the "
        "circuit gives the model's own answer, right or wrong. All heads at the circuit's roles are a reference, not a "
        "bound. A mean by slot is taken at one place in the text, a mean by kind over that place of all listed items, "
        "the segments; without a list they are the same. Random circuits have as many other heads, at the same roles "
        "and in the same range of layers.",
        figures=figures,
        tables=[
            *tables,
            *(_measures(*cell) for cell in cells),
            *(_controls(*cell) for cell in cells if cell[2].controls),
            *(_rows(*cell) for cell in cells),
        ],
    )


def _with_all_heads(found: CircuitInModel) -> Share | None:
    """Accuracy with all heads at the circuit's roles kept."""
    return next((row.accuracy for row in found.rows if (row.kept, row.mean_by) == ("all_heads", "slot")), None)


def _measures(circuit: str, model: str, found: CircuitInModel) -> Table:
    measures: dict[str, Estimate | None] = {
        "faithfulness": found,
        "normalised faithfulness": found.normalised,
        "agreement with the model": found.agreement,
        "accuracy, circuit alone": found.circuit_accuracy,
        "accuracy, whole model": found.model_accuracy,
        "accuracy, every head ablated": found.ablated_accuracy,
        "accuracy, all heads at the circuit's roles": _with_all_heads(found),
    }
    rows = [
        {"measure": measure, "value": number(each.value), "95 % interval": interval(each)}
        | {"hits / prompts": hits(each) if isinstance(each, Share) else ""}
        | {"note": (found.note or "") if each is found else ""}
        for measure, each in measures.items()
        if each is not None
    ]
    return Table(f"{circuit} in {model}, slot means", rows, numeric=("value", "95 % interval", "hits / prompts"))


def _controls(circuit: str, model: str, found: CircuitInModel) -> Table:
    """Other circuits of this size, one row each."""
    what, difference = "instead of the circuit", "accuracy of the circuit less this one's"
    rows: list[dict[str, str]] = []
    if (random := found.random) is not None:
        mean, own = Estimate(random.mean, random.low, random.high), found.circuit_accuracy.value or 0.0
        compared = beside_draws(own, random.accuracies, random.rank_p, "random circuits")
        row = {what: f"mean of {len(random.accuracies)} random circuits", "accuracy": printed(mean)}
        rows.append(row | {"faithfulness": "", difference: "", "note": f"the circuit: {compared}"})
    rows += [
        {
            what: _CONTROLS[each.kind],
            **all_printed(each, ("accuracy", "faithfulness")),
            difference: printed(each.difference),
            "note": each.note or "",
        }
        for each in found.controls
    ]
    caption = f"{circuit} in {model}: other circuits of its size, with 95 % intervals"
    return Table(caption, rows, numeric=("accuracy", "faithfulness", difference))


def _rows(circuit: str, model: str, found: CircuitInModel) -> Table:
    rows = [
        {
            "kept": _KEPT[row.kept] + ("" if row.mean_by is None else f", {row.mean_by} means"),
            "accuracy": number(row.accuracy.value),
            "95 % interval": interval(row.accuracy),
            "hits / prompts": hits(row.accuracy),
            "faithfulness": printed(row.faithfulness),
            "logit difference": printed(row.logit_difference),
            "": row.faithfulness.note or _NOTES.get((row.kept, row.mean_by or ""), ""),
        }
        for row in found.rows
    ]
    caption = f"{circuit} in {model}: what is kept, and what the mean is taken over"
    return Table(caption, rows, numeric=tuple(rows[0])[1:-1] if rows else ())


def _matrix_rows(cells: list[tuple[str, str, CircuitInModel]]) -> list[dict]:
    """One row per circuit and model: faithfulness with its interval, accuracies, random circuits' mean."""
    return [
        {
            "circuit": circuit,
            "model": model,
            **charts.bounds(found),
            "short": number(found.value),
            "normalised": printed(found.normalised),
            "accuracy": printed(found.circuit_accuracy),
            "of_model": printed(found.model_accuracy),
            "random": number(None if found.random is None else found.random.mean),
            "note": found.note or "",
        }
        for circuit, model, found in cells
    ]


def _matrix(rows: list[dict]) -> charts.Figure:
    """Faithfulness of the row's circuit in the column's model. 1 is the whole model's accuracy."""
    base = alt.Chart(charts.inline(rows)).encode(
        x=charts.names_along("x", rows, "model", "in model", labelAngle=-20),
        y=charts.names_along("y", rows, "circuit", "circuit of"),
        tooltip=charts.tips(**_MATRIX_COLUMNS | {"circuit": "circuit", "model": "model"}),
    )
    scale = alt.Scale(domain=[0, 1], range=[charts.NEUTRAL, charts.HELPS], clamp=True)
    cells = base.mark_rect(stroke="white").encode(color=alt.Color("value:Q", scale=scale, title="faithfulness"))
    light = alt.condition("datum.value > 0.6", alt.value("white"), alt.value(charts.INK))
    text = base.mark_text(fontSize=12).encode(text="short:N", color=light)
    title = "Every circuit in every model"
    subtitle = ["the circuit's accuracy over the whole model's; the base's circuits first"]
    return charts.finish([cells, text], title, subtitle, width=alt.Step(90), height=alt.Step(34))


def _among_random(circuit: str, model: str, found: CircuitInModel, random: RandomCircuits) -> charts.Figure:
    everything = _with_all_heads(found)
    references = {
        "this circuit": found.circuit_accuracy.value,
        "whole model": found.model_accuracy.value,
        "every head ablated": found.ablated_accuracy.value,
        "all heads at its roles": None if everything is None else everything.value,
    }
    title = f"{circuit} among random circuits, {model}"
    return charts.among_random(title, random.accuracies, references, random.n_prompts)
