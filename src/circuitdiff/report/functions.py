"""What each group encodes: accuracies of component masks above their floor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import altair as alt

from circuitdiff.report import charts
from circuitdiff.report.numbers import heads, hits, number, printed
from circuitdiff.report.parts import Part, Table, anchor
from circuitdiff.study.estimates import Estimate
from circuitdiff.study.registry import CommonResults, cells_of
from circuitdiff.study.sections.accuracy import QueriedShare
from circuitdiff.study.sections.functions import SECTION, MaskCell, TradeOff

_CARRIES, _NOT = "above its floor", "not above its floor"
_FLOORS = {"nothing": "no head patched", "shuffled": "a mask trained and tested on shuffled targets"}
_FOLLOWED = {"unpatched": "the answer without a patch", "other": "anything else"}  # the others go by their kind
_PATCHED = {"mask": "the mask's heads", "all": "all heads"}
_MAIN = ("object", "label", "position")  # in the order and colours of every figure; others follow
_TIPS = {"printed": "accuracy", "floor_printed": "floor", "above": "above the floor", "heads": "heads patched"}


@dataclass(frozen=True)
class Masks:
    """All masks of one circuit's groups in one model."""

    circuit: str
    model: str
    cells: dict[str, dict[str, MaskCell]]

    def __iter__(self) -> Iterator[tuple[str, str, MaskCell]]:
        """By group and desideratum, the main ones first."""
        for group, cells in self.cells.items():
            for name in sorted(cells, key=lambda name: _MAIN.index(name) if name in _MAIN else len(_MAIN)):
                yield group, name, cells[name]

    @property
    def transferred(self) -> bool:
        """Whether masks of another model were tested in this one."""
        return any(cell.transferred is not None for _, _, cell in self)


def view(results: CommonResults) -> Part:
    masks = [Masks(*cell) for cell in cells_of(results, SECTION)]
    return Part(
        "What each group encodes",
        "A mask chooses heads of a group whose activations, taken from a source prompt, turn the answer into the "
        "desideratum's target. Only accuracy above the floor counts. The trained floor is a mask trained and tested on "
        "shuffled targets.",
        list(map(_sentence, masks)),
        _figures(masks),
        _tables(masks),
    )


def _sentence(masks: Masks) -> str:
    """What each group encodes, and nothing more than the intervals allow."""
    carried: dict[str, list[str]] = {group: [] for group in masks.cells}
    for group, name, cell in masks:
        if cell.carries:
            carried[group].append(f"{name} ({printed(cell.above_floor)} above the floor)")
    listed = [f"{group} encodes {', '.join(names) or 'none of what was asked'}" for group, names in carried.items()]
    return f"{masks.circuit} in {masks.model}: {'; '.join(listed)}."


# Figures.


def _figures(every: list[Masks]) -> dict[str, charts.Figure]:
    """Per circuit and model: bars, trade-offs, conflicts by index; per circuit: activation patching in all models."""
    drawn: dict[str, charts.Figure] = {}
    for circuit in dict.fromkeys(masks.circuit for masks in every):
        in_models = [masks for masks in every if masks.circuit == circuit]
        for masks in in_models:
            drawn |= _of_model(masks)
        redrawn = [name for masks in in_models for _, name, cell in masks if cell.redrawn is not None]
        for name in dict.fromkeys(redrawn):
            title, key = f"{circuit}: {name}", f"functions/{circuit}/sources drawn anew/{name}"
            drawn[key] = _redrawn_bars(title, redrawn_rows(in_models, name))
    return drawn


def _of_model(masks: Masks) -> dict[str, charts.Figure]:
    key, drawn = f"functions/{masks.circuit}/{masks.model}", {}
    if rows := bar_rows(masks):
        drawn[key] = _bars(f"What groups of {masks.circuit} encode in {masks.model}", rows)
    for group in masks.cells:
        title = f"{group} of {masks.circuit} in {masks.model}"
        cells = {name: cell for of, name, cell in masks if of == group}
        trade_offs = {name: cell.trade_off for name, cell in cells.items() if len(cell.trade_off) > 1}
        conflicts = {name: cell.by_queried for name, cell in cells.items() if name.startswith("conflict")}
        if trade_offs:
            drawn[f"{key}/{group}/trade-off"] = _trade_off(title, trade_offs)
        if any(conflicts.values()):
            drawn[f"{key}/{group}/by index"] = _by_index(title, conflicts)
    return drawn


