"""Two figures of accuracies: by queried item, and of a circuit among random ones."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt

from circuitdiff.report.look import CATEGORIES, INK, MUTED, Figure, finish, inline
from circuitdiff.report.numbers import finite, hits, interval, number

TENTHS = alt.Axis(values=[i / 10 for i in range(11)], format=".1f", labelAngle=0)
BIN = 0.02  # width of a bar of accuracies


_WHOLE, _ALONE = "the whole model", "its own circuit alone"


def by_queried(results: dict) -> Figure | None:
    """Accuracy by the item asked for, with 95 % intervals; None if nobody measured it.

    Of each model, and of its own main circuit, which goes by the model's name.
    """
    rows = list(_queried_rows(results))
    if not rows:
        return None
    names, runs = (list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "run"))
    kinds = [kind for kind in (_WHOLE, _ALONE) if any(row["what"] == kind for row in rows)]
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("queried:O", title="index of the queried item, from zero", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("run:N", sort=runs),
        color=alt.Color("model:N", sort=names, scale=alt.Scale(domain=names, range=CATEGORIES), title="model"),
        tooltip=["model:N", "what:N", "queried:O", "accuracy:N", "interval:N", "hits:N"],
    )
    shape = alt.Shape("what:N", sort=kinds, title=None, scale=alt.Scale(domain=kinds, range=["circle", "diamond"]))
    points = base.mark_point(filled=True, size=60, opacity=1).encode(y=_accuracy_axis("value:Q"), shape=shape)
    bars = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q"), y2="high:Q")
    width = min(720, max(420, 10 * len(rows)))
    return finish([bars, points], "Accuracy by queried item", ["with 95 % intervals"], width=width, height=220)


def _queried_rows(results: dict) -> Iterator[dict]:
    faithfulness = results.get("faithfulness") or {}
    for name, model in (results.get("models") or {}).items():
        own = ((faithfulness.get(name) or {}).get(name) or {}).get("circuit_answers") or {}
        for what, entry in ((_WHOLE, model), (_ALONE, own)):
            for point in entry.get("accuracy_by_queried") or []:
                yield {"what": what, "run": f"{name}, {what}"} | _queried_row(name, point)


def _queried_row(model: str, point: dict) -> dict:
    return {
        "model": model,
        "queried": point["queried"],
        **{key: finite(point.get(key)) for key in ("value", "low", "high")},
        "accuracy": number(point.get("value")),
        "interval": interval(point),
        "hits": hits(point),
    }


def _accuracy_axis(field: str) -> alt.Y:
    return alt.Y(field, title="accuracy", scale=alt.Scale(domain=[0, 1]))


def error_rows(results: dict) -> list[dict]:
    """What is answered: one row per model, then per circuit in a model; shares of all prompts by kind."""
    rows = [_answered(f"{name}", model) for name, model in (results.get("models") or {}).items()]
    rows += [
        _answered(f"circuit {circuit} in {model}", found.get("circuit_answers") or {})
        for circuit, models in (results.get("faithfulness") or {}).items()
        for model, found in models.items()
    ]
    return [row for row in rows if len(row) > _TITLES]


def error_kinds(results: dict) -> list[str]:
    """The kinds of wrong answers that were counted."""
    found = (model.get("errors") or [] for model in (results.get("models") or {}).values())
    return list(dict.fromkeys(error["kind"] for errors in found for error in errors))


_TITLES = 2  # columns of a row that are no kind of error


def _answered(what: str, entry: dict) -> dict:
    shares = {error["kind"]: f"{number(error.get('value'))} ({interval(error)})" for error in entry.get("errors") or []}
    right = entry.get("accuracy") or {}
    return {"what": what, "right": f"{number(right.get('value'))} ({interval(right)})"} | shares


def among_random(
    title: str,
    accuracies: list[float],
    references: dict[str, object],
    n_prompts: int | None,
    drawn: str = "random circuits",
) -> Figure:
    """How random circuits score, with `references` (the real one, the whole model, ...) as rules."""
    bars = (
        alt.Chart(inline([{"accuracy": accuracy} for accuracy in accuracies]))
        .mark_bar(color="#b9b9b4")
        .encode(
            x=alt.X("accuracy:Q", bin=alt.Bin(step=BIN, extent=[0, 1]), title="accuracy", axis=TENTHS),
            y=alt.Y("count():Q", title=drawn, axis=alt.Axis(tickMinStep=1)),
            tooltip=[alt.Tooltip("count():Q", title=drawn)],
        )
    )
    rows = [
        {"what": f"{what}: {number(value)}", "accuracy": finite(value)}
        for what, value in references.items()
        if finite(value) is not None
    ]
    colour = alt.Color(
        "what:N",
        sort=None,
        title=None,
        scale=alt.Scale(domain=[row["what"] for row in rows], range=[CATEGORIES[5], CATEGORIES[0], MUTED, INK]),
        legend=alt.Legend(orient="bottom", direction="vertical", symbolType="stroke"),
    )
    rules = alt.Chart(inline(rows)).mark_rule(strokeWidth=2.5)
    rules = rules.encode(x=alt.X("accuracy:Q", title="accuracy"), color=colour, tooltip=["what:N"])
    layers = [bars, rules] if rows else [bars]
    prompts = "" if n_prompts is None else f" on {n_prompts} prompts"
    return finish(layers, title, [f"{len(accuracies)} {drawn}{prompts}"], width=420, height=150)
