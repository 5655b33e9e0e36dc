"""What each head costs a circuit, and which heads it keeps."""

from __future__ import annotations

import altair as alt

from circuitdiff.circuit import Head
from circuitdiff.report.look import CATEGORIES, INK, MUTED, Figure, finish, inline
from circuitdiff.report.numbers import finite, interval, number, significant

KEPT, DROPPED = "kept: the cost is credible", "dropped"
_BAR = 14  # pixels per head


def minimality_key(circuit: str, group: str) -> str:
    return f"minimality/{circuit}/{group}"


def minimality_figures(results: dict) -> dict[str, Figure]:
    """One figure per circuit and group; none for a group without heads."""
    return {
        minimality_key(circuit, group): cost_bars(circuit, group, entry)
        for circuit, entry in (results.get("minimality") or {}).items()
        for group, rows in (entry.get("groups") or {}).items()
        if rows
    }


def cost_rows(rows: list[dict]) -> list[dict]:
    """One row per head, dearest first: its cost with interval, and what was gone before it went."""
    return sorted(map(_row, rows), key=lambda row: -(row["cost"] or 0.0))


def _row(entry: dict) -> dict:
    hits = entry.get("cost_in_hits") or {}
    return {
        "head": str(Head(*entry["head"])),
        "cost": finite(entry.get("cost")),
        "low": finite(entry.get("low")),
        "high": finite(entry.get("high")),
        "printed": number(entry.get("cost")),
        "interval": interval(entry),
        "status": KEPT if entry.get("kept") else DROPPED,
        "adjusted_p": significant(entry.get("adjusted_p")),
        "removed_with": ", ".join(str(Head(*head)) for head in entry.get("removed_with") or []) or "none",
        "in_hits": f"{number(hits.get('value'))} ({interval(hits)})",
    }


def cost_bars(circuit: str, group: str, entry: dict) -> Figure:
    """Bars to the right: the circuit loses by the head's removal. With intervals; the line is the threshold."""
    rows, rule = cost_rows(entry["groups"][group]), entry.get("rule") or {}
    level = _level(rule)
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y("head:N", sort=None, title="head"),
        tooltip=[
            alt.Tooltip("head:N"),
            alt.Tooltip("printed:N", title="cost"),
            alt.Tooltip("interval:N", title=f"{level} interval"),
            alt.Tooltip("in_hits:N", title="cost as a share of hits"),
            alt.Tooltip("adjusted_p:N", title="adjusted p"),
            alt.Tooltip("removed_with:N", title="removed before"),
            alt.Tooltip("status:N"),
        ],
    )
    scale = alt.Scale(domain=[KEPT, DROPPED], range=[CATEGORIES[0], "#b9b9b4"])
    colour = alt.Color("status:N", scale=scale, title=None, legend=alt.Legend(orient="bottom"))
    unit = _unit(rule)
    bars = base.mark_bar(height=9).encode(x=alt.X("cost:Q", title=unit), color=colour)
    ends = base.mark_rule(strokeWidth=1.5, color=INK).encode(x=alt.X("low:Q", title=unit), x2="high:Q")
    threshold = finite(rule.get("threshold")) if rule.get("decision") == "credible" else 0.0
    line = alt.Chart(inline([{"threshold": threshold or 0.0}])).mark_rule(color=MUTED, strokeDash=[4, 3])
    layers = [bars, ends, line.encode(x=alt.X("threshold:Q", title=unit))]
    title = f"Minimality: {group} of {circuit}"
    return finish(layers, title, _subtitle(entry, rows), width=420, height=alt.Step(_BAR))


def _unit(rule: dict) -> str:
    score = "share of prompts answered" if rule.get("score") == "hits" else "the answer's probability"
    return f"cost of the head, in {score}"


def _level(rule: dict) -> str:
    return f"{100 * (finite(rule.get('level')) or 0.95):g} %"


def _subtitle(entry: dict, rows: list[dict]) -> list[str]:
    n_kept = sum(row["status"] == KEPT for row in rows)
    counted = entry.get("n_prompts") or {}
    tested, chosen = finite(counted.get("testing")), finite(counted.get("choosing"))
    prompts = "" if tested is None or chosen is None else f"; removal sets from {chosen:g} prompts, costs on {tested:g}"
    held_out = " others" if (entry.get("rule") or {}).get("held_out") and prompts else ""
    return [
        f"{n_kept} of {len(rows)} heads kept{prompts}{held_out}",
        f"with {_level(entry.get('rule') or {})} intervals over scenarios",
    ]


def minimality_sentence(circuit: str, entry: dict) -> str:
    """How many heads stay, and what that does to faithfulness on prompts that had no part in the choice."""
    sizes, before, after = (entry.get(key) or {} for key in ("n_heads", "faithfulness_before", "faithfulness_pruned"))
    fresh = finite((entry.get("n_prompts") or {}).get("fresh"))
    prompts = "fresh prompts" if fresh is None else f"{fresh:g} fresh prompts"
    return (
        f"{circuit} keeps {sizes.get('pruned', '–')} of its {sizes.get('before', '–')} heads; on {prompts} its "
        f"faithfulness is {number(before.get('value'))} ({interval(before)}) before pruning and "
        f"{number(after.get('value'))} ({interval(after)}) after."
    )
