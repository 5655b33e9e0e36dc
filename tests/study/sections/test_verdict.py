"""What the verdict is given of the masks and of the comparison of effects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiff.study.estimates import Estimate, Share
from circuitdiff.study.sections.functions import Controls, MaskCell, Transferred
from circuitdiff.study.sections.overlap import (
    Agreement,
    AgreementOfStrongest,
    SameWork,
    StageOverlap,
    VariantOverlap,
)
from circuitdiff.study.sections.verdict import (
    functions_evidence,
    groups_without_function,
    has_moved,
    similarity_evidence,
)


def near(value: float, spread: float = 0.1) -> Estimate:
    return Estimate(value, value - spread, value + spread)


SHARE = Share(0.2, 0.1, 0.3, 2, 10)
CELL = MaskCell(
    heads=(),
    at="last",
    group=(),
    accuracy=0.7,
    low=0.6,
    high=0.8,
    floor=0.2,
    floor_is="shuffled",
    above_floor=near(0.5),
    carries=True,
    controls=Controls(SHARE, SHARE, SHARE, SHARE, 0.1, 3),
    pointed={},
    by_queried=(),
    trade_off=(),
    penalty=0.02,
    keep=(),
    validation_accuracy=0.7,
    n_test=10,
    n_scenarios=10,
)


def carried(above_floor: float, *, carries: bool = True) -> MaskCell:
    return replace(CELL, above_floor=near(above_floor), carries=carries)


def tried(accuracy: float, *, trained: bool = True) -> MaskCell:
    """What the base's mask did in a variant: below its own mask by 0.1, the trained floor at 0.2."""
    moved = Transferred(
        **vars(SHARE),
        heads=(),
        floor_is="shuffled",
        from_model="base",
        above_floor=near(accuracy - 0.2),
        above_own_mask=near(-0.1),
    )
    controls = replace(CELL.controls, shuffled=SHARE if trained else None)
    return replace(CELL, transferred=moved, controls=controls)


OF_BASE = {
    "fetcher": {
        "object": carried(0.5),
        "position": carried(0.3),
        "label": carried(0.9, carries=False),
        "comma": carried(0.8),  # asked in the base alone
    },
    "reader": {"position": carried(0.1, carries=False)},
}


def masks(*, trained: bool = True) -> Any:
    of_variant = {
        "fetcher": {"object": tried(0.7, trained=trained), "position": tried(0.4)},
        "reader": {"position": tried(0.3)},
    }
    return {"base": OF_BASE, "tuned": of_variant}


def test_a_groups_best_carried_mask_of_the_bases_circuit_is_judged_in_the_variant():
    (row,) = functions_evidence(masks(), "base", "tuned")
    assert (row.group, row.desideratum, row.trained) == ("fetcher", "object", True)
    assert (row.difference, row.above_floor) == (near(-0.1), near(0.7 - 0.2))


def test_a_mask_that_was_not_held_against_a_trained_floor_is_known_as_such():
    (row,) = functions_evidence(masks(trained=False), "base", "tuned")
    assert row.trained is False


def test_a_variant_without_masks_leaves_the_evidence_open():
    assert functions_evidence(masks(), "base", "other") == []
    assert functions_evidence({}, "base", "tuned") == []


def test_groups_that_carry_nothing_are_named():
    assert groups_without_function(OF_BASE) == ["reader"]  # pyright: ignore[reportArgumentType]
    assert groups_without_function({}) == []


def same_work(base: str, variant: str, attention: float, effect: float) -> SameWork:
    return SameWork(base, variant, near(attention), near(effect))


def agreement(between: float, base: float, variant: float) -> tuple[Estimate, Estimate, Estimate]:
    return near(between), near(base), near(variant)


def stage(name: str = "fetcher", n_chosen: tuple[int, int] = (5, 6), shared: float = 0.6) -> StageOverlap:
    jaccard = (
        AgreementOfStrongest(*agreement(0.9, 0.9, 0.9), 0.04, 5),
        AgreementOfStrongest(*agreement(shared, 0.75, 0.7), 0.04, 6),
    )
    correlation = Agreement(*agreement(0.8, 0.9, 0.95), 0.0)
    return StageOverlap(name, True, n_chosen, correlation, jaccard, (), (), (), 0.02, near(0.3))


def compared(rows: list[SameWork], shared: float = 0.3) -> VariantOverlap:
    return VariantOverlap(stages=(stage(shared=shared),), moved=tuple(rows), n_scenarios=70)


def test_groups_do_the_same_work_if_each_is_most_like_its_namesake():
    same = [same_work("a", "a", 0.95, 0.95), same_work("b", "b", 0.92, 0.95)]
    others = [same_work("a", "b", 0.5, 0.2), same_work("b", "a", 0.5, 0.2)]

    def judged(rows: list[SameWork]) -> bool:
        return has_moved(compared(rows))

    assert judged([*same, *others])
    assert not judged([*same, others[0], same_work("b", "a", 0.75, 0.2)])  # it may look like the other group
    assert not judged([same[0], same_work("b", "b", 0.92, 0.3), *others])  # it may act like the other group
    assert not judged([same[0], same_work("b", "b", 0.89, 0.95), *others])  # most like it, but perhaps not alike
    assert not judged([same[0], *others])  # the variant's circuit has no such group
    assert not judged(same[:1])  # nothing to tell it from
    assert not judged([])
    assert not has_moved(VariantOverlap())


def test_heads_that_are_common_have_not_moved():
    rows = [same_work("a", "a", 0.95, 0.95), same_work("b", "b", 0.95, 0.95)]
    rows += [same_work("a", "b", 0.5, 0.2), same_work("b", "a", 0.5, 0.2)]
    assert has_moved(compared(rows))
    assert not has_moved(compared(rows, shared=0.55))  # perhaps no fewer than a model shares with itself


def test_effects_and_chosen_heads_are_compared_stage_by_stage_with_the_less_reliable_half():
    nothing = stage("reader", (0, 0))
    rows = similarity_evidence(VariantOverlap(stages=(stage(), nothing), not_run=("writer",)))
    correlation, overlap, missing = rows
    assert [(row.stage, row.measure, row.k) for row in rows] == [
        ("fetcher", "correlation", None),
        ("fetcher", "overlap", 6),
        ("writer", "not_run", None),
    ]
    assert (correlation.value, correlation.retest, correlation.different) == (near(0.8), near(0.9), near(0.3))
    assert (overlap.value, overlap.retest) == (near(0.6), near(0.7))
    assert overlap.different == Estimate(0.04, 0.04, 0.04)
    assert missing.value is None
    assert similarity_evidence(None) == []
