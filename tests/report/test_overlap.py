"""The part of the page on whether a variant's circuit is the base's."""

from __future__ import annotations

from dataclasses import replace

from circuitdiff.report import overlap
from circuitdiff.report.parts import Part
from circuitdiff.study.estimates import Ratio
from circuitdiff.study.sections.overlap import (
    ChangedHead,
    EdgeOverlap,
    GroupOverlap,
    StageOverlap,
    StrongestInCommon,
    VariantOverlap,
)
from circuitdiff.study.sections.overlap_profiles import AtRole, Profile, SameWork
from helpers.invented_results import around, data_of, results_of

VARIANT = "tuned <b>"


def _ratio(value: float | None, note: str | None = None) -> Ratio:
    return Ratio(**vars(around(value)), note=note)


def stage() -> StageOverlap:
    return StageOverlap(
        stage="value_fetcher",
        same_receivers=True,
        n_chosen=(3, 2),
        likeness=_ratio(0.5),
        different=_ratio(0.1),
        ceiling=None,
        base_reliability=around(0.9),
        variant_reliability=around(0.85),
        strongest=(StrongestInCommon(5, 0.25, 0.8, 0.75, 0.125), StrongestInCommon(10, None, 0.8, 0.75, 0.125)),
        changed=(
            ChangedHead((3, 1), -0.1, -0.35, around(-0.25), 0.01),
            ChangedHead((2, 0), -0.5, 0.0, around(0.5), 0.02),
        ),
        smallest_change=0.02,
    )


def compared() -> VariantOverlap:
    return VariantOverlap(
        groups=(GroupOverlap("value_fetcher", 3, 2, 1, 0.5, 1 / 3, 0.25), GroupOverlap(None, 5, 4, 2, 0.5, 0.4, 2 / 7)),
        stages=(stage(),),
        not_run=(),
        edges=(
            EdgeOverlap("value_fetcher", None, None, around(-1.0), around(-1.5), around(-0.5), 0.004),
            EdgeOverlap("reader", "value_fetcher", "v", around(-0.25), around(0.0), around(0.25), None),
        ),
        profiles={
            "value_fetcher": Profile(
                attention=(AtRole("last", around(0.5), around(0.25)), AtRole("object", around(0.0), around(0.01))),
                effect=(AtRole("object", around(0.0), around(-0.5)),),
            )
        },
        n_scenarios=40,
        moved=(SameWork("value_fetcher", "value_fetcher", around(0.9), around(0.8)),),
    )


def part_on(found: VariantOverlap) -> Part:
    return overlap.view(results_of(overlap={VARIANT: found}))


def rows_of(part: Part) -> list[list[list]]:
    return [[[row[key] for key in table.headings] for row in table.rows] for table in part.tables]


def test_the_tables_have_every_number_between_ceiling_and_floor():
    groups, maps, strongest, edges, attention, effects, moved = rows_of(part_on(compared()))
    assert groups[1] == ["all groups", 5, 4, 2, "0.286"]
    alike = ["0.500 (0.450 to 0.550)", "0.100 (0.050 to 0.150)"]
    repeated = ["0.900 (0.850 to 0.950)", "0.850 (0.800 to 0.900)"]
    changed = ["3.1 −0.250 (−0.300 to −0.200)", "2.0 0.500 (0.450 to 0.550)"]
    assert maps == [["value_fetcher", "the same", *alike, *repeated, *changed]]
    assert strongest == [
        ["value_fetcher", 5, "0.250", "0.800", "0.750", "0.125"],
        ["value_fetcher", 10, "–", "0.800", "0.750", "0.125"],
    ]
    assert [row[:2] + row[-1:] for row in edges] == [
        ["value_fetcher to the logits", "direct", "0.004"],
        ["reader to value_fetcher", "v", "–"],
    ]
    assert [row[1] for row in attention] == ["last"], "roles with next to nothing are left out"
    assert [row[1:] for row in effects] == [["object", "0.000 (−0.050 to 0.050)", "−0.500 (−0.550 to −0.450)"]]
    assert moved == [["value_fetcher", "value_fetcher", "0.900 (0.850 to 0.950)", "0.800 (0.750 to 0.850)"]]


def test_a_curve_has_what_is_shared_what_is_repeated_and_chance_for_each_k():
    part = part_on(compared())
    (key,) = part.figures
    assert key == f"overlap/{VARIANT}/value_fetcher"
    rows = [(row["k"], row["pair"], row["value"]) for row in data_of(part.figures[key])]
    repeated = [("the base with itself", 0.8), ("the variant with itself", 0.75), ("chance", 0.125)]
    assert rows == [
        (5, "base and variant", 0.25),
        *((5, *each) for each in repeated),
        *((10, *each) for each in repeated),
    ]


def test_a_ceiling_has_a_column_where_there_is_one():
    with_one = replace(compared(), stages=(replace(stage(), ceiling=_ratio(0.95)),))
    table = part_on(with_one).tables[1]
    assert table.columns["ceiling"] == "the base trained again"
    assert table.rows[0]["ceiling"] == "0.950 (0.900 to 1.000)"
    assert "ceiling" not in part_on(compared()).tables[1].columns


def test_the_sentence_says_how_alike_effects_are_or_why_it_is_unknown():
    common = f"2 of {VARIANT}'s 4 heads are the base's, too; "
    alike = "effects straight into the logits correlate at 0.500 (0.450 to 0.550)."
    assert part_on(compared()).sentences == [common + alike]
    noisy = replace(compared(), stages=(replace(stage(), likeness=Ratio(None, None, None, "why")),))
    assert part_on(noisy).sentences == [f"{common}how alike effects straight into the logits are is undefined: why."]


def test_a_variant_without_a_circuit_of_its_own_is_reported_by_its_edges_alone():
    part = part_on(VariantOverlap(edges=compared().edges, profiles={}, n_scenarios=40))
    assert part.sentences == []
    assert part.figures == {}
    assert [table.caption for table in part.tables if table.rows] == [
        f"Effects between the base's groups, base and {VARIANT}, on 40 scenarios"
    ]
