"""What the verdict is given of the masks and of the comparison of effects."""

from __future__ import annotations

from typing import Any

from circuitdiff.sections.evidence import (
    functions_evidence,
    groups_without_function,
    mask_cells,
    same_work,
    similarity_evidence,
)


def carried(above_floor: float, *, carries: bool = True) -> dict[str, Any]:
    return {"above_floor": {"value": above_floor}, "carries": carries}


def tried(accuracy: float) -> dict[str, Any]:
    """What the base's mask did in a variant: below its own mask by 0.1, the trained floor at 0.2."""
    moved = {"above_own_mask": {"value": -0.1}, "above_floor": {"value": accuracy - 0.2}}
    return {
        "transferred": {"value": accuracy} | moved,
        "controls": {"shuffled": {"value": 0.2}},
    }


def results() -> dict[str, Any]:
    of_base = {
        "fetcher": {
            "object": carried(0.5),
            "position": carried(0.3),
            "label": carried(0.9, carries=False),
            "comma": carried(0.8),  # asked in the base alone
        },
        "reader": {"position": carried(0.1, carries=False)},
    }
    of_variant = {"fetcher": {"object": tried(0.7), "position": tried(0.4)}, "reader": {"position": tried(0.3)}}
    of_its_own_circuit = {"fetcher": {"position": carried(0.8)}}
    return {
        "functions": {
            "base": {"base": of_base, "tuned": of_variant},
            "tuned": {"base": of_its_own_circuit, "tuned": of_its_own_circuit},
        }
    }


def test_a_groups_best_carried_mask_of_the_bases_circuit_is_judged_in_the_variant():
    found = functions_evidence(results(), "base", "tuned")
    assert found == {
        "fetcher (object)": {
            "difference": {"value": -0.1},
            "above_floor": tried(0.7)["transferred"]["above_floor"],
            "trained": True,
        }
    }


def test_a_mask_that_was_not_held_against_a_trained_floor_is_known_as_such():
    found = results()
    del found["functions"]["base"]["tuned"]["fetcher"]["object"]["controls"]["shuffled"]
    assert functions_evidence(found, "base", "tuned")["fetcher (object)"]["trained"] is False


def test_a_variant_without_masks_leaves_the_evidence_open():
    found = functions_evidence(results(), "base", "other")
    assert found == {}
    assert functions_evidence({}, "base", "tuned") == {}


def test_groups_that_carry_nothing_are_named():
    assert groups_without_function(results(), "base") == ["reader"]
    assert groups_without_function({}, "base") == []


def profile(base: str, variant: str, attention: float, effect: float) -> dict[str, Any]:
    cosines = {"attention": attention, "effect": effect}
    named = {how: {"value": x, "low": x - 0.1, "high": x + 0.1} for how, x in cosines.items()}
    return {"base": base, "variant": variant} | named


def compared(rows: list[dict[str, Any]], shared: float = 0.3) -> dict[str, Any]:
    jaccard = [{"k": 5} | likeness(0.9, 0.9, 0.9), {"k": 6} | likeness(shared, 0.75, 0.7)]
    stage = {"stage": "fetcher", "n_chosen": [5, 6], "jaccard": jaccard}
    return {"overlap": {"tuned": {"stages": [stage], "moved": rows, "n_scenarios": 70}}}


def test_groups_do_the_same_work_if_each_is_surely_most_like_its_namesake():
    same = [profile("a", "a", 0.95, 0.95), profile("b", "b", 0.92, 0.95)]
    others = [profile("a", "b", 0.5, 0.2), profile("b", "a", 0.5, 0.2)]
    judged = lambda rows: same_work(compared(rows), "tuned")["moved"]  # noqa: E731
    assert judged([*same, *others])
    assert not judged([*same, others[0], profile("b", "a", 0.75, 0.2)])  # it may look like the other group
    assert not judged([same[0], profile("b", "b", 0.92, 0.3), *others])  # it may act like the other group
    assert not judged([same[0], profile("b", "b", 0.89, 0.95), *others])  # most like it, but not surely alike
    assert not judged([same[0], *others])  # the variant's circuit has no such group
    assert not judged(same[:1])  # nothing to tell it from
    assert not judged([])
    assert same_work({}, "tuned") == {"moved": False, "n_scenarios": 0}


def test_heads_that_are_common_have_not_moved():
    rows = [profile("a", "a", 0.95, 0.95), profile("b", "b", 0.95, 0.95), profile("a", "b", 0.5, 0.2)]
    rows.append(profile("b", "a", 0.5, 0.2))
    assert same_work(compared(rows), "tuned") == {"moved": True, "n_scenarios": 70}
    assert not same_work(compared(rows, shared=0.55), "tuned")["moved"]  # not surely fewer than a retest shares


def test_masks_of_base_and_variant_are_counted_together():
    cells = [{"n_scenarios": n} for n in (1, 2, 3)]
    models = {"base": {"fetcher": {"object": cells[0]}}, "tuned": {"fetcher": {"object": cells[1]}}, "other": {}}
    assert mask_cells({"functions": {"base": models}}, "base", "tuned") == cells[:2]
    assert mask_cells({}, "base", "tuned") == []


def likeness(between: float, base: float, variant: float) -> dict[str, Any]:
    named = {"between": between, "base": base, "variant": variant}
    return {name: {"value": value, "low": value - 0.1, "high": value + 0.1} for name, value in named.items()}


def test_effects_and_chosen_heads_are_compared_stage_by_stage_with_the_lower_retest():
    different = {"value": 0.3, "low": 0.2, "high": 0.4}
    stage = {
        "stage": "fetcher",
        "n_chosen": [5, 6],
        "correlation": likeness(0.8, 0.9, 0.95),
        "different": different,
        "jaccard": [{"k": 5} | likeness(0.1, 0.1, 0.1), {"k": 6} | likeness(0.6, 0.75, 0.7) | {"floor": 0.04}],
    }
    nothing = stage | {"stage": "reader", "n_chosen": [0, 0]}
    found = similarity_evidence({"overlap": {"tuned": {"stages": [stage, nothing], "not_run": ["writer"]}}}, "tuned")
    correlation, overlap, missing = found.values()
    assert list(found) == [
        "the correlation of effects, stage fetcher,",
        "the overlap of the 6 strongest heads, stage fetcher,",
        "the effects of stage writer",
    ]
    assert (correlation["value"]["value"], correlation["retest"]["value"]) == (0.8, 0.9)
    assert correlation["different"] == different
    assert (overlap["value"]["value"], overlap["retest"]["value"]) == (0.6, 0.7)
    assert overlap["different"] == {"value": 0.04, "low": 0.04, "high": 0.04}
    assert missing == {}
