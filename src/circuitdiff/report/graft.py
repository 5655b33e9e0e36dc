"""What caused a variant's gain: one model's weights in the other, part by part."""

from __future__ import annotations

from circuitdiff.report.cross_model import among_groups
from circuitdiff.report.gains import (
    CONTROL_COLUMNS,
    GRAFTED,
    Method,
    credit_row,
    gain_figures,
    gain_sentence,
    patched_by_group,
    score_tables,
    share_table,
    side_by_side_table,
)
from circuitdiff.report.parts import Part, Table, anchor
from circuitdiff.study.gains import RandomGroups
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections.graft import SECTION, GraftResult

_SHARED = "other heads that read the same keys and values"


def view(results: CommonResults) -> Part:
    sentences, figures, tables = [], {}, []
    for variant, grafted in part_of(results, SECTION).items():
        by_group, layers, heads = Method(GRAFTED, grafted), grafted.layers, grafted.heads
        by_layers = [] if layers is None else [Method(f"{GRAFTED} of layers", layers)]
        by_head = [] if heads is None else [Method(f"{GRAFTED}, single heads of {heads.group}", heads)]
        methods = [by_group, *by_layers, *by_head]
        sentences += map(gain_sentence, methods)
        figures |= gain_figures(variant, methods)
        # patches into the same model have a table with the grafts beside them
        if all(method.shares.recipient != grafted.recipient for method in patched_by_group(results, variant)):
            tables.append(side_by_side_table([by_group], [anchor("graft", variant)]))
        tables += [share_table(method, [anchor("layers", variant)]) for method in by_layers]
        tables += [*map(share_table, by_head), *score_tables(by_group)]
        tables.append(Table(f"Controls of grafts, {variant}", CONTROL_COLUMNS, control_rows(grafted)))
    return Part("What caused the gain?", "Grafted weights show what caused it.", sentences, figures, tables)


def control_rows(grafted: GraftResult) -> list[dict]:
    """What each control brings in the stead of a group, in accuracy."""
    return [
        credit_row(group, among_groups(credit) if isinstance(credit, RandomGroups) else _SHARED, credit)
        for group, controls in grafted.controls.items()
        for credit in controls.values()
    ]
