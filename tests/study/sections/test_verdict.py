"""What the verdict is given of the masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiff.study.estimates import Estimate, Share
from circuitdiff.study.sections.functions import Controls, MaskCell, Transferred
from circuitdiff.study.sections.verdict import functions_evidence, groups_without_function


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
    assert functions_evidence(masks(), "base", "other") == ()
    assert functions_evidence({}, "base", "tuned") == ()


def test_groups_that_carry_nothing_are_named():
    assert groups_without_function(OF_BASE) == ["reader"]  # pyright: ignore[reportArgumentType]
    assert groups_without_function({}) == []
