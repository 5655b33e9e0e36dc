"""Whether a variant is another model than its base, for the page and for the command: words, tables, a heat map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import altair as alt

from circuitdiff.models.differences import ModelDifferences
from circuitdiff.models.weight_changes import COUNTS, MOST_RANK, Kind, WeightChange, summed
from circuitdiff.report import charts
from circuitdiff.report.charts import Figure
from circuitdiff.report.numbers import MISSING, significant
from circuitdiff.report.parts import Part, Table
from circuitdiff.study.registry import part_of
from circuitdiff.study.results import CommonResults
from circuitdiff.study.sections.weights import SECTION

CHECKED = (
    "Weights were compared number by number after loading; before that, each model's were held against the SHA-256 of "
    "every weight that was recorded when it was loaded."
)
OUTSIDE = "outside"
_KINDS: tuple[Kind, ...] = get_args(Kind)
_CALLED = {"mlp": "MLP", "qkv": "q, k, v"}
_WIDEST = 260  # px: two maps of 30 layers stand side by side


def view(results: CommonResults) -> Part:
    variants = part_of(results, SECTION)
    return Part(
        "Are they different models?",
        CHECKED,
        sentences=[" ".join(in_words(each)) for each in variants.values()],
        figures={f"weights/{variant}": _heat_map(each) for variant, each in variants.items() if each.whole.n_changed},
    )


def evidence(results: CommonResults) -> Part:
    tables = [by_kind(each) for each in part_of(results, SECTION).values()]
    return Part("The numbers behind the comparison of weights", tables=tables)


def in_words(found: ModelDifferences) -> Iterator[str]:
    base, variant, whole = found.base, found.variant, found.whole
    if found.same_weights:
        yield f"{variant} has {base}'s weights: not one of {whole.n_numbers:,} numbers differs."
    elif whole.n_numbers:
        size = "" if whole.relative is None else f", by {significant(whole.relative)} of the base's size"
        differ = f"{whole.n_changed:,} of {whole.n_numbers:,} weights differ ({_share(whole)}){size}"
        yield f"{variant} is not {base}: {differ}."
    else:
        yield f"{variant} is not {base}: they have no weights that could be compared."
    if found.not_compared:
        more = f" and {len(found.not_compared) - 3} more" if len(found.not_compared) > 3 else ""
        yield f"Not compared: {'; '.join(found.not_compared[:3])}{more}."
    if not found.settings and not found.tokenizer:
        yield "Architecture, settings and tokenizer are the same."
        return
    for what, differ in (("Architecture and settings", found.settings), ("Tokenizer", found.tokenizer)):
        yield f"{what}: {'; '.join(differ) or 'the same'}."


def by_kind(found: ModelDifferences) -> Table:
    rows = []
    for kind in _KINDS:
        parts = [each for each in found.weights if each.kind == kind]
        if parts:
            row = summed(None, kind, parts)
            inside = [each for each in parts if each.layer is not None]
            layers = f"{sum(each.n_changed > 0 for each in inside)} of {len(inside)}" if inside else MISSING
            cells = {"weights": _called(kind), "numbers": f"{row.n_numbers:,}", "changed": f"{row.n_changed:,}"}
            cells |= {"share": _share(row), "difference / base": relative(row), "largest rank": _rank(row)}
            rows.append(cells | {"layers changed": layers})
    note = (
        f"Size: Frobenius norm. Rank: singular values of the difference above {COUNTS:g} times its largest, "
        f"up to {MOST_RANK}; in 16 bits, rounding raises it."
    )
    title = f"Where the weights of {found.variant} differ from {found.base}'s"
    return Table(title, rows, note=note, numeric=tuple(rows[0])[1:] if rows else ())


def by_layer(found: ModelDifferences) -> Table:
    """Relative sizes: layers down, kinds across."""
    cells = {(_layer(each), each.kind): relative(each) for each in found.weights}
    kinds = [kind for kind in _KINDS if any(kind == each for _, each in cells)]
    rows = [
        {"layer": layer} | {_called(kind): cells.get((layer, kind), "") for kind in kinds}
        for layer in dict.fromkeys(map(_layer, _in_order(found)))
    ]
    return Table("Difference / base, by layer", rows, numeric=list(map(_called, kinds)))


def relative(change: WeightChange) -> str:
    return "0" if not change.n_changed else "from 0" if change.relative is None else significant(change.relative)


def _share(change: WeightChange) -> str:
    return f"{significant(100 * change.n_changed / change.n_numbers)} %" if change.n_numbers else MISSING


def _rank(change: WeightChange) -> str:
    if change.rank is None:
        return MISSING
    return f"{MOST_RANK} or more" if change.rank == MOST_RANK else str(change.rank)


def _called(kind: str) -> str:
    return _CALLED.get(kind, kind)


def _layer(change: WeightChange) -> str:
    return OUTSIDE if change.layer is None else str(change.layer)


def _in_order(found: ModelDifferences) -> list[WeightChange]:
    """What is outside the layers last."""
    return sorted(found.weights, key=lambda each: (each.layer is None, each.layer or 0, _KINDS.index(each.kind)))


def _heat_map(found: ModelDifferences) -> Figure:
    """Kinds up, layers across. What is unchanged is white, the smallest change is not."""
    rows = [
        {
            "layer": _layer(each),
            "kind": _called(each.kind),
            "value": each.relative,
            "changed": bool(each.n_changed),
            "relative": relative(each),
            "share": _share(each),
            "rank": _rank(each),
        }
        for each in _in_order(found)
    ]
    kinds = [_called(kind) for kind in _KINDS if any(row["kind"] == _called(kind) for row in rows)]
    axis = alt.Axis(labelAngle=0, labelOverlap=True)
    base = alt.Chart(charts.inline(rows)).encode(
        x=alt.X("layer:O", sort=charts.distinct(rows, "layer"), title="layer; last: outside the layers", axis=axis),
        y=alt.Y("kind:N", sort=kinds, title=None),
        tooltip=charts.tips(
            "layer", kind="weights", relative="difference / base", share="numbers changed", rank="rank"
        ),
    )
    look = {"stroke": charts.FAINT, "strokeWidth": 1}
    largest = max((row["value"] for row in rows if row["value"] is not None), default=0.0) or 1.0
    scale = alt.Scale(domain=[0, largest], range=["#fbe3d3", charts.HURTS])
    legend = alt.Legend(title="difference / base", format=".2~g", values=[0, largest], gradientLength=90)
    changed = charts.known(base.transform_filter(alt.datum.changed))
    layers = [
        base.mark_rect(fill="white", **look),
        changed.mark_rect(**look).encode(color=alt.Color("value:Q", scale=scale, legend=legend)),
        charts.struck_out(base, size=40),
    ]
    step = max(6, min(18, _WIDEST // len(charts.distinct(rows, "layer"))))
    title = f"Weights: {found.variant} against {found.base}"
    subtitle = ["Frobenius norms; white: not one number differs"]
    return charts.finish(layers, title, subtitle, width=alt.Step(step), height=alt.Step(15))
