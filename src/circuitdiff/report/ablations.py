"""One circuit by what everything outside it is replaced with."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt

from circuitdiff.report import charts
from circuitdiff.report.numbers import all_printed
from circuitdiff.report.parts import Part, Table
from circuitdiff.study.registry import CommonResults, cells_of
from circuitdiff.study.sections.ablations import SECTION, AblationScores, UnderAblation

_ABLATIONS = {
    "mean_by_slot": "mean of the slot",
    "mean_by_kind": "mean of the kind of slot",
    "mean_by_kind_every_segment": "mean of the kind of slot, heads kept at every segment",
    "resample": "counterfactual's own",
    "zero": "zero",
    "zero_every_segment": "zero, heads kept at every segment",
}
_QUANTITIES = {"accuracy": "accuracy", "probability": "probability", "logit_difference": "logit difference"}
_COLUMNS = {"circuit": "circuit", "model": "model", "ablated": "all ablated"}
_COLUMNS |= {"ratio": "ratio", "normalised": "normalised"}
_ALONG = charts.Along("x", "share of the model's score that the circuit has")


def view(results: CommonResults) -> Part:
    cells = [(circuit, model, each) for circuit, model, each in cells_of(results, SECTION) if each]
    columns = {"ablation": "all else is", "quantity": "measured by"} | _COLUMNS | {"note": ""}
    return Part(
        "Faithfulness under other ablations",
        "What all heads outside the circuit are replaced with decides the result. Means of a kind of slot and zeros "
        "are the same in all segments: heads kept at the queried one alone mark it, and so the answer.",
        figures={
            f"ablations/{circuit}/{model}": _dots(f"Ablations: {circuit} in {model}", each)
            for circuit, model, each in cells
        },
        tables=[Table(f"{circuit} in {model}", list(ablation_rows(each)), columns) for circuit, model, each in cells],
    )


def _scores(ablations: dict[str, UnderAblation]) -> Iterator[tuple[dict, AblationScores]]:
    """By ablation and quantity, with both in words."""
    for name, ablation in _ABLATIONS.items():
        for field, quantity in _QUANTITIES.items() if name in ablations else ():
            yield {"ablation": ablation, "quantity": quantity}, getattr(ablations[name], field)


def ablation_rows(ablations: dict[str, UnderAblation]) -> Iterator[dict]:
    """One row per ablation and quantity, each number with its interval."""
    for row, scores in _scores(ablations):
        notes = dict.fromkeys(ratio.note for ratio in (scores.ratio, scores.normalised) if ratio.note)
        yield row | all_printed(scores, _COLUMNS) | {"note": "; ".join(notes)}  # why a ratio is undefined


def _dots(title: str, ablations: dict[str, UnderAblation]) -> charts.Figure:
    """(circuit - ablated) / (model - ablated): 0 is no better than ablating everything, 1 is the model."""
    rows = [row | charts.bounds(scores.normalised) for row, scores in _scores(ablations)]
    base = alt.Chart(charts.inline(rows)).encode(
        y=charts.names_along("y", rows, "ablation", "the rest replaced by"),
        yOffset=charts.side_by_side("y", rows, "quantity"),
        color=charts.colour("quantity", charts.distinct(rows, "quantity")),
        tooltip=charts.tips(ablation="the rest replaced by", quantity="measured by", printed="normalised"),
    )
    layers = [*_ALONG.dashed(0.0, 1.0), *_ALONG.points_with_intervals(base)]
    subtitle = ["0: no better than with everything ablated; 1: as the model", "with 95 % intervals"]
    return charts.finish(layers, title, subtitle, width=420, height=alt.Step(18))
