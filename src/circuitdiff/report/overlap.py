"""Whether a variant's circuit is the base's: heads in common, effects alike, and what the groups do."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt

from circuitdiff.report import charts
from circuitdiff.report.numbers import all_printed, heads, number, printed, significant
from circuitdiff.report.parts import Part, Table
from circuitdiff.study.registry import CommonResults, part_of
from circuitdiff.study.sections.overlap import SECTION, StageOverlap, VariantOverlap

_SHARED = {
    "between": "base and variant",
    "base": "the base with itself",
    "variant": "the variant with itself",
    "chance": "chance",
}
_PROFILES = {
    "attention": "Attention of the base's groups, by role attended to",
    "effect": "Effect of the base's groups, by role they are patched at",
}
_SMALLEST = 0.02  # of a profile: roles where base and variant have less are left out


def view(results: CommonResults) -> Part:
    variants = part_of(results, SECTION)
    return Part(
        "Is it the same circuit?",
        "The correlation of all heads' effects is corrected for the noise of both maps, and may exceed 1; it stands "
        "between that with another stage's map and, where the study has one, that of the base trained again. Heads "
        "in common are counted on halves of the prompts, means over random halvings. Negative effects help; a head "
        "gained helps more in the variant, on the same prompts, false discoveries controlled at 5 % in each stage, and "
        "again on the prompts that its difference is reported on. Where a stage's receivers differ between the models, "
        "so may the change be the receivers'.",
        [sentence for variant, each in variants.items() if (sentence := _sentence(variant, each))],
        {
            f"overlap/{variant}/{stage.stage}": _curves(f"{stage.stage}: base and {variant}", rows)
            for variant, each in variants.items()
            for stage in each.stages or ()
            if (rows := list(_curve_points(stage)))
        },
        [table for variant, each in variants.items() for table in _tables(variant, each)],
    )


def _sentence(variant: str, overlap: VariantOverlap) -> str:
    """Heads in common, and how alike effects are."""
    whole = next((group for group in overlap.groups or () if group.group is None), None)
    common = "" if whole is None else f"{whole.common} of {variant}'s {whole.variant} heads are the base's, too"
    first = next(iter(overlap.stages or ()), None)
    if first is None:
        return f"{common}." if common else ""
    alike, none = first.likeness, f"how alike effects straight into the logits are is undefined: {first.likeness.note}"
    effects = none if alike.value is None else f"effects straight into the logits correlate at {printed(alike)}"
    return f"{common}; {effects}."


def _tables(variant: str, overlap: VariantOverlap) -> list[Table]:
    pair, stages = {"base": "base", "variant": variant}, overlap.stages or ()
    groups = {"group": "group", **pair, "common": "in common", "jaccard": "Jaccard"}
    maps = {"stage": "stage", "receivers": "receivers", "likeness": "base and variant"}
    maps |= {"different": "another stage's map", "ceiling": "the base trained again"}
    maps |= {"base_reliability": "base, reliability", "variant_reliability": f"{variant}, reliability"}
    maps |= {"more": f"heads that help more in {variant}", "less": "less"}
    if not any(stage.ceiling for stage in stages):
        del maps["ceiling"]
    edges = {"edge": "from group to group", "via": "via", **pair}
    edges |= {"difference": "difference", "adjusted_p": "adjusted p"}
    moved = {"base": "the base's group", "variant": f"{variant}'s own group"}
    moved |= {"attention": "attention", "effect": "effect"}
    moved_rows = [vars(each) | all_printed(each, ("attention", "effect")) for each in overlap.moved or ()]
    on = "" if overlap.n_scenarios is None else f", on {overlap.n_scenarios} scenarios"
    alike = f"Do other heads do the same? Cosine of profiles, the base's groups and the variant's own{on}"
    return [
        Table(f"Heads of the base's circuit and of {variant}'s", list(_group_rows(overlap)), groups),
        Table(f"Corrected correlation of all heads' effects, base and {variant}", list(map(_stage_row, stages)), maps),
        Table(f"Jaccard index of the k strongest heads, base and {variant}", list(_common_rows(overlap))),
        Table(f"Effects between the base's groups, base and {variant}{on}", list(_edge_rows(overlap)), edges),
        *(
            Table(title + on, list(_profile_rows(overlap, of)), {"group": "the base's group", "role": "role", **pair})
            for of, title in _PROFILES.items()
        ),
        Table(alike, moved_rows, moved),
    ]


def _group_rows(overlap: VariantOverlap) -> Iterator[dict]:
    for each in overlap.groups or ():
        yield vars(each) | {"group": each.group or "all groups", "jaccard": number(each.jaccard)}


def _stage_row(stage: StageOverlap) -> dict:
    """How alike the whole maps of effects are, between ceiling and floor; heads whose effect changed."""
    return {
        "stage": stage.stage,
        "receivers": "the same" if stage.same_receivers else "each model's own",
        **all_printed(stage, ("likeness", "different", "ceiling", "base_reliability", "variant_reliability")),
        "more": _changed(stage, more=True),
        "less": _changed(stage, more=False),
    }


def _changed(stage: StageOverlap, *, more: bool) -> str:
    """Heads that help more (or less) in the variant, with the difference."""
    chosen = (each for each in stage.changed if (value := each.difference.value) is not None and (value < 0) == more)
    return ", ".join(f"{heads([each.head])} {printed(each.difference)}" for each in chosen) or "none"


def _common_rows(overlap: VariantOverlap) -> Iterator[dict]:
    """By stage and k, between what one model repeats and chance."""
    for stage in overlap.stages or ():
        for each in stage.strongest:
            shared = {heading: number(getattr(each, name)) for name, heading in _SHARED.items()}
            yield {"stage": stage.stage, "k": each.k} | shared


def _edge_rows(overlap: VariantOverlap) -> Iterator[dict]:
    for edge in overlap.edges or ():
        row = {"edge": f"{edge.sender} to {edge.receiver or 'the logits'}", "via": edge.via or "direct"}
        row |= all_printed(edge, ("base", "variant", "difference"))
        yield row | {"adjusted_p": significant(edge.adjusted_p)}


def _profile_rows(overlap: VariantOverlap, of: str) -> Iterator[dict]:
    """Role by role, where either model has more than next to 0."""
    for group, profile in (overlap.profiles or {}).items():
        for each in getattr(profile, of):
            if max(abs(estimate.value or 0.0) for estimate in (each.base, each.variant)) >= _SMALLEST:
                yield {"group": group, "role": each.role} | all_printed(each, ("base", "variant"))


def _curve_points(stage: StageOverlap) -> Iterator[dict]:
    """One row per k and pair: the Jaccard index of the k strongest heads, on halves of the prompts."""
    for each in stage.strongest:
        for name, says in _SHARED.items():
            if (value := getattr(each, name)) is not None:
                yield {"k": each.k, "pair": says, "value": value, "printed": number(value)}


def _curves(title: str, rows: list[dict]) -> charts.Figure:
    """Overlap of the strongest heads by how many are taken, between what one model repeats and chance."""
    palette = (charts.CATEGORIES[0], charts.CATEGORIES[2], charts.CATEGORIES[1], charts.MUTED)
    ks = alt.Axis(values=sorted(charts.distinct(rows, "k")))
    base = alt.Chart(charts.inline(rows)).encode(
        x=alt.X("k:Q", title="strongest heads taken", scale=alt.Scale(type="log"), axis=ks),
        color=charts.colour("pair", list(_SHARED.values()), "overlap of", palette),
        tooltip=charts.tips(pair="overlap of", k="k", printed="Jaccard index"),
    )
    lines = base.mark_line(point=True).encode(y=charts.Along("y", "Jaccard index", charts.UNIT).at("value"))
    subtitle = [
        "each effect measured on one half of the prompts, held against the other half",
        "means over random halvings",
    ]
    return charts.finish([lines], title, subtitle, width=260, height=200)
