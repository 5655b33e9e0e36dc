"""What the verdict is given of the masks."""

from __future__ import annotations

from typing import Any

from circuitdiff.sections.evidence import functions_evidence


def carried(above_floor: float, *, carries: bool = True) -> dict[str, Any]:
    return {"above_floor": {"value": above_floor}, "carries": carries}


def tried(accuracy: float) -> dict[str, Any]:
    """What the base's mask did in a variant: below its own mask by 0.1, the trained floor at 0.2."""
    return {
        "transferred": {"value": accuracy, "above_own_mask": {"value": -0.1}},
        "controls": {"shuffled": {"value": 0.2}},
    }


def results() -> dict[str, Any]:
    of_base = {
        "fetcher": {"object": carried(0.5), "position": carried(0.3), "label": carried(0.9, carries=False)},
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
            "transferred": tried(0.7)["transferred"],
            "floor": {"value": 0.2},
        }
    }


def test_a_variant_without_masks_leaves_the_evidence_open():
    found = functions_evidence(results(), "base", "other")
    assert found == {"fetcher (object)": {"difference": None, "transferred": {}, "floor": None}}
    assert functions_evidence({}, "base", "tuned") == {}
