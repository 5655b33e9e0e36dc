"""Curves of faithfulness over the size of a circuit, by ranking, and their areas."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt

from circuitdiff.report import charts
from circuitdiff.report.numbers import all_printed
from circuitdiff.report.parts import Part, Table
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections.curves import SECTION, RankingCurves

_RANKINGS = {
    "path": "path patching",
    "attribution": "attribution",
    "integrated": "integrated gradients",
    "random": "random order",
}
_ABLATED = {"slot": "mean by slot", "resample": "counterfactual's activation"}


def view(results: CommonResults) -> Part:
    found = part_of(results, SECTION)
    columns = {
        "ranking": "ranking",
        "ablated": "other heads",
        "cpr": "area under the curve (CPR)",
        "cmd": "between it and 1 (CMD)",
    }
    return Part(
        "How good is a ranking of heads?",
        "Circuits of the first heads of a ranking, ever more of them, alone: how much of the logit difference is there "
        "(0: all heads ablated, 1: the whole model). Best is a curve that rises at once and stays at 1: a large area "
        "under it (CPR), and a small one between it and 1 (CMD), over shares as they are, not their logarithm. At the "
        "right all heads at the circuit's roles are kept, and heads elsewhere still ablated: it need not be 1. Heads "
        "are ranked on the prompts of discovery, and circuits evaluated on others.",
        figures={f"curves/{model}": _figure(model, each) for model, each in found.items()},
        tables=[Table(f"Areas in {model}", list(_areas(each)), columns) for model, each in found.items()],
    )


def _areas(found: RankingCurves) -> Iterator[dict]:
    for curve in found.curves:
        named = {"ranking": _RANKINGS[curve.ranking], "ablated": _ABLATED[curve.ablated]}
        yield named | all_printed(curve, ("cpr", "cmd"))


def _figure(model: str, found: RankingCurves) -> charts.Figure:
    rows = [
        {"ranking": _RANKINGS[curve.ranking], "ablated": _ABLATED[curve.ablated], "heads": point.n_heads}
        | {"share": point.share}
        | charts.bounds(point.faithfulness)
        for curve in found.curves
        for point in curve.points
    ]
    base = alt.Chart(charts.inline(rows)).encode(
        x=alt.X("share:Q", title="share of all heads at the circuit's roles", scale=alt.Scale(type="log")),
        color=charts.colour("ranking", list(_RANKINGS.values()), None, charts.CATEGORIES, orient="bottom"),
        strokeDash=alt.StrokeDash("ablated:N", title=None, legend=None),
        detail="ablated:N",
        tooltip=charts.tips("ranking", "heads", ablated="other heads", printed="faithfulness"),
    )
    along = charts.Along("y", "faithfulness")
    line = base.mark_line(point=True).encode(y=along.at("value"))
    layers = [*along.dashed(1.0, says="the whole model"), along.intervals(base, opacity=0.4), line]
    about = f"{found.n_prompts} prompts; heads at {', '.join(found.roles)}"
    return charts.finish(layers, f"Faithfulness by ranking in {model}", [about], width=480, height=260)