def bar_rows(masks: Masks) -> list[dict]:
    return [
        charts.bounds(Estimate(cell.accuracy, cell.low, cell.high))
        | {
            "group": group,
            "desideratum": name,
            "floor": cell.floor,
            "floor_printed": f"{number(cell.floor)} ({_FLOORS[cell.floor_is]})",
            "above": printed(cell.above_floor),
            "carries": _CARRIES if cell.carries else _NOT,
            "heads": f"{len(cell.heads)} of {len(cell.group)}",
        }
        for group, name, cell in masks
    ]


def _bars(title: str, rows: list[dict]) -> charts.Figure:
    """Test accuracy of each mask with its interval; the dark tick is the floor. Pale: not above it."""
    base = _in_groups(rows, "desideratum", **_TIPS)
    opacity = alt.Opacity("carries:N", scale=alt.Scale(domain=[_CARRIES, _NOT], range=[1, 0.35]), title=None)
    ticks = base.mark_tick(thickness=2.5, color=charts.INK, orient="horizontal")
    layers = [
        charts.ACCURACY.bars(base, color=_coloured(rows, "desideratum"), opacity=opacity),
        charts.ACCURACY.intervals(base, color=charts.INK),
        ticks.encode(y=charts.ACCURACY.at("floor")),
    ]
    subtitle = ["share of test triples whose target became the answer, with 95 % intervals; tick: the floor"]
    return charts.finish(layers, title, subtitle, width=_width(rows, "desideratum"), height=220)


def _in_groups(rows: list[dict], by: str, **tips: str) -> alt.Chart:
    """Group by group, what is compared side by side."""
    return alt.Chart(charts.inline(rows)).encode(
        x=charts.names_along("x", rows, "group"),
        xOffset=charts.side_by_side("x", rows, by),
        tooltip=charts.tips("group", by, **tips),
    )


def _coloured(rows: list[dict], field: str) -> alt.Color:
    return charts.colour(field, charts.distinct(rows, field), field)


def _width(rows: list[dict], field: str) -> int:
    """Room for each bar and for each group's name."""
    return len(charts.distinct(rows, "group")) * max(130, 16 * len(charts.distinct(rows, field)))


def _trade_off(title: str, by_desideratum: Mapping[str, Iterable[TradeOff]]) -> charts.Figure:
    """Heads patched against test accuracy, one dot per penalty and seed."""
    rows = [
        {"desideratum": name, "n_heads": mask.n_heads, "penalty": f"{mask.penalty:g}", "seed": mask.seed}
        | charts.bounds(mask)
        | {"heads": heads(mask.heads)}
        for name, masks in by_desideratum.items()
        for mask in masks
    ]
    base = alt.Chart(charts.inline(rows)).encode(
        x=alt.X("n_heads:Q", title="heads patched", axis=alt.Axis(tickMinStep=1, format="d")),
        color=_coloured(rows, "desideratum"),
        tooltip=charts.tips(
            "desideratum", "penalty", "seed", n_heads="heads patched", printed="accuracy", heads="heads"
        ),
    )
    layers = [charts.ACCURACY.intervals(base, opacity=0.6), charts.ACCURACY.points(base)]
    subtitle = ["a dot for each penalty and seed; with 95 % intervals"]
    return charts.finish(layers, f"Heads against accuracy: {title}", subtitle, width=360, height=220)


def _by_index(title: str, by_desideratum: Mapping[str, Iterable[QueriedShare]]) -> charts.Figure:
    """Where position, label and object point to three listed answers: which is followed, by the source's index."""
    rows = [
        {"desideratum": name, "index": point.queried, "hits": hits(point)} | charts.bounds(point)
        for name, points in by_desideratum.items()
        for point in points
    ]
    base = alt.Chart(charts.inline(rows)).encode(
        x=alt.X("index:O", title="index asked for in the source, from zero", axis=alt.Axis(labelAngle=0)),
        xOffset=charts.side_by_side("x", rows, "desideratum"),
        color=_coloured(rows, "desideratum"),
        tooltip=charts.tips("desideratum", "index", printed="accuracy", hits="hits"),
    )
    layers = charts.ACCURACY.points_with_intervals(base)
    subtitle = ["position, label and object point to three answers of the list; with 95 % intervals"]
    return charts.finish(layers, f"In conflict: {title}", subtitle, width=420, height=220)


