"""How much of the behaviour the circuits do: every circuit in every model, and what it is compared with."""

from __future__ import annotations

import altair as alt

from circuitdiff.report import charts
from circuitdiff.report.numbers import hits, interval, number, printed
from circuitdiff.report.parts import Part, Table
from circuitdiff.study.estimates import Estimate, Share
from circuitdiff.study.registry import CommonResults, cells_of
from circuitdiff.study.sections.faithfulness import SECTION, CircuitInModel, RandomCircuits

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
_MATRIX_COLUMNS = {"circuit": "circuit of", "model": "in model", "printed": "faithfulness", "normalised": "normalised"}
_MATRIX_COLUMNS |= {"accuracy": "circuit alone", "of_model": "whole model", "random": "random circuits", "note": ""}


def view(results: CommonResults) -> Part:
    cells, figures, tables = cells_of(results, SECTION), {}, []
    if len({model for _, model, _ in cells}) > 1:
        rows = _matrix_rows(cells)
        figures["matrix"] = _matrix(rows)
        tables.append(Table("Every circuit in every model", _MATRIX_COLUMNS, rows))
    for circuit, model, each in cells:
        if each.random is not None and each.random.accuracies:
            figures[f"random/{circuit}/{model}"] = _among_random(circuit, model, each, each.random)
    return Part(
        "How much of it the circuits do",
        "Faithfulness is the circuit's accuracy over the whole model's, with every other head replaced by its mean. "
        "Normalised, it is (circuit − ablated) / (model − ablated). Agreement is the share of prompts on which the "
        "circuit gives the model's own answer, right or wrong. All heads at the circuit's roles are a reference, not a "
        "bound. A mean by slot is taken at one place in the text, a mean by kind over that place of all listed items, "
        "the segments; without a list they are the same. Random circuits have as many heads, at the same roles and in "
        "the same range of layers.",
        figures=figures,
        tables=[*tables, *(_measures(*cell) for cell in cells), *(_rows(*cell) for cell in cells)],
    )


def _with_all_heads(found: CircuitInModel) -> Share | None:
    """Accuracy with all heads at the circuit's roles kept."""
    return next((row.accuracy for row in found.rows if (row.kept, row.mean_by) == ("all_heads", "slot")), None)


def _measures(circuit: str, model: str, found: CircuitInModel) -> Table:
    columns = {"measure": "measure", "value": "value", "interval": "95 % interval", "hits": "hits / prompts"}
    everything, random = _with_all_heads(found), found.random
    measures: list[tuple[str, Estimate, str]] = [
        ("faithfulness", found, found.note or ""),
        ("normalised faithfulness", found.normalised, ""),
        ("agreement with the model", found.agreement, ""),
        ("accuracy, circuit alone", found.circuit_accuracy, ""),
        ("accuracy, whole model", found.model_accuracy, ""),
        ("accuracy, every head ablated", found.ablated_accuracy, ""),
    ]
    if everything is not None:
        measures.append(("accuracy, all heads at the circuit's roles", everything, ""))
    if random is not None:
        mean, note = Estimate(random.mean, random.low, random.high), f"on {random.n_prompts} prompts"
        measures.append(("accuracy, mean of the random circuits", mean, note))
    rows = [
        {"measure": measure, "value": number(each.value), "interval": interval(each), "note": note}
        | {"hits": hits(each) if isinstance(each, Share) else ""}
        for measure, each, note in measures
    ]
    title = f"{circuit} in {model}, slot means"
    return Table(title, columns | {"note": "note"}, rows, numeric=("value", "interval", "hits"))


def _rows(circuit: str, model: str, found: CircuitInModel) -> Table:
    columns = {"kept": "kept", "accuracy": "accuracy", "interval": "95 % interval", "hits": "hits / prompts"}
    columns |= {"faithfulness": "faithfulness", "logit_difference": "logit difference", "note": ""}
    rows = [
        {
            "kept": _KEPT[row.kept] + ("" if row.mean_by is None else f", {row.mean_by} means"),
            "accuracy": number(row.accuracy.value),
            "interval": interval(row.accuracy),
            "hits": hits(row.accuracy),
            "faithfulness": printed(row.faithfulness),
            "logit_difference": printed(row.logit_difference),
            "note": row.faithfulness.note or _NOTES.get((row.kept, row.mean_by or ""), ""),
        }
        for row in found.rows
    ]
    caption = f"{circuit} in {model}: what is kept, and what the mean is taken over"
    numeric = ("accuracy", "interval", "hits", "faithfulness", "logit_difference")
    return Table(caption, columns, rows, numeric=numeric)


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
    subtitle = ["the circuit's accuracy over the whole model's; the base's circuits first"]
    return charts.finish(
        [cells, text], "Every circuit in every model", subtitle, width=alt.Step(90), height=alt.Step(34)
    )


def _among_random(circuit: str, model: str, found: CircuitInModel, random: RandomCircuits) -> charts.Figure:
    """The circuit itself on the random circuits' prompts, the others on all."""
    everything = _with_all_heads(found)
    n = found.model_accuracy.n
    where = "" if random.n_prompts == n else f", all {n} prompts"
    references = {
        "this circuit": random.circuit,
        f"whole model{where}": found.model_accuracy.value,
        f"every head ablated{where}": found.ablated_accuracy.value,
        f"all heads at its roles{where}": None if everything is None else everything.value,
    }
    title = f"{circuit} among random circuits, {model}"
    return charts.among_random(title, random.accuracies, references, random.n_prompts)
