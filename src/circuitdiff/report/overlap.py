"""Every circuit in every model, and whether a variant's circuit is the base's."""

from __future__ import annotations

import altair as alt

from circuitdiff.circuit import Head
from circuitdiff.report.look import CATEGORIES, HELPS, INK, MUTED, Figure, finish, inline
from circuitdiff.report.numbers import finite, interval, number, significant

MATRIX = "matrix"


def likeness_key(variant: str, stage: str) -> str:
    return f"overlap/{variant}/{stage}"


def overlap_figures(results: dict) -> dict[str, Figure]:
    """The matrix, if there is more than one model; each variant's overlap with the base by k, stage by stage."""
    rows = matrix_rows(results)
    drawn = {MATRIX: matrix(rows)} if len({row["model"] for row in rows}) > 1 else {}
    for variant, entry in (results.get("overlap") or {}).items():
        for stage in entry.get("stages") or []:
            if curve := likeness_rows(stage):
                drawn[likeness_key(variant, stage["stage"])] = likeness(f"{stage['stage']}: base and {variant}", curve)
    return drawn


def matrix_rows(results: dict) -> list[dict]:
    """One row per circuit and model: faithfulness with its interval, accuracies, random circuits' mean."""
    rows = []
    for circuit, models in (results.get("faithfulness") or {}).items():
        for model, found in models.items():
            random = ((results.get("random") or {}).get(circuit) or {}).get(model) or {}
            rows.append(
                {
                    "circuit": circuit,
                    "model": model,
                    "faithfulness": finite(found.get("value")),
                    "printed": f"{number(found.get('value'))} ({interval(found)})",
                    "short": number(found.get("value")),
                    "normalised": _printed(found.get("normalised")),
                    "accuracy": _printed(found.get("circuit_accuracy")),
                    "of_model": _printed(found.get("model_accuracy")),
                    "random": number(random.get("mean")),
                    "note": found.get("note") or "",
                }
            )
    return rows


def _printed(found: object) -> str:
    return f"{number(found.get('value'))} ({interval(found)})" if isinstance(found, dict) else "–"


def matrix(rows: list[dict]) -> Figure:
    """Faithfulness of the row's circuit in the column's model. 1 is the whole model's accuracy."""
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("model:N", sort=None, title="in model", axis=alt.Axis(labelAngle=-20, labelLimit=200)),
        y=alt.Y("circuit:N", sort=None, title="circuit of", axis=alt.Axis(labelLimit=220)),
        tooltip=["circuit:N", "model:N", "printed:N", "normalised:N", "accuracy:N", "of_model:N", "random:N", "note:N"],
    )
    scale = alt.Scale(domain=[0, 1], range=["#f8f8f5", HELPS], clamp=True)
    cells = base.mark_rect(stroke="white").encode(color=alt.Color("faithfulness:Q", scale=scale, title="faithfulness"))
    light = alt.condition("datum.faithfulness > 0.6", alt.value("white"), alt.value(INK))
    text = base.mark_text(fontSize=12).encode(text="short:N", color=light)
    said = ["the circuit's accuracy over the whole model's; the base's circuits first"]
    return finish([cells, text], "Every circuit in every model", said, width=alt.Step(90), height=alt.Step(34))


_BETWEEN, _BASE, _VARIANT, _CHANCE = "base and variant", "the base with itself", "the variant with itself", "chance"


def likeness_rows(stage: dict) -> list[dict]:
    """One row per k and pair: the Jaccard index of the k strongest heads, on halves of the prompts."""
    rows = []
    for entry in stage.get("jaccard") or []:
        for said, key in ((_BETWEEN, "between"), (_BASE, "base"), (_VARIANT, "variant")):
            spread = entry.get(key) or {}
            rows.append({"k": entry["k"], "pair": said} | {end: finite(spread.get(end)) for end in _ENDS})
        rows.append({"k": entry["k"], "pair": _CHANCE, "value": finite(entry.get("floor")), "low": None, "high": None})
    return [row for row in rows if row["value"] is not None]


_ENDS = ("value", "low", "high")


