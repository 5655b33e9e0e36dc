"""The circuits: their groups, drawn over a prompt, and the effect of every head at each stage that found them."""

from __future__ import annotations

import altair as alt

from circuitdiff.circuit import Head
from circuitdiff.config.names import file_name
from circuitdiff.report import charts
from circuitdiff.report.drawing import circuit_drawing, scene_of
from circuitdiff.report.numbers import heads, number, printed, significant
from circuitdiff.report.parts import Caption, Part, Table
from circuitdiff.stats.selection import STABLE
from circuitdiff.study.estimates import Estimate, Number, circuit_from
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections.discovery import SECTION, FoundCircuit, Sweep

NOT_MEASURED = "not measured"
SELECTED = "selected: the head helps"
HURTING = "selected: the head hurts"
NOT_REPLICATED = "chosen, but not replicated"
ROUNDING = "within rounding errors"
NOT_SELECTED = "not selected"


def view(results: CommonResults) -> Part:
    circuits = part_of(results, SECTION)
    return Part("The circuits", parts=[_circuit(results, name, circuit) for name, circuit in circuits.items()])


def used_roles(results: CommonResults) -> set[str]:
    """The roles at which some circuit or stage sends or receives; a task has many more."""
    circuits = part_of(results, SECTION).values()
    groups = [group.at for circuit in circuits for group in circuit.groups.values()]
    stages = [stage for circuit in circuits for stage in circuit.stages]
    return {role for role in [*groups, *(r for stage in stages for r in (stage.at, stage.receivers_at))] if role}


def _circuit(results: CommonResults, name: str, circuit: FoundCircuit) -> Part:
    rows = [
        {"group": group, "role": members.at, "heads": len(members.heads)}
        | {"which, strongest first where they were chosen": heads(members.heads)}
        for group, members in circuit.groups.items()
    ]
    return Part(
        f"Circuit: {name}",
        f"in {circuit.model}" + (f" · plan {circuit.plan}" if circuit.plan else ""),
        [*_searched(circuit), *circuit.gaps],
        figures=_drawn(results, name, circuit),
        tables=[Table("", rows, numeric=("heads",))],
        parts=[_stages(name, circuit)] if circuit.stages else [],
    )


def _searched(circuit: FoundCircuit) -> list[str]:
    """How the search of an automatic plan ended."""
    if circuit.automatic is None:
        return []
    if circuit.automatic == "plan":
        return ["by the plan that the search in the base wrote: at other roles nobody looked"]
    return [
        f"found by an automatic plan, which named no roles: the circuit reaches {number(circuit.reached) or '–'} of "
        f"what all heads at all roles do (logit difference, all else at kind means, on the prompts that chose the "
        f"heads); its plan is in "
        f"plan-{file_name(str(circuit.plan))}.yaml"
    ]


def _drawn(results: CommonResults, name: str, circuit: FoundCircuit) -> dict[str, charts.Figure]:
    found, model = circuit_from(circuit.groups), results.models.get(circuit.model)
    highest = max((head.layer for group in found.groups.values() for head in group.heads), default=0)
    n_layers = max(0 if model is None else model.n_layers, highest + 1)
    scene = scene_of(found, circuit.stages, n_layers, results.example.tokens, results.example.roles)
    return {} if scene is None else {f"circuit/{name}": circuit_drawing(name, scene)}


def _stages(name: str, circuit: FoundCircuit) -> Part:
    stages = {f"effects/{name}/{i} {stage.name}": stage for i, stage in enumerate(circuit.stages, start=1)}
    drawn = {
        key: stage
        for key, stage in stages.items()
        if any(stage.effects) and (stage.name in circuit.groups or not circuit.automatic)
    }
    return Part(
        "Effect of every head, stage by stage",
        "Each cell is one head. Negative (blue): the answer suffers when the head's output comes from the "
        "counterfactual, so the head helps; positive (orange): the head hurts. Every map has its own scale. Adjusted p "
        "is of the prompts that chose, over all heads of the stage and of those tested with it.",
        figures={key: effect_map(stage) for key, stage in drawn.items()},
        captions={key: _caption(stage) for key, stage in drawn.items()},
    )


def _caption(stage: Sweep) -> Caption:
    """Where effects come from, and the heads that the stage chose: helping, hurting, and those not replicated."""
    marks = {SELECTED: "", HURTING: "hurts", NOT_REPLICATED: "not replicated"}
    strongest, rows = sorted(effect_rows(stage), key=lambda row: -abs(row["value"] or 0.0)), []
    for row in (row for mark in marks for row in strongest if row["status"] == mark):
        may_be_0 = row["low"] is not None and row["high"] is not None and row["low"] <= 0 <= row["high"]
        says = ", ".join(each for each in (marks[row["status"]], "may be 0" if may_be_0 else "") if each)
        cells = {"chosen": row["head"], "effect": number(row["value"]), "95 % interval": row["interval"]}
        rows.append(cells | {"adjusted p": row["p"], "": says})
    lines = [
        _prompts(stage),
        *_stable(stage),
        *_screened(stage),
        f"rule: {stage.rule} · rounding errors up to {significant(stage.noise_floor)}",
        *([] if rows else ["No head was chosen."]),
    ]
    return Caption(lines, Table("", rows, numeric=("effect", "95 % interval", "adjusted p")))


def _stable(stage: Sweep) -> list[str]:
    if stage.stability.value is None:
        return []
    says = "stable" if stage.stability.value >= STABLE else "not stable"
    return [
        f"{says}: resampled scenarios choose the same heads by {printed(stage.stability)} (Jaccard; stable: {STABLE})"
    ]


