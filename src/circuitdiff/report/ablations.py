"""One circuit by what everything outside it is replaced with."""

from __future__ import annotations

import altair as alt

from circuitdiff.report.look import CATEGORIES, MUTED, Figure, finish, inline
from circuitdiff.report.numbers import finite, interval, number

ABLATIONS = {
    "mean_by_slot": "mean of the slot",
    "mean_by_kind": "mean of the kind of slot",
    "mean_by_kind_every_segment": "mean of the kind of slot, heads kept at every segment",
    "resample": "counterfactual's own",
    "zero": "zero",
    "zero_every_segment": "zero, heads kept at every segment",
}
QUANTITIES = {"accuracy": "accuracy", "probability": "probability", "logit_difference": "logit difference"}
_COLUMNS = ("circuit", "model", "ablated", "ratio", "normalised")


def ablations_key(circuit: str, model: str) -> str:
    return f"ablations/{circuit}/{model}"


def ablations_figures(results: dict) -> dict[str, Figure]:
    """One figure per circuit and model."""
    return {
        ablations_key(circuit, model): normalised_dots(f"Ablations: {circuit} in {model}", entry)
        for circuit, models in (results.get("ablations") or {}).items()
        for model, entry in models.items()
        if ablation_rows(entry)
    }


def ablation_rows(entry: dict) -> list[dict]:
    """The table: one row per ablation and quantity, each number printed with its interval."""
    return [
        {"ablation": said, "quantity": called}
        | {column: _printed(scores.get(column)) for column in _COLUMNS}
        | _notes(scores)
        for name, said in ABLATIONS.items()
        for quantity, called in QUANTITIES.items()
        if (scores := (entry.get(name) or {}).get(quantity))
    ]


def _printed(estimate: object) -> str:
    value = estimate.get("value") if isinstance(estimate, dict) else None
    return number(value) if finite(value) is None else f"{number(value)} ({interval(estimate)})"


def _notes(scores: dict) -> dict:
    """Why a ratio is undefined."""
    notes = [(scores.get(ratio) or {}).get("note") for ratio in ("ratio", "normalised")]
    return {"note": "; ".join(dict.fromkeys(note for note in notes if note))}


def normalised_dots(title: str, entry: dict) -> Figure:
    """(circuit - ablated) / (model - ablated): 0 is no better than ablating everything, 1 is the model."""
    rows = _dots(entry)
    present = list(dict.fromkeys(row["quantity"] for row in rows))
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y("ablation:N", sort=None, title="the rest replaced by"),
        yOffset=alt.YOffset("quantity:N", sort=present),
        color=alt.Color(
            "quantity:N", sort=None, title=None, scale=alt.Scale(domain=present, range=list(CATEGORIES[: len(present)]))
        ),
        tooltip=["ablation:N", "quantity:N", "printed:N"],
    )
    unit = "share of the model's score that the circuit has"
    x = alt.X("value:Q", title=unit)
    ends = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=unit), x2="high:Q")
    points = base.mark_point(filled=True, size=60, opacity=1).encode(x=x)
    marks = alt.Chart(inline([{"value": 0}, {"value": 1}])).mark_rule(color=MUTED, strokeDash=[4, 3]).encode(x=x)
    subtitle = ["0: no better than with everything ablated; 1: as the model", "with 95 % intervals"]
    return finish([marks, ends, points], title, subtitle, width=420, height=alt.Step(18))


def _dots(entry: dict) -> list[dict]:
    rows = []
    for name, said in ABLATIONS.items():
        for quantity, called in QUANTITIES.items():
            found = ((entry.get(name) or {}).get(quantity) or {}).get("normalised")
            if found:
                bounds = {key: finite(found.get(key)) for key in ("value", "low", "high")}
                rows.append({"ablation": said, "quantity": called, "printed": _printed(found)} | bounds)
    return rows
