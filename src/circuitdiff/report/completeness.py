"""Model and circuit without the same parts, against each other."""

from __future__ import annotations

import altair as alt

from circuitdiff.report.look import CATEGORIES, MUTED, Figure, finish, inline
from circuitdiff.report.numbers import finite, interval, number

RANDOM, GROUP, WORST = "a random part", "a whole group", "the worst part found"
NOTHING, EVERYTHING = "nothing removed", "the whole circuit"
_KINDS = (RANDOM, GROUP, WORST, NOTHING, EVERYTHING)
_QUANTITIES = {
    "hits": "accuracy",
    "probability": "mean probability of the answer",
    "logit_difference": "mean logit difference",
}


def completeness_key(circuit: str, model: str) -> str:
    return f"completeness/{circuit}/{model}"


def completeness_figures(results: dict) -> dict[str, Figure]:
    """One figure per circuit and model."""
    return {
        completeness_key(circuit, model): scatter(f"Completeness: {circuit} in {model}", entry)
        for circuit, models in (results.get("completeness") or {}).items()
        for model, entry in models.items()
        if part_rows(entry)
    }


def part_rows(entry: dict) -> list[dict]:
    """One row per part that was removed, with both terms, their difference, and what the part is."""
    named = [
        *((RANDOM, "", row) for row in entry.get("random") or []),
        *((GROUP, row.get("group", ""), row) for row in entry.get("groups") or []),
        *((kind, "", entry[key]) for kind, key in _SINGLE.items() if entry.get(key)),
    ]
    return [_row(kind, name, row) for kind, name, row in named]


_SINGLE = {WORST: "greedy", NOTHING: "nothing_removed", EVERYTHING: "everything_removed"}


def _row(kind: str, name: str, part: dict) -> dict:
    said = f"{kind}, {name}" if name else kind
    row: dict = {"kind": kind, "what": name or kind, "removed": said, "n_removed": part.get("n_removed")}
    for term in ("circuit", "model"):
        estimate = part.get(term) or {}
        row |= {term: finite(estimate.get("value"))}
        row |= {f"{term}_{end}": finite(estimate.get(end)) for end in ("low", "high")}
        row |= {f"{term}_printed": f"{number(estimate.get('value'))} ({interval(estimate)})"}
    for key, column in (("difference", "difference"), ("absolute_difference", "absolute")):
        found = part.get(key) or {}
        row |= {column: f"{number(found.get('value'))} ({interval(found)})"}
    return row


def completeness_caption(circuit: str, model: str, entry: dict) -> str:
    return f"{circuit} and {model} without the same heads: {_quantity(entry)}, with 95 % intervals"


def _quantity(entry: dict) -> str:
    return _QUANTITIES.get(str(entry.get("quantity")), "score")


def scatter(title: str, entry: dict) -> Figure:
    """Circuit across, model up, one point per part. On the diagonal both lose alike; above it the model does better."""
    rows = part_rows(entry)
    values = [row[f"{term}_{end}"] for row in rows for term in ("circuit", "model") for end in ("low", "high")]
    values += [row[term] for row in rows for term in ("circuit", "model")]
    known = [value for value in values if value is not None]
    ends = [min(known, default=0.0), max(known, default=1.0)]
    unit = _quantity(entry)
    scale = alt.Scale(domain=ends, nice=True, zero=False)
    across_title, up_title = f"the circuit without the part: {unit}", f"the model without it: {unit}"
    x, y = alt.X("circuit:Q", title=across_title, scale=scale), alt.Y("model:Q", title=up_title, scale=scale)
    base = alt.Chart(inline(rows)).encode(color=_colour(rows), tooltip=_tooltip())
    across = base.mark_rule(opacity=0.45).encode(
        x=alt.X("circuit_low:Q", title=across_title, scale=scale), x2="circuit_high:Q", y=y
    )
    up = base.mark_rule(opacity=0.45).encode(
        x=x, y=alt.Y("model_low:Q", title=up_title, scale=scale), y2="model_high:Q"
    )
    points = base.mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y)
    diagonal = alt.Chart(inline([{"circuit": end, "model": end} for end in ends]))
    line = diagonal.mark_line(color=MUTED, strokeDash=[4, 3]).encode(x=x, y=y)
    return finish([line, across, up, points], title, _subtitle(entry), width=340, height=340)


def _colour(rows: list[dict]) -> alt.Color:
    present = [kind for kind in _KINDS if any(row["kind"] == kind for row in rows)]
    scale = alt.Scale(domain=present, range=[CATEGORIES[_KINDS.index(kind)] for kind in present])
    return alt.Color("kind:N", scale=scale, sort=None, title="removed", legend=alt.Legend(symbolOpacity=1))


def _tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("what:N", title="removed"),
        alt.Tooltip("n_removed:Q", title="heads removed"),
        alt.Tooltip("model_printed:N", title="model without it"),
        alt.Tooltip("circuit_printed:N", title="circuit without it"),
        alt.Tooltip("difference:N", title="model − circuit"),
        alt.Tooltip("absolute:N", title="|model − circuit|"),
    ]


def _subtitle(entry: dict) -> list[str]:
    r = entry.get("correlation") or {}
    said = "" if finite(r.get("value")) is None else f"; over random parts r = {number(r.get('value'))} ({interval(r)})"
    return [
        f"above the diagonal something outside the circuit stands in for the part{said}",
        "with 95 % intervals; near the floor, where neither does anything, being alike says nothing",
    ]


def completeness_sentence(circuit: str, model: str, entry: dict) -> str:
    """Both terms for the worst part that was found, and the floor beside them."""
    worst, floor = (entry.get(key) or {} for key in ("greedy", "everything_removed"))
    if not worst:
        return ""
    terms = [number((part.get(term) or {}).get("value")) for part, term in ((worst, "model"), (worst, "circuit"))]
    difference = worst.get("difference") or {}
    return (
        f"Without the worst {worst.get('n_removed', '–')} heads that a search found, {model} scores {terms[0]} and "
        f"{circuit} alone {terms[1]}: a difference of {number(difference.get('value'))} ({interval(difference)}). "
        f"With no head kept at all the score is {number((floor.get('circuit') or {}).get('value'))}."
    )
