"""What each head costs a circuit, and whether it is needed."""

from __future__ import annotations

import altair as alt

from circuitdiff.methods.minimality import MinimalityRule
from circuitdiff.report import charts
from circuitdiff.report.numbers import heads, printed, significant
from circuitdiff.report.parts import Part
from circuitdiff.study.estimates import Estimate
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections.minimality import SECTION, HeadResult, PrunedCircuit

_OUTCOMES = {"needed": "needed", "open": "open: neither is sure, so it stays", "not_needed": "not needed"}
_TIPS = {"in_hits": "cost as a share of hits", "needed_p": "adjusted p, needed"}
_TIPS |= {"not_needed_p": "adjusted p, not needed", "removed_with": "removed before", "status": ""}
_COLOURS = (charts.CATEGORIES[0], charts.CATEGORIES[4], charts.GREY)


def view(results: CommonResults) -> Part:
    circuits = part_of(results, SECTION)
    return Part(
        "Does the circuit need every head?",
        "A head's cost is what the circuit loses without it, once the heads that stand in for it are gone. Everything "
        "outside the circuit is at its mean by slot: a head that writes only what any prompt has there costs nothing. "
        "Only heads that are surely not needed are pruned.",
        [_sentence(circuit, pruned) for circuit, pruned in circuits.items()],
        {
            f"minimality/{circuit}/{group}": _costs(f"Minimality: {group} of {circuit}", pruned, costs)
            for circuit, pruned in circuits.items()
            for group, costs in pruned.groups.items()
            if costs
        },
    )


def _sentence(circuit: str, pruned: PrunedCircuit) -> str:
    """How many heads are needed, and what pruning does to faithfulness on prompts that had no part in the choice."""
    n = pruned.n_heads
    said = (
        f"Of the {n.needed + n.not_needed + n.open} heads of {circuit} {n.needed} are needed, {n.not_needed} are not "
        f"needed ({_limit(pruned.rule)}), and {n.open} are open"
    )
    if not n.not_needed:
        return f"{said}; none is pruned."
    return (
        f"{said}; on {pruned.n_prompts.fresh} fresh prompts its faithfulness is {printed(pruned.faithfulness_before)}, "
        f"and {printed(pruned.faithfulness_pruned)} without those that are not needed."
    )


def _limit(rule: MinimalityRule) -> str:
    """What a head may cost that is not needed."""
    if rule.decision == "ratio":
        return f"the score is less than {rule.threshold:g} of it larger with the head"
    return f"they cost surely less than {rule.threshold + rule.margin:g}"


def _row(head: HeadResult) -> dict:
    return charts.bounds(Estimate(head.cost, head.low, head.high)) | {
        "head": heads([head.head]),
        "status": _OUTCOMES[head.outcome],
        "needed_p": significant(head.needed_p),
        "not_needed_p": significant(head.not_needed_p),
        "removed_with": heads(head.removed_with),
        "in_hits": printed(head.cost_in_hits),
    }


def _costs(title: str, pruned: PrunedCircuit, costs: tuple[HeadResult, ...]) -> charts.Figure:
    """Most costly first: the circuit loses by the head's removal. Dashed: what a needed head costs at least, and what
    one that is not needed costs at most.
    """
    rule = pruned.rule
    rows = sorted(map(_row, costs), key=lambda row: -(row["value"] or 0.0))
    score = "share of prompts answered" if rule.score == "hits" else "the answer's probability"
    along = charts.Along("x", f"cost of the head, in {score}")
    base = alt.Chart(charts.inline(rows)).encode(
        y=charts.names_along("y", rows, "head", "head"),
        tooltip=charts.tips("head", printed=f"cost ({100 * rule.level:g} % interval)", **_TIPS),
    )
    status = charts.colour("status", list(_OUTCOMES.values()), None, _COLOURS, orient="bottom")
    # a ratio has no place on an axis of costs
    limits = {rule.threshold, rule.threshold + rule.margin} if rule.decision == "credible" else {0.0}
    layers = [
        along.bars(base, color=status),
        along.intervals(base, color=charts.INK),
        *along.dashed(*sorted(limits)),
    ]
    return charts.finish(layers, title, _subtitle(pruned, costs), width=420, height=alt.Step(14))


def _subtitle(pruned: PrunedCircuit, costs: tuple[HeadResult, ...]) -> list[str]:
    n = pruned.n_prompts
    on = f"removal sets from {n.choosing} prompts, costs on {n.testing}{' others' if pruned.rule.held_out else ''}"
    n = {outcome: sum(head.outcome == outcome for head in costs) for outcome in _OUTCOMES}
    return [
        f"{n['needed']} of {len(costs)} heads needed, {n['not_needed']} not needed, {n['open']} open; {on}",
        f"with {100 * pruned.rule.level:g} % intervals over scenarios",
    ]