def _screened(stage: Sweep) -> list[str]:
    """How many heads attribution left out, and how large one that it missed could be."""
    if (each := stage.screening) is None:
        return []
    missed = (
        ""
        if each.share_beyond is None or each.largest_left_out is None
        else (
            f"; of those left out, by 95 % confidence no more than {each.share_beyond:.0%} have an effect beyond "
            f"{significant(each.largest_left_out)}"
        )
    )
    return [
        f"screened by attribution: {each.n_measured} of {each.n_heads} heads were measured. In a random sample of "
        f"{each.n_sampled}, it ranks them as effects do by {number(each.rank_agreement)} (Spearman), and keeps "
        f"{each.large_kept} of {each.large_in_sample} whose effect reaches the minimum{missed}"
    ]


def _prompts(stage: Sweep) -> str:
    """Which prompts chose, which the effects are of, and what that makes of them."""
    if stage.split == "discovery":
        return (
            f"chosen and measured on the same {stage.n_prompts} prompts (discovery): effects of the chosen heads are "
            "biased, too large, and their intervals do not allow for it"
        )
    return (
        f"chosen on {stage.n_choosing} prompts (discovery); effects and intervals are of {stage.n_prompts} others "
        "(replication)"
    )


def effect_rows(stage: Sweep) -> list[dict]:
    """One row per head: its name, effect, interval and what the stage decided about it."""
    return [
        {"head": str(Head(layer, index)), "layer": layer, "index": index, "status": _status(stage, layer, index, value)}
        | {"p": significant(stage.adjusted_p[layer][index])}
        | charts.bounds(Estimate(value, stage.low[layer][index], stage.high[layer][index]))
        for layer, effects in enumerate(stage.effects)
        for index, value in enumerate(effects)
    ]


def _status(stage: Sweep, layer: int, index: int, effect: Number) -> str:
    if (layer, index) in stage.hurting:
        return HURTING
    if (layer, index) in stage.selected:
        return SELECTED
    if (layer, index) in stage.not_replicated:
        return NOT_REPLICATED
    if effect is None:
        return NOT_MEASURED
    return ROUNDING if abs(effect) <= stage.noise_floor else NOT_SELECTED


def describe(stage: Sweep) -> str:
    """What was patched into what, in words."""
    receivers = stage.receivers_from or (heads(stage.receivers) if stage.receivers else "")
    to = f"into {stage.via or 'the input'} of {receivers}" if receivers else "straight to the output"
    where = f", read at {stage.receivers_at}" if stage.receivers_at else ""
    return f"senders at {stage.at}, {to}{where}; {stage.metric}"


def effect_map(stage: Sweep) -> charts.Figure:
    return map_of(effect_rows(stage), stage.name, describe(stage))


def map_of(rows: list[dict], title: str, subtitle: str) -> charts.Figure:
    """Layers up, heads across; blue (negative) helps, orange (positive) hurts, white is zero.

    The scale is symmetric and the stage's own. A head without a number is hatched, never white.
    """
    step = 26 if max(row["index"] for row in rows) < 16 else 15
    base = alt.Chart().encode(
        x=alt.X("index:O", title="head", axis=alt.Axis(orient="bottom", labelAngle=0, labelOverlap=True)),
        y=alt.Y("layer:O", title="layer", sort="descending", axis=alt.Axis(labelOverlap=True)),
        tooltip=charts.tips(head="head", printed="effect", p="adjusted p", status=""),
    )
    missing = base.transform_filter(alt.datum.value == None)  # noqa: E711 (a Vega expression)
    hatched = missing.mark_rect(fill="#d5d5d5", stroke="white", strokeWidth=1)
    struck_out = charts.struck_out(base, size=90, stroke="#777777")
    layers = [*_cells(base, rows), hatched, struck_out, *_outlines(base, step)]
    legend = ["outlined: selected, helps · dashed with a dot: selected, hurts", "hatched: not measured"]
    return charts.finish(layers, title, [subtitle, *legend], width=alt.Step(step), height=alt.Step(15), rows=rows)


def _cells(base: alt.Chart, rows: list[dict]) -> list[alt.Chart]:
    sizes = [abs(row["value"]) for row in rows if row["value"] is not None]
    if not sizes:
        return []
    largest = max(sizes) or 1.0
    ends = [-largest, 0, largest]
    scale = alt.Scale(domain=ends, range=[charts.HELPS, charts.NEUTRAL, charts.HURTS], interpolate="rgb")
    title = ["effect", "negative = the head helps"]
    legend = alt.Legend(title=title, gradientLength=140, format=".3~g", values=ends)
    cells = charts.known(base).mark_rect(stroke="white", strokeWidth=1)
    return [cells.encode(color=alt.Color("value:Q", scale=scale, legend=legend))]


def _outlines(base: alt.Chart, step: int) -> list[alt.Chart]:
    helps = base.transform_filter(alt.datum.status == SELECTED)
    hurts = base.transform_filter(alt.datum.status == HURTING)
    outline = {"fill": None, "stroke": charts.INK, "strokeWidth": 2, "width": step - 2, "height": 13}
    return [
        helps.mark_rect(**outline),
        hurts.mark_rect(**outline, strokeDash=[3, 2]),
        hurts.mark_point(shape="circle", filled=True, size=18, color=charts.INK, opacity=1),
    ]
