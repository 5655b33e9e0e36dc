"""What each head costs a circuit, and which heads it keeps."""

from __future__ import annotations

import altair as alt

from circuitdiff.methods.minimality import MinimalityRule
from circuitdiff.report import charts
from circuitdiff.report.numbers import heads, printed, significant
from circuitdiff.report.parts import Part
from circuitdiff.study.estimates import Estimate
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections.minimality import SECTION, HeadResult, PrunedCircuit

_KEPT, _DROPPED = "kept: the cost is credible", "dropped"


def view(results: CommonResults) -> Part:
    circuits = part_of(results, SECTION)
    return Part(
        "Does the circuit need every head?",
        "A head's cost is what the circuit loses without it, once the heads that stand in for it are gone. Everything "
        "outside the circuit is at its mean by slot: a head that writes only what any prompt has there costs nothing.",
        [_sentence(circuit, pruned) for circuit, pruned in circuits.items()],
        {
            f"minimality/{circuit}/{group}": _costs(f"Minimality: {group} of {circuit}", pruned, costs)
            for circuit, pruned in circuits.items()
            for group, costs in pruned.groups.items()
            if costs
        },
    )


def _sentence(circuit: str, pruned: PrunedCircuit) -> str:
    """How many heads stay, and what that does to faithfulness on prompts that had no part in the choice."""
    sizes = pruned.n_heads
    return (
        f"{circuit} keeps {sizes.pruned} of its {sizes.before} heads; on {pruned.n_prompts.fresh} fresh prompts its "
        f"faithfulness is {printed(pruned.faithfulness_before)} before pruning and "
        f"{printed(pruned.faithfulness_pruned)} after."
    )


def _row(head: HeadResult) -> dict:
    return charts.bounds(Estimate(head.cost, head.low, head.high)) | {
        "head": heads([head.head]),
        "status": _KEPT if head.kept else _DROPPED,
        "adjusted_p": significant(head.adjusted_p),
        "removed_with": heads(head.removed_with),
        "in_hits": printed(head.cost_in_hits),
    }


def _costs(title: str, pruned: PrunedCircuit, costs: tuple[HeadResult, ...]) -> charts.Figure:
    """Most costly first: the circuit loses by the head's removal. The dashed line is the threshold."""
    rule = pruned.rule
    rows = sorted(map(_row, costs), key=lambda row: -(row["value"] or 0.0))
    score = "share of prompts answered" if rule.score == "hits" else "the answer's probability"
    unit = f"cost of the head, in {score}"
    base = alt.Chart(charts.inline(rows)).encode(
        y=charts.names_along("y", rows, "head", "head"),
        tooltip=charts.tips(
            head="head", printed=f"cost ({_level(rule)} interval)", in_hits="cost as a share of hits",
            adjusted_p="adjusted p", removed_with="removed before", status="",
        ),
    )  # fmt: skip
    status = charts.colour("status", [_KEPT, _DROPPED], None, (charts.CATEGORIES[0], charts.GREY), orient="bottom")
    threshold = rule.threshold if rule.decision == "credible" else 0.0  # a ratio has no place on an axis of costs
    layers = [
        charts.bars(base, "x", unit, color=status),
        charts.intervals(base, "x", unit, color=charts.INK),
        *charts.dashed("x", threshold, unit),
    ]
    return charts.finish(layers, title, _subtitle(pruned, costs), width=420, height=alt.Step(14))


def _level(rule: MinimalityRule) -> str:
    return f"{100 * rule.level:g} %"


def _subtitle(pruned: PrunedCircuit, costs: tuple[HeadResult, ...]) -> list[str]:
    n = pruned.n_prompts
    on = f"removal sets from {n.choosing} prompts, costs on {n.testing}{' others' if pruned.rule.held_out else ''}"
    return [
        f"{sum(head.kept for head in costs)} of {len(costs)} heads kept; {on}",
        f"with {_level(pruned.rule)} intervals over scenarios",
    ]