def likeness(title: str, rows: list[dict]) -> Figure:
    """Overlap of the strongest heads by how many are taken, between its retest and chance."""
    names = [_BETWEEN, _BASE, _VARIANT, _CHANCE]
    colours = [CATEGORIES[0], CATEGORIES[2], CATEGORIES[1], MUTED]
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("k:Q", title="strongest heads taken", scale=alt.Scale(type="log"), axis=alt.Axis(values=_ks(rows))),
        color=alt.Color("pair:N", sort=names, scale=alt.Scale(domain=names, range=colours), title="overlap of"),
        tooltip=["pair:N", "k:Q", "value:Q", "low:Q", "high:Q"],
    )
    jaccard = alt.Y("value:Q", title="Jaccard index", scale=alt.Scale(domain=[0, 1]))
    lines = base.mark_line(point=True).encode(y=jaccard)
    bands = base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", title="Jaccard index"), y2="high:Q")
    said = ["each effect measured on one half of the prompts, held against the other half", "bars: 95 % of halvings"]
    return finish([bands, lines], title, said, width=260, height=200)


def _ks(rows: list[dict]) -> list[int]:
    return sorted({row["k"] for row in rows})


def group_rows(entry: dict) -> list[dict]:
    """Heads in common, group by group."""
    return [
        row
        | {"precision": number(row["precision"]), "recall": number(row["recall"]), "jaccard": number(row["jaccard"])}
        for row in entry.get("groups") or []
    ]


def stage_rows(entry: dict) -> list[dict]:
    """How alike the whole maps of effects are, between retest and floor; heads gained and lost."""
    return [
        {
            "stage": stage["stage"],
            "receivers": "the same" if stage.get("same_receivers") else "each model's own",
            "between": _printed((stage.get("correlation") or {}).get("between")),
            "base": _printed((stage.get("correlation") or {}).get("base")),
            "variant": _printed((stage.get("correlation") or {}).get("variant")),
            "different": _printed(stage.get("different")),
            "gained": _changed(stage, gained=True),
            "lost": _changed(stage, gained=False),
        }
        for stage in entry.get("stages") or []
    ]


def _changed(stage: dict, *, gained: bool) -> str:
    """Heads that help more (or less) in the variant, with the difference."""
    chosen = [change for change in stage.get("changed") or [] if (change["difference"] < 0) == gained]
    return ", ".join(f"{Head(*change['head'])} ({change['difference']:+.2f})" for change in chosen) or "none"


_SHARES = {"precision": "precision", "recall": "recall", "jaccard": "Jaccard"}


def curve_rows(entry: dict) -> list[dict]:
    """Heads in common among the k strongest, by stage, share and k, between retest and chance."""
    return [
        {"stage": stage["stage"], "share": called, "k": row["k"], "chance": number(row.get("floor"))}
        | {pair: _printed(row.get(pair)) for pair in ("between", "base", "variant")}
        for stage in entry.get("stages") or []
        for share, called in _SHARES.items()
        for row in stage.get(share) or []
    ]


def edge_rows(entry: dict) -> list[dict]:
    """Effects from group to group in base and variant."""
    return [
        {
            "edge": f"{edge['sender']} to {edge['receiver'] or 'the logits'}",
            "via": edge["via"] or "direct",
            "base": _printed(edge["base"]),
            "variant": _printed(edge["variant"]),
            "difference": _printed(edge["difference"]),
            "adjusted_p": significant(edge.get("adjusted_p")),
        }
        for edge in entry.get("edges") or []
    ]


def profile_rows(entry: dict, what: str) -> list[dict]:
    """`what`: attention or effect, of each of the base's groups, role by role, where either is more than next to 0."""
    return [
        {"group": group, "role": row["role"], "base": _printed(row["base"]), "variant": _printed(row["variant"])}
        for group, profile in (entry.get("profiles") or {}).items()
        for row in profile.get(what) or []
        if max(abs(finite(row[model]["value"]) or 0.0) for model in ("base", "variant")) >= 0.02
    ]


def moved_rows(entry: dict) -> list[dict]:
    """How alike what the base's groups do and what the variant's own groups do, whichever heads they have."""
    return [
        {
            "base": row["base"],
            "variant": row["variant"],
            "attention": _printed(row["attention"]),
            "effect": _printed(row["effect"]),
        }
        for row in entry.get("moved") or []
    ]


def overlap_sentence(variant: str, entry: dict) -> str:
    """Heads in common, and how alike effects are against a retest."""
    total = next((row for row in entry.get("groups") or [] if row["group"] == "all groups"), None)
    said = "" if total is None else f"{total['common']} of {variant}'s {total['variant']} heads are the base's, too"
    first = next(iter(entry.get("stages") or []), None)
    if first is None:
        return f"{said}." if said else ""
    alike, retest = first["correlation"]["between"], first["correlation"]["base"]
    return (
        f"{said}; effects straight into the logits correlate at {number(alike['value'])}, where the base's own retest "
        f"has {number(retest['value'])}."
    )
