"""What may be said of made-up numbers: every claim, each way."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from circuitdiff.verdict import SHARED, Thresholds, verdict


def near(value: float, spread: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - spread, "high": value + spread}


def credit(share: float, spread: float = 0.1) -> dict[str, Any]:
    shares = {"share": share, "share_low": share - spread, "share_high": share + spread}
    return {f: 0.3 * v for f, v in near(share, spread).items()} | shares | {"undefined": None}


def undefined(why: str) -> dict[str, Any]:
    return near(0.1) | {"share": None, "share_low": None, "share_high": None, "undefined": why}


def part(alone: float, left_out: float | None = None) -> dict[str, Any]:
    return {
        "alone": credit(alone),
        "left_out": credit(alone if left_out is None else left_out),
        "in_order": credit(alone),
    }


def equal_circuits() -> dict[str, Any]:
    own = {"base_own": near(0.92), "variant_own": near(0.95), "transfer": near(-0.01)}
    return own | {"transfer_where_only_variant_right": near(0.02)}


def evidence(**changes: Any) -> dict[str, Any]:
    """All is well: the same circuit, the same functions, and fetchers improved."""
    similar = {"value": near(0.9), "retest": near(0.91), "different": near(0.2)}
    return {
        "base": "base",
        "variant": "tuned",
        "scope": "tuned against base, boxes, accuracy, slot and kind means, 80 scenarios, attention heads only",
        "failed_checks": [],
        "gain": near(0.3) | {"n_scenarios": 80},
        "circuits": {"slot": equal_circuits(), "kind": equal_circuits()},
        "similarity": {"the likeness of effect maps": copy.deepcopy(similar)},
        "functions": {"fetcher": {"difference": near(0.0), "above_floor": near(0.5), "trained": True}},
        "cmap": {"parts": {"reader": part(0.0), "fetcher": part(0.9)}},
        "graft": {
            "parts": {"reader": part(0.0), "fetcher": part(0.9), "mlps": part(0.05)},
            "controls": {"fetcher": {"random heads": credit(0.1)}},
            "layers": {"layers 0 to 4": part(0.1), "layers 5 to 9": part(0.9)},
        },
    } | changes


def said(data: dict[str, Any], claim: str, **limits: float) -> dict[str, Any]:
    [found] = [s for s in verdict(data, Thresholds(**limits))["sentences"] if s["claim"] == claim]
    return found


CLAIMS = ("better", "same_circuit", "same_function", "improved_part", "cause_layers", "visible_part")


def test_everything_is_established_when_every_condition_is_met():
    for claim in CLAIMS:
        found = said(evidence(), claim)
        assert found["answer"] == "yes"
        assert found["reasons"] == ()
        assert found["scope"] == evidence()["scope"]
    assert said(evidence(), "improved_part")["text"] == "Yes: improved part: fetcher."
    assert said(evidence(), "cause_layers")["text"] == "Yes: the gain is caused in layers 5 to 9."
    assert said(evidence(), "visible_part")["text"] == "Yes: the gain is visible at fetcher."
    assert {claim: said(evidence(), claim)["table"] for claim in CLAIMS} == {
        "better": "models",
        "same_circuit": "ablations",
        "same_function": "masks",
        "improved_part": "graft",
        "cause_layers": "layers",
        "visible_part": "cmap",
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"failed_checks": ["window = full"]}, "self-checks failed: window = full"),
        ({"failed_checks": None}, "self-checks were not run"),
        ({"gain": near(0.3) | {"n_scenarios": 49}}, "only 49 held-out scenarios, of at least 50"),
        ({"gain": near(0.01) | {"n_scenarios": 80}}, r"the gain in accuracy is 0.01 [-0.01, 0.03]"),
        ({"gain": None}, "held-out scenarios"),
    ],
)
def test_nothing_is_said_unless_checks_pass_scenarios_suffice_and_there_is_a_gain(change, reason):
    for claim in CLAIMS:
        found = said(evidence(**change), claim)
        assert found["answer"] == "not established"
        assert any(reason in each for each in found["reasons"])


def test_a_variant_that_surely_lost_is_not_better_and_nothing_else_is_said():
    worse = evidence(gain=near(-0.2) | {"n_scenarios": 80})
    assert said(worse, "better")["answer"] == "no"
    assert {said(worse, claim)["answer"] for claim in CLAIMS[1:]} == {"not established"}
    failed = evidence(gain=near(-0.2) | {"n_scenarios": 80}, failed_checks=["any"])
    assert said(failed, "better")["answer"] == "not established"


def test_of_a_variant_that_is_surely_worse_it_is_said_what_it_lacks():
    worse = evidence(gain=near(-0.3) | {"n_scenarios": 80}, donor="base")
    assert said(worse, "better")["answer"] == "no"
    assert said(worse, "improved_part")["text"] == "Yes: the part that tuned lacks: fetcher."
    assert said(worse, "visible_part")["text"] == "Yes: what tuned lacks is visible at fetcher."
    assert said(worse, "cause_layers")["text"] == "Yes: what tuned lacks is caused in layers 5 to 9."
    even = evidence(gain=near(0.0) | {"n_scenarios": 80}, donor="base")
    assert "the gain of base over tuned is -0.00 [-0.02, 0.02]" in said(even, "improved_part")["text"]
    mlps = evidence(gain=near(-0.3) | {"n_scenarios": 80}, donor="base")
    mlps["graft"]["parts"] = {"fetcher": part(0.0), "mlps": part(0.9)}
    assert said(mlps, "improved_part")["text"] == "Yes: the part that tuned lacks is mlps, which is no head group."


def changed_circuit(name: str, value: Any) -> dict[str, Any]:
    data = evidence()
    data["circuits"]["kind"][name] = value
    return data


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        ("base_own", near(0.81), "not established"),  # its lower bound is below 0.8
        ("base_own", near(0.7), "not established"),  # circuits that are not faithful say nothing of each other
        ("variant_own", near(1.09), "not established"),
        ("variant_own", near(1.2), "not established"),
        ("variant_own", None, "not established"),
        ("variant_own", {"value": None, "low": None, "high": None, "note": "near chance"}, "not established"),
        ("transfer", near(0.04), "not established"),
        ("transfer", near(-0.1), "no"),
        ("transfer_where_only_variant_right", near(-0.04), "not established"),
        ("transfer", near(0.2), "not established"),  # the base's circuit does better than the one found there
        ("transfer_where_only_variant_right", near(-0.2), "no"),
        ("transfer_where_only_variant_right", None, "not established"),
    ],
)
def test_the_same_circuit_is_an_equivalence_under_each_ablation(name, value, answer):
    found = said(changed_circuit(name, value), "same_circuit")
    assert found["answer"] == answer
    assert "kind ablation" in found["reasons"][0]


@pytest.mark.parametrize("own", ["base_own", "variant_own"])
def test_circuits_that_are_not_faithful_do_not_say_that_another_one_is_at_work(own):
    data = changed_circuit("transfer", near(-0.6))
    assert said(data, "same_circuit")["answer"] == "no"
    data["circuits"]["kind"][own] = near(0.3)
    assert said(data, "same_circuit")["answer"] == "not established"


def test_a_handful_of_prompts_that_only_the_variant_gets_right_establishes_nothing():
    for n, answer in ((49, "not established"), (50, "yes")):
        found = said(changed_circuit("transfer_where_only_variant_right", near(0.0) | {"n": n}), "same_circuit")
        assert found["answer"] == answer
    few = changed_circuit("transfer_where_only_variant_right", near(-0.9) | {"n": 2})
    assert "there are only 2 such scenarios, of at least 50" in said(few, "same_circuit")["text"]


def test_the_reason_that_a_ratio_is_undefined_is_handed_on():
    data = changed_circuit("variant_own", {"value": None, "low": None, "high": None, "note": "near chance"})
    assert "near chance" in said(data, "same_circuit")["text"]


def test_a_no_says_that_the_circuit_is_a_different_one():
    assert said(changed_circuit("transfer", near(-0.9)), "same_circuit")["text"].startswith(
        "No: a different circuit is at work, because base's circuit in tuned (kind ablation) differs from the variant's"
    )
    assert said(evidence(), "same_circuit")["text"] == "Yes: the same circuit is at work."


def test_heads_that_moved_are_not_called_a_different_circuit():
    work = {"moved": True, "n_scenarios": 50}
    moved = changed_circuit("transfer", near(-0.9)) | {"same_work": work}
    assert said(moved, "same_circuit")["text"].startswith(
        "No: other heads are at work, in groups that look and act alike, because"
    )
    unmoved = moved | {"same_work": work | {"moved": False}}
    assert said(unmoved, "same_circuit")["text"].startswith("No: a different circuit is at work, because")


def test_heads_that_seem_to_have_moved_on_few_scenarios_leave_it_open():
    few = changed_circuit("transfer", near(-0.9)) | {"same_work": {"moved": True, "n_scenarios": 49}}
    assert said(few, "same_circuit")["text"].startswith(
        "No: a different circuit is at work, or other heads are at work, in groups that look and act alike (so far on "
        "49 of 50 scenarios), because"
    )


def test_one_ablation_is_not_enough_for_the_same_circuit():
    found = said(evidence(circuits={"slot": equal_circuits()}), "same_circuit")
    assert found["answer"] == "not established"
    assert "1 of at least 2 ablations" in found["text"]
    assert said(evidence(circuits=None), "same_circuit")["answer"] == "not established"


@pytest.mark.parametrize(
    ("measure", "answer"),
    [
        ({"value": near(0.88), "retest": near(0.91), "different": near(0.2)}, "yes"),
        ({"value": near(0.7), "retest": near(0.91), "different": near(0.2)}, "not established"),
        ({"value": near(0.1), "retest": near(0.91), "different": near(0.2)}, "no"),
        ({"value": near(0.1), "retest": near(0.91)}, "not established"),
        ({"value": near(0.85, 0.1), "retest": near(0.91), "different": near(0.2)}, "not established"),
        ({"value": near(0.6), "retest": near(0.7, 0.2), "different": near(0.2)}, "not established"),  # a noisy retest
        ({"value": near(0.9), "retest": None, "different": near(0.2)}, "not established"),
        ({"value": near(0.9), "retest": near(0.91), "different": near(0.87)}, "not established"),
        ({"value": near(0.9), "retest": near(0.91), "different": near(0.95)}, "not established"),
        ({"value": near(0.9), "retest": near(0.91)}, "not established"),
        ({"retest": near(0.91), "different": near(0.2)}, "not established"),
    ],
)
def test_the_same_circuit_needs_likeness_up_to_the_retest_and_above_another_circuit(measure, answer):
    assert said(evidence(similarity={"overlap": measure}), "same_circuit")["answer"] == answer
    assert said(evidence(similarity={}), "same_circuit")["answer"] == "not established"


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"difference": near(-0.04)}, "not established"),
        ({"difference": near(-0.2)}, "no"),
        ({"difference": near(0.2)}, "not established"),  # the base's mask does better than the variant's own
        ({"above_floor": near(0.01)}, "no"),  # surely less than 0.05: the function is lost
        ({"above_floor": near(0.04, 0.05)}, "not established"),
        ({"above_floor": None}, "not established"),
        ({"trained": False}, "not established"),
        ({"above_floor": near(0.01), "trained": False}, "no"),  # where nothing is above it no floor is trained
    ],
)
def test_the_same_function_needs_masks_that_carry_over_and_beat_the_floor(change, answer):
    functions = {"fetcher": evidence()["functions"]["fetcher"] | change}
    assert said(evidence(functions=functions), "same_function")["answer"] == answer


def test_without_masks_nothing_is_said_of_functions():
    found = said(evidence(functions={}), "same_function")
    assert (found["answer"], found["reasons"]) == ("not established", ("no component masks were carried over",))


def test_the_sentence_on_functions_names_the_groups_that_were_tested_and_those_without_a_known_function():
    one = evidence()["functions"]["fetcher"]
    assert said(evidence(), "same_function")["text"] == "Yes: fetcher has the same function."
    found = said(evidence(functions={"fetcher": one, "reader": one}, unknown=["writer"]), "same_function")
    assert found["text"] == "Yes: fetcher and reader have the same function (of writer no function is known)."


def grafts(**parts: Any) -> dict[str, Any]:
    return {"parts": evidence()["graft"]["parts"] | parts, "controls": {"fetcher": {"random heads": credit(0.1)}}}


@pytest.mark.parametrize(
    ("graft", "answer", "reason"),
    [
        (grafts(fetcher=part(0.55)), "not established", "fetcher grafted alone brings"),
        (grafts(fetcher=part(0.3)), "no", "fetcher grafted alone brings 0.30"),
        (grafts(fetcher=part(0.9, left_out=0.55)), "not established", "fetcher taken out of the donor costs"),
        (grafts(fetcher=part(0.9, left_out=0.1)), "no", "fetcher taken out of the donor costs"),
        (grafts(reader=part(0.45)), "not established", "reader grafted alone brings"),
        (grafts(reader=part(0.7)), "no", "reader grafted alone brings"),
        (grafts(mlps=part(0.45)), "not established", "mlps grafted alone brings"),
        (grafts() | {"controls": {}}, "not established", "no controls of fetcher"),
        (grafts() | {"controls": {"fetcher": {"random heads": credit(0.7)}}}, "no", "the control random heads brings"),
        (grafts() | {"controls": {"fetcher": {"random heads": credit(0.45)}}}, "not established", "the control"),
        (
            grafts() | {"also_touched": {"fetcher": [[1, 2]]}},
            "not established",
            "1 other heads that read the same keys and values were not grafted without fetcher",
        ),
        (
            grafts() | {"controls": {"fetcher": {SHARED: credit(0.9)}}},  # it may be the keys and values alone
            "not established",
            f"the control {SHARED} brings",
        ),
        (None, "not established", "no weights were grafted"),
    ],
)
def test_an_improved_part_must_bring_the_gain_be_needed_for_it_and_be_the_only_one(graft, answer, reason):
    found = said(evidence(graft=graft), "improved_part")
    assert found["answer"] == answer
    assert any(reason in each for each in found["reasons"])


@pytest.mark.parametrize(
    ("layers", "answer", "reason"),
    [
        ({"layers 0 to 4": part(0.9), "layers 5 to 9": part(0.45)}, "not established", "layers 5 to 9 grafted alone"),
        ({"layers 0 to 4": part(0.9), "layers 5 to 9": part(0.7)}, "no", "layers 5 to 9 grafted alone brings 0.70"),
        ({"layers 0 to 4": part(0.9, left_out=0.2), "layers 5 to 9": part(0.1)}, "no", "taken out of the donor costs"),
        ({"layers 0 to 4": part(0.3), "layers 5 to 9": part(0.2)}, "no", "layers 0 to 4 grafted alone brings 0.30"),
        (
            {"layers 0 to 4": part(0.9), "layers 5 to 9": part(0.1), "embeddings": part(0.95)},
            "no",
            "embeddings grafted alone brings 0.95",
        ),
        ({}, "not established", "no ranges of layers were grafted"),
    ],
)
def test_a_cause_is_in_layers_that_bring_the_gain_and_are_needed_for_it_while_the_others_do_not(layers, answer, reason):
    found = said(evidence(graft=grafts() | {"layers": layers}), "cause_layers")
    assert found["answer"] == answer
    assert any(reason in each for each in found["reasons"])


def test_keys_and_values_that_others_share_must_bring_nothing_with_the_others():
    controls = {"fetcher": {"random heads": credit(0.1), SHARED: credit(0.1)}}
    shared = grafts() | {"controls": controls, "also_touched": {"fetcher": [[1, 2]], "reader": [[0, 1]]}}
    assert said(evidence(graft=shared), "improved_part")["answer"] == "yes"


@pytest.mark.parametrize("kind", ["mlps", "unembedding"])
def test_a_gain_outside_heads_is_no_head_group(kind):
    parts = {"reader": part(0.0), "fetcher": part(0.1), kind: part(0.9)}
    found = said(evidence(graft={"parts": parts}), "improved_part")
    assert found["answer"] == "yes"
    assert found["text"] == f"Yes: the improved part is {kind}, which is no head group."


def test_patched_activations_alone_do_not_locate_the_cause():
    found = said(evidence(graft=None), "visible_part")
    assert found["text"] == "Yes: the gain is visible at fetcher; its cause was not located."
    spread = {"parts": {"reader": part(0.4), "fetcher": part(0.45)}}
    assert said(evidence(cmap=spread), "visible_part")["answer"] == "not established"
    assert said(evidence(cmap=None), "visible_part")["answer"] == "not established"


def test_a_gain_made_below_is_visible_late_and_caused_below():
    """The shares of tracker-early, tuned below layer 17, as docs/family-study.md has them."""
    patched = {
        "structure_reader": (-0.09, 0.2),
        "position_detector": (0.37, 0.25),
        "position_transmitter": (0.8, 0.19),
        "value_fetcher": (0.96, 0.12),
    }
    in_order = {"position_detector": 0.65, "position_transmitter": 0.3, "value_fetcher": 0.2, "structure_reader": -0.1}
    cmap = {
        name: part(0.0) | {"alone": credit(*alone), "in_order": credit(in_order[name], 0.25)}
        for name, alone in patched.items()
    }
    layers = {"layers 0 to 16": part(1.0), "layers 17 to 29": part(0.0)}
    data = evidence(cmap={"parts": cmap}, graft=grafts() | {"layers": layers})
    visible = "Yes: the gain is visible at position_transmitter and value_fetcher."
    assert said(data, "visible_part")["text"] == visible
    assert said(data, "cause_layers")["text"] == "Yes: the gain is caused in layers 0 to 16."


def test_a_section_with_too_few_scenarios_of_its_own_establishes_nothing_and_states_its_own_prompts():
    own = {"scope": "accuracy on 10 prompts", "n_scenarios": 10}
    data = evidence(measured={"graft": own, "layers": own, "cmap": own | {"n_scenarios": 50}})
    for claim in ("improved_part", "cause_layers"):
        assert said(data, claim)["answer"] == "not established"
        assert "only 10 held-out scenarios" in said(data, claim)["text"]
        assert said(data, claim)["scope"].endswith("; accuracy on 10 prompts")
    assert said(data, "visible_part")["answer"] == said(data, "same_circuit")["answer"] == "yes"
    assert said(data, "same_circuit")["scope"] == evidence()["scope"]


def test_a_share_that_is_undefined_establishes_nothing_and_hands_on_why():
    far = {"alone": undefined("far from clean"), "left_out": undefined("far"), "in_order": undefined("far from clean")}
    found = said(evidence(cmap={"parts": {"fetcher": far}}), "visible_part")
    assert found["answer"] == "not established"
    assert "far from clean" in found["text"]


def test_thresholds_are_settings_and_stand_beside_the_verdict():
    assert said(evidence(), "improved_part", share=1.5)["answer"] == "no"
    assert said(evidence(), "better", scenarios=100)["answer"] == "not established"
    assert verdict(evidence(), Thresholds(margin=0.2))["thresholds"]["margin"] == 0.2


def test_long_reasons_are_cut_in_the_text_but_not_in_the_list():
    found = said(evidence(circuits={"slot": {}, "kind": {}}), "same_circuit")
    assert len(found["reasons"]) == 8
    assert found["text"].endswith("; and 6 more.")