def redrawn_rows(in_models: Iterable[Masks], desideratum: str) -> list[dict]:
    """One row per group and model: the mean over redraws, and one standard deviation to either side."""
    return [
        {
            "group": group,
            "model": masks.model,
            "value": redrawn.mean,
            "low": None if redrawn.sd is None else redrawn.mean - redrawn.sd,
            "high": None if redrawn.sd is None else redrawn.mean + redrawn.sd,
            "printed": f"{number(redrawn.mean)} ± {number(redrawn.sd)}",
            "redraws": len(redrawn.accuracies),
            "heads": len(redrawn.heads),
        }
        for masks in in_models
        for group, name, cell in masks
        if name == desideratum and (redrawn := cell.redrawn) is not None
    ]


def _redrawn_bars(title: str, rows: list[dict]) -> charts.Figure:
    """Activation patching of the heads found in the circuit's own model, in every model."""
    base = _in_groups(rows, "model", printed="mean ± sd", redraws="redraws", heads="heads")
    layers = [
        charts.ACCURACY.bars(base, color=_coloured(rows, "model")),
        charts.ACCURACY.intervals(base, color=charts.MUTED),
    ]
    subtitle = ["activation patching of the heads found in the circuit's own model; mean ± sd over sources drawn anew"]
    return charts.finish(layers, title, subtitle, width=_width(rows, "model"), height=200)


# Tables.


def _tables(every: list[Masks]) -> list[Table]:
    """Numbers, and which heads, by circuit and model.

    The verdict's sentence on a model links to where a mask was carried over.
    """
    linked: dict[str, Masks] = {}  # by model: the first circuit with a mask from elsewhere, else the first
    for masks in sorted(every, key=lambda masks: not masks.transferred):
        linked.setdefault(masks.model, masks)
    tables: list[Table] = []
    for masks in every:
        rows, title = function_rows(masks), f"masks of {masks.circuit}'s groups in {masks.model}"
        ids = [anchor("functions", masks.model)] if linked[masks.model] is masks else []
        tables.append(Table(f"M{title[1:]}", rows, _columns(masks, rows), ids))
        columns = {"group": "group", "desideratum": "desideratum", "heads": "patched", "which": "heads"}
        tables.append(Table(f"Heads that the {title} patch", rows, columns))
        tables += _followed(title, masks)
    return tables


def function_rows(masks: Masks) -> list[dict]:
    """One row per group and desideratum, with which heads and every control."""
    rows = bar_rows(masks)
    for row, (_, _, cell) in zip(rows, masks, strict=True):
        controls, moved = cell.controls, cell.transferred
        row |= {name: number(getattr(controls, name).value) for name in ("all", "ranked")}
        row |= {"random": number(controls.random), "which": heads(cell.heads)}
        row["shuffled"] = "" if controls.shuffled is None else printed(controls.shuffled)
        row["transferred"] = "" if moved is None else f"{printed(moved)}; {printed(moved.above_floor)} above the floor"
    return rows


def _columns(masks: Masks, rows: list[dict]) -> dict[str, str]:
    """Controls that no mask has are left out."""
    columns = {"group": "group", "desideratum": "desideratum", "printed": "accuracy (95 % interval)"}
    columns |= {"floor_printed": "floor", "shuffled": "trained floor", "above": "above the floor"}
    on = min((cell.controls.all.n for _, _, cell in masks), default=0)
    columns |= {"all": f"all heads, {on} triples", "random": f"random heads, {on} triples"}
    columns |= {"ranked": f"strongest heads, {on} triples", "transferred": "the mask of the circuit's own model"}
    optional = ("shuffled", "transferred")
    return {key: title for key, title in columns.items() if key not in optional or any(row[key] for row in rows)}


def _followed(title: str, masks: Masks) -> list[Table]:
    """Where position, label and object point to three listed answers: the share of test triples that follow each."""
    rows = [
        {"group": group, "desideratum": name, "patched": _PATCHED[patched]}
        | {_FOLLOWED.get(kind, kind): number(share) for kind, share in shares.items()}
        for group, name, cell in masks
        for patched, shares in cell.pointed.items()
        if name.startswith("conflict")
    ]
    return [Table(f"In conflict, what is followed: {title}", rows)] if rows else []
