"""How well the models do the task, by queried item, and what is answered instead."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt

from circuitdiff.report import charts
from circuitdiff.report.numbers import hits, interval, number, printed
from circuitdiff.report.parts import Part, Table, anchor
from circuitdiff.study.registry import CommonResults, cells_of, part_of
from circuitdiff.study.sections.accuracy import SECTION, Accuracy
from circuitdiff.study.sections.faithfulness import SECTION as FAITHFULNESS
from circuitdiff.tasks.chat import OFF

_KINDS = {
    "before": "the one listed before it",
    "after": "the one listed after it",
    "other": "another listed one",
    "none": "none of those listed",
}
_WHOLE, _ALONE = "the whole model", "its own circuit alone"


def view(results: CommonResults) -> Part:
    rows = list(_queried_rows(results))
    return Part(
        "How well the models do the task",
        figures={"accuracy_by_queried": _by_queried(rows)} if rows else {},
        tables=[_models(results), _answers(results)],
    )


def _models(results: CommonResults) -> Table:
    rows, with_chat = [], any(model.chat != OFF for model in results.models.values())
    for name, model in results.models.items():
        answers = part_of(results, SECTION).get(name)
        share = None if answers is None else answers.accuracy
        row = {"model": name, "accuracy": number(share and share.value), "95 % interval": interval(share)}
        row |= {"hits / prompts": hits(share)} | ({"chat template": model.chat} if with_chat else {})
        source = " + ".join([model.source, *model.adapters])
        rows.append(row | {"layers × heads": f"{model.n_layers} × {model.n_heads}", "source": source})
    numeric = ("accuracy", "95 % interval", "hits / prompts", "layers × heads")
    return Table("", rows, ids=[anchor("accuracy")], numeric=numeric)


def _answers(results: CommonResults) -> Table:
    """What is answered: one row per model, then per circuit in a model; shares of all prompts by kind."""
    cells = cells_of(results, FAITHFULNESS)
    alone = {f"circuit {circuit} in {model}": each.circuit_answers for circuit, model, each in cells}
    answers = part_of(results, SECTION) | alone
    rows = [
        {"": what, "right": printed(each.accuracy)} | {_KINDS[error.kind]: printed(error) for error in each.errors}
        for what, each in answers.items()
        if each.errors
    ]
    note = "By what was asked for: it, its neighbours in the list, another, or none of those listed."
    return Table("What models and circuits answer instead: shares of all evaluation prompts", rows, note=note)


def _queried_rows(results: CommonResults) -> Iterator[dict]:
    """Of each model, and of its own main circuit, which goes by the model's name."""
    faithfulness = part_of(results, FAITHFULNESS)
    for name, model in part_of(results, SECTION).items():
        own = faithfulness.get(name, {}).get(name)
        answers: dict[str, Accuracy] = {_WHOLE: model} | ({} if own is None else {_ALONE: own.circuit_answers})
        for what, each in answers.items():
            for point in each.accuracy_by_queried:
                row = {"model": name, "what": what, "run": f"{name}, {what}", "queried": point.queried}
                yield row | charts.bounds(point) | {"hits": hits(point)}


def _by_queried(rows: list[dict]) -> charts.Figure:
    kinds = charts.distinct(rows, "what")
    base = alt.Chart(charts.inline(rows)).encode(
        x=alt.X("queried:O", title="index of the queried item, from zero", axis=alt.Axis(labelAngle=0)),
        xOffset=charts.side_by_side("x", rows, "run"),
        color=charts.colour("model", charts.distinct(rows, "model"), "model"),
        tooltip=charts.tips(model="model", what="", queried="queried", printed="accuracy", hits="hits"),
    )
    shape = alt.Shape("what:N", sort=kinds, title=None, scale=alt.Scale(domain=kinds, range=["circle", "diamond"]))
    layers = charts.ACCURACY.points_with_intervals(base, shape=shape)
    width = min(720, max(420, 10 * len(rows)))
    return charts.finish(layers, "Accuracy by queried item", ["with 95 % intervals"], width=width, height=220)
