"""Where it happens: maps of layer and role in both directions, the matrix of roles, all heads at a few roles alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import altair as alt

from circuitdiff.report import charts
from circuitdiff.report.knockout import matrix_figure, matrix_table, sentences_on
from circuitdiff.report.numbers import number, printed
from circuitdiff.report.parts import Part, Table
from circuitdiff.stats.metrics import METRICS
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections.locate import SECTION, Location, ResidualEffect

_DIRECTIONS = {"restore": "put back", "remove": "taken away"}
_NOTE = (
    "Before any head is chosen. Put back: the counterfactual prompt is run with the clean prompt's residual stream at "
    "one role before one layer, and scored by the clean prompt's answer; blue brings the answer. Taken away: the other "
    "way round; blue is lost. A share is of the distance between the two plain runs. In the table of accuracies all "
    "heads are kept at a few roles, and all others are at their means; roles were chosen on other prompts, and more of "
    "them can do worse."
)
_SHOWN = 5  # of the strongest places


def view(results: CommonResults) -> Part:
    models = part_of(results, SECTION)
    figures: dict[str, charts.Figure] = {}
    for model, found in models.items():
        for direction in _DIRECTIONS:
            figures[f"locate/{model}/{direction}"] = _map(model, found, direction)
        figures[f"locate/{model}/matrix"] = matrix_figure(model, found.matrix, found.n_prompts)
    return Part(
        "Where does it happen?",
        _NOTE,
        [sentence for model, found in models.items() for sentence in _sentences(model, found)],
        figures,
        [table for model, found in models.items() for table in _tables(model, found)],
    )


def tables(results: CommonResults) -> list[Table]:
    """What is printed: the strongest places, and the ceiling."""
    models = part_of(results, SECTION).items()
    return [make(model, found) for model, found in models for make in (strongest_table, ceiling_table)]


def strongest(found: Location, direction: str) -> list[ResidualEffect]:
    """The places that carry most of what the answer needs, most first."""
    sign = 1 if direction == "restore" else -1
    return sorted(_effects(found, direction), key=lambda each: -sign * (each.effect.value or 0.0))[:_SHOWN]


def strongest_table(model: str, found: Location) -> Table:
    rows = [
        {"residual stream": says, "role": each.role, "before layer": each.layer}
        | {"effect": printed(each.effect), "share": printed(each.share)}
        for direction, says in _DIRECTIONS.items()
        for each in strongest(found, direction)
    ]
    distance = f"the two runs are {printed(found.residuals.distance)} {_unit(found)} apart"
    return Table(f"Strongest places in {model}, {found.n_prompts} prompts; {distance}", rows)


def ceiling_table(model: str, found: Location) -> Table:
    """What all heads at ever more roles do alone."""
    ceiling = found.ceiling
    names = ["no role", *(f"{'' if i == 0 else 'and '}{step.role}" for i, step in enumerate(ceiling.steps[1:]))]
    rows = [
        {"all heads kept at": name, "slot means": printed(step.by_slot), "kind means": printed(step.by_kind)}
        | {"share of the model's (slot)": printed(step.normalised)}
        for name, step in zip(names, ceiling.steps, strict=True)
    ]
    on = f"{ceiling.model.n} prompts, roles chosen on {ceiling.n_choosing} others"
    return Table(f"Accuracy of all heads at a few roles in {model} ({on}); the model: {printed(ceiling.model)}", rows)


def _sentences(model: str, found: Location) -> Iterator[str]:
    for direction, says in _DIRECTIONS.items():
        [place, *_] = strongest(found, direction)
        yield (
            f"In {model}, of {len(_effects(found, direction))} places the residual stream at {place.role} before layer "
            f"{place.layer} does most when {says}: {printed(place.effect)} {_unit(found)}, "
            f"{number(place.share.value)} of the distance; the largest of many is too large."
        )
    yield from sentences_on(model, found.matrix)


def _tables(model: str, found: Location) -> list[Table]:
    matrix = matrix_table(model, found.matrix, found.n_prompts)
    return [strongest_table(model, found), ceiling_table(model, found), matrix]


def _map(model: str, found: Location, direction: str) -> charts.Figure:
    """Roles across in the prompt's order, layers up."""
    rows = [
        charts.bounds(each.effect) | {"role": each.role, "layer": each.layer, "share": printed(each.share)}
        for each in _effects(found, direction)
    ]
    base = alt.Chart(charts.inline(rows)).encode(
        x=alt.X("role:N", sort=list(found.roles), title="role", axis=alt.Axis(labelAngle=-40)),
        y=alt.Y("layer:O", sort="descending", title="before layer"),
        tooltip=charts.tips("role", layer="before layer", printed="effect", share="share of the distance"),
    )
    largest = max((abs(row["value"] or 0.0) for row in rows), default=0.0) or 1.0
    colours = [charts.HURTS, charts.NEUTRAL, charts.HELPS][:: 1 if direction == "restore" else -1]
    scale = alt.Scale(domain=[-largest, 0, largest], range=colours, interpolate="rgb")
    colour = alt.Color("value:Q", scale=scale, title=["effect", _unit(found)])
    layers = [charts.known(base).mark_rect(stroke="white").encode(color=colour), charts.struck_out(base)]
    title = f"Residual stream {_DIRECTIONS[direction]} in {model}"
    subtitle = [f"{found.n_prompts} prompts; blue: the place carries what the answer needs"]
    return charts.finish(layers, title, subtitle, width=alt.Step(44), height=alt.Step(18))


def _effects(found: Location, direction: str) -> Sequence[ResidualEffect]:
    return found.residuals.restore if direction == "restore" else found.residuals.remove


def _unit(found: Location) -> str:
    return METRICS[found.residuals.metric].unit
