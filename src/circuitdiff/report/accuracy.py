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
    columns = {"model": "model", "accuracy": "accuracy", "interval": "95 % interval", "hits": "hits / prompts"}
    if any(model.chat != OFF for model in results.models.values()):
        columns["chat"] = "chat template"
    columns |= {"size": "layers × heads", "source": "source"}
    rows = []
    for name, model in results.models.items():
        answers = part_of(results, SECTION).get(name)
        share = None if answers is None else answers.accuracy
        accuracy = {"accuracy": number(None if share is None else share.value), "interval": interval(share)}
        size = f"{model.n_layers} × {model.n_heads}"
        source = " + ".join([model.source, *model.adapters])
        rows.append({"model": name, "hits": hits(share), "chat": model.chat, "size": size, "source": source} | accuracy)
    return Table("", columns, rows, [anchor("accuracy")], numeric=("accuracy", "interval", "hits", "size"))


def _answers(results: CommonResults) -> Table:
    """What is answered: one row per model, then per circuit in a model; shares of all prompts by kind."""
    cells = cells_of(results, FAITHFULNESS)
    alone = {f"circuit {circuit} in {model}": each.circuit_answers for circuit, model, each in cells}
    answers = part_of(results, SECTION) | alone
    kinds = list(dict.fromkeys(error.kind for each in answers.values() for error in each.errors))
    rows = [
        {"what": what, "right": printed(each.accuracy)} | {error.kind: printed(error) for error in each.errors}
        for what, each in answers.items()
        if each.errors
    ]
    note = "By what was asked for: it, its neighbours in the list, another, or none of those listed."
    columns = {"what": "", "right": "right"} | {kind: _KINDS[kind] for kind in kinds}
    title = "What models and circuits answer instead: shares of all evaluation prompts"
    return Table(title, columns, rows, note=note)


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
    layers = charts.points_with_intervals(base, "y", "accuracy", charts.UNIT, shape=shape)
    width = min(720, max(420, 10 * len(rows)))
    return charts.finish(layers, "Accuracy by queried item", ["with 95 % intervals"], width=width, height=220)
