"""What caused a variant's gain: one model's weights in the other, part by part."""

from __future__ import annotations

from circuitdiff.report import gains
from circuitdiff.report.cross_model import among_groups
from circuitdiff.report.parts import Part, Table, anchor
from circuitdiff.study.gains import RandomGroups
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections.graft import SECTION, GraftResult

_SHARED = "other heads that read the same keys and values"


def view(results: CommonResults) -> Part:
    sentences, figures, tables = [], {}, []
    for variant, grafted in part_of(results, SECTION).items():
        by_group, layers, heads = gains.Method(gains.GRAFTED, grafted), grafted.layers, grafted.heads
        by_layers = [] if layers is None else [gains.Method(f"{gains.GRAFTED} of layers", layers)]
        by_head = [] if heads is None else [gains.Method(f"{gains.GRAFTED}, single heads of {heads.group}", heads)]
        methods = [by_group, *by_layers, *by_head]
        sentences += map(gains.sentence, methods)
        figures |= gains.figures(variant, methods)
        # patches into the same model have a table with the grafts beside them
        if all(method.shares.recipient != grafted.recipient for method in gains.patched_by_group(results, variant)):
            tables.append(gains.side_by_side_table([by_group], [anchor("graft", variant)]))
        tables += [gains.share_table(method, [anchor("layers", variant)]) for method in by_layers]
        tables += [*map(gains.share_table, by_head), *gains.score_tables(by_group)]
        tables.append(Table(f"Controls of grafts, {variant}", control_rows(grafted), gains.CONTROL_COLUMNS))
    return Part("What caused the gain?", "Grafted weights show what caused it.", sentences, figures, tables)


def control_rows(grafted: GraftResult) -> list[dict]:
    """What each control brings in the stead of a group, in accuracy."""
    return [
        gains.credit_row(group, among_groups(credit) if isinstance(credit, RandomGroups) else _SHARED, credit)
        for group, controls in grafted.controls.items()
        for credit in controls.values()
    ]
