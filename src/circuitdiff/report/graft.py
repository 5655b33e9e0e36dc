"""What caused a variant's gain: one model's weights in the other, part by part."""

from __future__ import annotations

from collections.abc import Mapping

from circuitdiff.evaluation.answers import Score
from circuitdiff.methods.graft import KINDS
from circuitdiff.report import gains
from circuitdiff.report.cross_model import among_groups
from circuitdiff.report.parts import Part, Table, anchor
from circuitdiff.study.gains import Credit, GainShares, RandomGroups
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections.graft import SECTION, GraftedParts, GraftResult

_SHARED = "other heads that read the same keys and values"


def view(results: CommonResults) -> Part:
    sentences, figures, tables = [], {}, []
    for variant, grafted in part_of(results, SECTION).items():
        by_group, axes, heads = gains.Method(gains.GRAFTED, grafted), _axes(grafted), grafted.heads
        by_axis = [gains.Method(f"{gains.GRAFTED} {name}", parts) for name, parts in axes.items()]
        by_head = [] if heads is None else [gains.Method(f"{gains.GRAFTED}, single heads of {heads.group}", heads)]
        methods = [by_group, *by_axis, *by_head]
        sentences += map(gains.sentence, methods)
        figures |= gains.figures(variant, methods)
        # patches into the same model have a table with the grafts beside them
        patched = gains.patched_by_group(results, variant)
        patched = [method for method in patched if method.shares.recipient == grafted.recipient]
        if not patched:
            tables.append(gains.side_by_side_table([by_group], [anchor("graft", variant)]))
        tables.append(_seen_and_caused(variant, next(iter(patched), None), {"": grafted} | axes))
        ids = {"of layers": [anchor("layers", variant)]}
        tables += [gains.share_table(each, ids.get(name, [])) for name, each in zip(axes, by_axis, strict=True)]
        tables += [*map(gains.share_table, by_head), *gains.score_tables(by_group)]
        tables.append(Table(f"Controls of grafts, {variant}", control_rows(grafted), gains.CONTROL_COLUMNS))
    return Part("What caused the gain?", "Grafted weights show what caused it.", sentences, figures, tables)


def _axes(grafted: GraftResult) -> dict[str, GraftedParts]:
    """The other divisions of the weights, as they stand after "grafted weights"."""
    axes = {"of layers": grafted.layers, "by matrix": grafted.matrices, "at the tokens of roles": grafted.roles}
    return {name: parts for name, parts in axes.items() if parts is not None}


_SCORES: dict[Score, str] = {"accuracy": "accuracy", "logit_difference": "logit difference"}


def _seen_and_caused(variant: str, patched: gains.Method | None, grafts: Mapping[str, GraftedParts]) -> Table:
    """Of each part alone: the share of the gain that its activations show, and that its weights bring."""
    rows = []
    for axis, grafted in grafts.items():
        for part in grafted.order:
            row = {"part": part, "weights": axis or ("all else" if part in KINDS else "of heads")}
            for score in _SCORES:
                seen = _alone(patched.shares, score, part) if patched and not axis else None
                row[f"seen, {score}"] = gains.share(seen)
                row[f"caused, {score}"] = gains.share(_alone(grafted, score, part))
            rows += [row] if part not in grafted.unchanged else []
    columns = {"part": "part", "weights": "weights"}
    for score, says in _SCORES.items():
        columns |= {f"seen, {score}": f"seen: share of the {says}"} if patched else {}
        columns |= {f"caused, {score}": f"caused: share of the {says}"}
    note = "Each alone. What is seen at a part may be caused before it, and what it causes may be seen after it."
    return Table(f"Seen here, caused there: {variant}", rows, columns, note=note)


def _alone(shares: GainShares, score: Score, part: str) -> Credit | None:
    found = shares.scores.get(score)
    return None if found is None else found.parts.get(part, {}).get("alone")


def control_rows(grafted: GraftResult) -> list[dict]:
    """What each control brings in the stead of a group, in accuracy."""
    return [
        gains.credit_row(group, among_groups(credit) if isinstance(credit, RandomGroups) else _SHARED, credit)
        for group, controls in grafted.controls.items()
        for credit in controls.values()
    ]
