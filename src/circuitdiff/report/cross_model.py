"""Where a variant's gain is visible: one model's activations at a group's heads, in the other model."""

from __future__ import annotations

from collections.abc import Iterator

from circuitdiff.report import gains
from circuitdiff.report.charts import Figure, among_random
from circuitdiff.report.numbers import beside_draws
from circuitdiff.report.parts import Part, Table, anchor
from circuitdiff.study.gains import Credit, RandomGroups
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections.cross_model import SECTION, CrossModel, PatchControl

_CONTROLS = {
    "group": "the group itself",
    "elsewhere": "the same heads at another role",
    "noise": "its own values moved as far at random",
    "scaled": "its own values made as large",
}


def view(results: CommonResults) -> Part:
    sentences, figures, tables = [], {}, []
    for variant, patched in part_of(results, SECTION).items():
        by_group, further = gains.patched_by_group(results, variant), list(_further(patched))
        sentences += map(gains.sentence, [*by_group, *further])
        figures |= gains.figures(variant, [*by_group, *further], list(_drawn_controls(patched)), _controlled(patched))
        figures |= _among_random(variant, patched)
        tables += [*_side_by_side(results, variant), *map(gains.share_table, further)]
        tables += [table for method in by_group for table in gains.score_tables(method)]
        tables.append(Table(f"Controls of patching, {variant}", control_rows(patched), gains.CONTROL_COLUMNS))
    return Part(
        "Where is the gain visible?",
        "Patched activations show where a gain is visible, for they bring along what earlier parts of the donor did.",
        sentences,
        figures,
        tables,
    )


def _further(patched: CrossModel) -> Iterator[gains.Method]:
    if patched.heads is not None:
        yield gains.Method(f"{gains.CARRIED[patched.heads.what]}, single heads of {patched.heads.group}", patched.heads)
    if patched.with_mlps is not None:
        yield gains.Method(f"{gains.CARRIED[patched.with_mlps.what]}, with MLPs", patched.with_mlps)
    for donor, shares in patched.null_donors.items():
        yield gains.Method(f"{gains.CARRIED[shares.what]}, from {donor} instead", shares)


def _side_by_side(results: CommonResults, variant: str) -> Iterator[Table]:
    """One table per recipient, the one that weights were grafted onto first; with the grafts beside the patches.

    The verdict's sentences link to the first.
    """
    methods, grafted = gains.patched_by_group(results, variant), gains.grafted_by_group(results, variant)
    recipients = dict.fromkeys(method.shares.recipient for method in methods)
    onto = [method.shares.recipient for method in grafted]
    ids = [anchor("cross_model", variant)]
    for recipient in sorted(recipients, key=lambda name: name not in onto):
        beside = [method for method in grafted if method.shares.recipient == recipient]
        both = [method for method in methods if method.shares.recipient == recipient] + beside
        yield gains.side_by_side_table(both, [*ids, *([anchor("graft", variant)] if beside else [])])
        ids = []


def control_rows(patched: CrossModel) -> list[dict]:
    """What each control brings in the stead of a group, in accuracy."""
    rows = []
    for group, controls in patched.controls.items():
        named = {_CONTROLS[name]: getattr(controls, name) for name in _CONTROLS}
        if controls.same_layers.n:
            named[among_groups(controls.same_layers)] = controls.same_layers
        rows += [_control_row(group, says, credit) for says, credit in named.items() if credit is not None]
    return rows


def among_groups(random: RandomGroups) -> str:
    """Random groups of the same layers, in words."""
    far = f"; {random.n_far} of them end far from clean runs and have no share" if random.n_far else ""
    compared = beside_draws(random.group, random.accuracies, random.rank_p, "random groups")
    mean = f"mean of {random.n} random groups of its layers, with the range of {random.bounds_are}"
    return f"{mean} (the group: {compared}{far})"


def _control_row(group: str, says: str, credit: Credit) -> dict:
    far = isinstance(credit, PatchControl) and credit.incompatible
    return gains.credit_row(group, says, credit) | ({"note": "ends far from clean runs"} if far else {})


def _controlled(patched: CrossModel) -> gains.Method | None:
    """The method that the controls stand beside: of their kind of activation, into the worse model."""
    for controls in patched.controls.values():
        for direction in (patched.to_base, patched.to_variant):
            shares = direction.get(controls.what)
            if shares is not None and shares.recipient == patched.recipient:
                return gains.Method(gains.CARRIED[controls.what], shares)
    return None


def _drawn_controls(patched: CrossModel) -> Iterator[dict]:
    """What random heads and noise bring in a group's stead, for the figure."""
    for group, controls in patched.controls.items():
        for says, credit in (("random heads of its layers", controls.same_layers), ("noise", controls.noise)):
            if credit is not None:
                yield _control_row(group, f"control: {says}", credit)


def _among_random(variant: str, patched: CrossModel) -> dict[str, Figure]:
    return {
        f"gain-controls/{variant}/{group}": among_random(
            f"{group} patched into {patched.recipient}, among random groups of its layers",
            controls.same_layers.accuracies,
            {"the group": controls.group.accuracy.value},
            controls.n_prompts,
            "random groups",
        )
        for group, controls in patched.controls.items()
        if controls.same_layers.accuracies
    }
