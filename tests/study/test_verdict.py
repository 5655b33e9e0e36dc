"""What may be said of made-up numbers: every claim, each way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from circuitdiff.study.evidence import (
    CircuitEvidence,
    Evidence,
    FunctionEvidence,
    GraftEvidence,
    Measured,
    Noted,
    SimilarityEvidence,
    Thresholds,
)
from circuitdiff.study.gains import Credit, RandomGroups
from circuitdiff.study.verdict import Sentence, sentences

SHARED = "other heads that read the same keys and values"


def near(value: float, spread: float = 0.02, **more: Any) -> Noted:
    return Noted(value, value - spread, value + spread, **more)


def credit(share: float, spread: float = 0.1) -> Credit:
    bounds = [share, share - spread, share + spread]
    return Credit(*(0.3 * bound for bound in bounds), *bounds, None)


def undefined(why: str) -> Credit:
    return Credit(0.1, 0.08, 0.12, None, None, None, why)


def part(alone: float, left_out: float | None = None) -> dict[str, Credit]:
    return {
        "alone": credit(alone),
        "left_out": credit(alone if left_out is None else left_out),
        "in_order": credit(alone),
    }


EQUAL = CircuitEvidence(near(0.92), near(0.95), near(-0.01), near(0.02))
SIMILAR = SimilarityEvidence("fetcher", "correlation", None, near(0.9), near(0.91), near(0.2))
FETCHER = FunctionEvidence("fetcher", "object", near(0.0), near(0.5), trained=True)
GRAFT = GraftEvidence(
    parts={"reader": part(0.0), "fetcher": part(0.9), "mlps": part(0.05)},
    controls={"fetcher": {"same_layers": credit(0.1)}},
    layers={"layers 0 to 4": part(0.1), "layers 5 to 9": part(0.9)},
)
# All is well: the same circuit, the same functions, and fetchers improved.
WELL = Evidence(
    base="base",
    variant="tuned",
    donor="tuned",
    scope="tuned against base, boxes, accuracy, slot and kind means, 80 scenarios, attention heads only",
    failed_checks=[],
    gain=near(0.3),
    n_scenarios=80,
    circuits={"slot": EQUAL, "kind": EQUAL},
    similarity=[SIMILAR],
    functions=[FETCHER],
    patched={"reader": part(0.0), "fetcher": part(0.9)},
    graft=GRAFT,
)


def evidence(**changes: Any) -> Evidence:
    return replace(WELL, **changes)


def said(data: Evidence, claim: str, **limits: Any) -> Sentence:
    [sentence] = [each for each in sentences(data, Thresholds(**limits)) if each.claim == claim]
    return sentence


CLAIMS = ("better", "same_circuit", "same_function", "improved_part", "cause_layers", "visible_part")


def test_everything_is_established_when_every_condition_is_met():
    for claim in CLAIMS:
        found = said(evidence(), claim)
        assert found.answer == "yes"
        assert found.reasons == ()
        assert found.scope == WELL.scope
    assert said(evidence(), "improved_part").text == "Yes: improved part: fetcher."
    assert said(evidence(), "cause_layers").text == "Yes: the gain is caused in layers 5 to 9."
    assert said(evidence(), "visible_part").text == "Yes: the gain is visible at fetcher."
    assert {claim: said(evidence(), claim).rests_on for claim in CLAIMS} == {
        "better": "accuracy",
        "same_circuit": "circuits",
        "same_function": "functions",
        "improved_part": "graft",
        "cause_layers": "layers",
        "visible_part": "cross_model",
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"failed_checks": ["window = full"]}, "self-checks failed: window = full"),
        ({"failed_checks": None}, "self-checks were not run"),
        ({"n_scenarios": 49}, "only 49 held-out scenarios, of at least 50"),
        ({"gain": near(0.01)}, r"the gain in accuracy is 0.01 [-0.01, 0.03]"),
        ({"gain": None}, "it was not measured"),
    ],
)
def test_nothing_is_said_unless_checks_pass_scenarios_suffice_and_there_is_a_gain(change, reason):
    for claim in CLAIMS:
        found = said(evidence(**change), claim)
        assert found.answer == "not established"
        assert any(reason in each for each in found.reasons)


def test_a_variant_that_surely_lost_is_not_better_and_nothing_else_is_said():
    worse = evidence(gain=near(-0.2))
    assert said(worse, "better").answer == "no"
    assert {said(worse, claim).answer for claim in CLAIMS[1:]} == {"not established"}
    failed = evidence(gain=near(-0.2), failed_checks=["any"])
    assert said(failed, "better").answer == "not established"


def test_of_a_variant_that_is_surely_worse_it_is_said_what_it_lacks():
    worse = evidence(gain=near(-0.3), donor="base")
    assert said(worse, "better").answer == "no"
    assert said(worse, "improved_part").text == "Yes: the part that tuned lacks: fetcher."
    assert said(worse, "visible_part").text == "Yes: what tuned lacks is visible at fetcher."
    assert said(worse, "cause_layers").text == "Yes: what tuned lacks is caused in layers 5 to 9."
    even = evidence(gain=near(0.0), donor="base")
    assert "the gain of base over tuned is -0.00 [-0.02, 0.02]" in said(even, "improved_part").text
    mlps = evidence(gain=near(-0.3), donor="base", graft=grafted({"fetcher": part(0.0), "mlps": part(0.9)}))
    assert said(mlps, "improved_part").text == "Yes: the part that tuned lacks is mlps, which is no head group."


def grafted(parts: dict[str, Any], **more: Any) -> GraftEvidence:
    return replace(GRAFT, parts=parts, **more)


def changed_circuit(name: str, value: Any) -> Evidence:
    return evidence(circuits={"slot": EQUAL, "kind": replace(EQUAL, **{name: value})})


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        ("base_own", near(0.81), "not established"),  # its lower bound is below 0.8
        ("base_own", near(0.7), "not established"),  # circuits that are not faithful say nothing of each other
        ("variant_own", near(1.09), "not established"),
        ("variant_own", near(1.2), "not established"),
        ("variant_own", None, "not established"),
        ("variant_own", Noted(None, None, None, "near chance"), "not established"),
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
    assert found.answer == answer
    assert "mean by kind with heads at every segment ablation" in found.reasons[0]


@pytest.mark.parametrize("own", ["base_own", "variant_own"])
def test_circuits_that_are_not_faithful_do_not_say_that_another_one_is_at_work(own):
    data = changed_circuit("transfer", near(-0.6))
    assert said(data, "same_circuit").answer == "no"
    unfaithful = replace(data.circuits["kind"], **{own: near(0.3)})
    data = replace(data, circuits={"slot": EQUAL, "kind": unfaithful})
    assert said(data, "same_circuit").answer == "not established"


def test_a_handful_of_prompts_that_only_the_variant_gets_right_establishes_nothing():
    for n, answer in ((49, "not established"), (50, "yes")):
        found = said(changed_circuit("transfer_where_only_variant_right", near(0.0, n=n)), "same_circuit")
        assert found.answer == answer
    few = changed_circuit("transfer_where_only_variant_right", near(-0.9, n=2))
    assert "there are only 2 such scenarios, of at least 50" in said(few, "same_circuit").text


def test_the_reason_that_a_ratio_is_undefined_is_handed_on():
    data = changed_circuit("variant_own", Noted(None, None, None, "near chance"))
    assert "near chance" in said(data, "same_circuit").text


def test_a_no_says_that_the_circuit_is_a_different_one():
    assert said(changed_circuit("transfer", near(-0.9)), "same_circuit").text.startswith(
        "No: a different circuit is at work, because base's circuit in tuned (mean by kind with heads at every segment "
        "ablation) differs"
    )
    assert said(evidence(), "same_circuit").text == "Yes: the same circuit is at work."


def test_heads_that_moved_are_not_called_a_different_circuit():
    moved = replace(changed_circuit("transfer", near(-0.9)), moved=True, n_scenarios_moved=50)
    assert said(moved, "same_circuit").text.startswith(
        "No: other heads are at work, in groups that look and act alike, because"
    )
    unmoved = replace(moved, moved=False)
    assert said(unmoved, "same_circuit").text.startswith("No: a different circuit is at work, because")


def test_heads_that_seem_to_have_moved_on_few_scenarios_leave_it_open():
    few = replace(changed_circuit("transfer", near(-0.9)), moved=True, n_scenarios_moved=49)
    assert said(few, "same_circuit").text.startswith(
        "No: a different circuit is at work, or other heads are at work, in groups that look and act alike (so far on "
        "49 of 50 scenarios), because"
    )


def test_one_ablation_is_not_enough_for_the_same_circuit():
    found = said(evidence(circuits={"slot": EQUAL}), "same_circuit")
    assert found.answer == "not established"
    assert "1 of at least 2 ablations" in found.text
    assert said(evidence(circuits={}), "same_circuit").answer == "not established"


@pytest.mark.parametrize(
    ("measure", "answer"),
    [
        ((near(0.88), near(0.91), near(0.2)), "yes"),
        ((near(0.7), near(0.91), near(0.2)), "not established"),
        ((near(0.1), near(0.91), near(0.2)), "no"),
        ((near(0.1), near(0.91), None), "not established"),
        ((near(0.85, 0.1), near(0.91), near(0.2)), "not established"),
        ((near(0.6), near(0.7, 0.2), near(0.2)), "not established"),  # a noisy retest
        ((near(0.9), None, near(0.2)), "not established"),
        ((near(0.9), near(0.91), near(0.87)), "not established"),
        ((near(0.9), near(0.91), near(0.95)), "not established"),
        ((near(0.9), near(0.91), None), "not established"),
        ((None, near(0.91), near(0.2)), "not established"),
    ],
)
def test_the_same_circuit_needs_likeness_up_to_the_retest_and_above_another_circuit(measure, answer):
    similarity = SimilarityEvidence("fetcher", "overlap", 5, *measure)
    assert said(evidence(similarity=[similarity]), "same_circuit").answer == answer
    assert said(evidence(similarity=[]), "same_circuit").answer == "not established"


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
    assert said(evidence(functions=[replace(FETCHER, **change)]), "same_function").answer == answer


def test_without_masks_nothing_is_said_of_functions():
    found = said(evidence(functions=[]), "same_function")
    assert (found.answer, found.reasons) == ("not established", ("no component masks were carried over",))


def test_the_sentence_on_functions_names_the_groups_that_were_tested_and_those_without_a_known_function():
    assert said(evidence(), "same_function").text == "Yes: fetcher (object) has the same function."
    both = [FETCHER, replace(FETCHER, group="reader", desideratum="label")]
    found = said(evidence(functions=both, unknown=["writer"]), "same_function")
    expected = "Yes: fetcher (object) and reader (label) have the same function (of writer no function is known)."
    assert found.text == expected


def grafts(**parts: Any) -> GraftEvidence:
    return grafted({**GRAFT.parts, **parts}, layers={})


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
        (replace(grafts(), controls={}), "not established", "no random groups in the stead of fetcher"),
        (
            replace(grafts(), controls={"fetcher": {"same_layers": credit(0.7)}}),
            "no",
            "the control random heads of the same layers brings",
        ),
        (replace(grafts(), controls={"fetcher": {"same_layers": credit(0.45)}}), "not established", "the control"),
        (
            replace(grafts(), also_touched={"fetcher": 1}),
            "not established",
            "1 other heads that read the same keys and values were not grafted without fetcher",
        ),
        (
            replace(grafts(), controls={"fetcher": {"shared_kv": credit(0.9)}}),  # it may be the keys and values alone
            "not established",
            f"the control {SHARED} brings",
        ),
        (None, "not established", "no weights were grafted"),
    ],
)
def test_an_improved_part_must_bring_the_gain_be_needed_for_it_and_be_the_only_one(graft, answer, reason):
    found = said(evidence(graft=graft), "improved_part")
    assert found.answer == answer
    assert any(reason in each for each in found.reasons)


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
    found = said(evidence(graft=replace(GRAFT, layers=layers)), "cause_layers")
    assert found.answer == answer
    assert any(reason in each for each in found.reasons)


@pytest.mark.parametrize(("n", "answer"), [(99, "not established"), (100, "yes")])
def test_a_part_is_improved_only_beside_a_hundred_random_groups(n, answer):
    drawn = RandomGroups(
        **vars(credit(0.1)), n_scenarios=80, n=n, bounds_are="95 % of the groups", n_far=0, n_prompts=80, rank_p=None,
        group=0.8, accuracies=(0.5,) * n, nothing=0.5,
    )  # fmt: skip
    found = said(evidence(graft=replace(grafts(), controls={"fetcher": {"same_layers": drawn}})), "improved_part")
    assert found.answer == answer
    assert found.reasons == (() if n == 100 else ("only 99 random groups of at least 100 were grafted",))


def test_keys_and_values_that_others_share_must_bring_nothing_with_the_others():
    controls = {"fetcher": {"same_layers": credit(0.1), "shared_kv": credit(0.1)}}
    shared = replace(grafts(), controls=controls, also_touched={"fetcher": 1, "reader": 1})
    assert said(evidence(graft=shared), "improved_part").answer == "yes"


@pytest.mark.parametrize("kind", ["mlps", "unembedding"])
def test_a_gain_outside_heads_is_no_head_group(kind):
    parts = {"reader": part(0.0), "fetcher": part(0.1), kind: part(0.9)}
    found = said(evidence(graft=GraftEvidence(parts)), "improved_part")
    assert found.answer == "yes"
    assert found.text == f"Yes: the improved part is {kind}, which is no head group."


def test_patched_activations_alone_do_not_locate_the_cause():
    found = said(evidence(graft=None), "visible_part")
    assert found.text == "Yes: the gain is visible at fetcher; its cause was not located."
    spread = {"reader": part(0.4), "fetcher": part(0.45)}
    assert said(evidence(patched=spread), "visible_part").answer == "not established"
    assert said(evidence(patched={}), "visible_part").answer == "not established"


def test_a_gain_made_below_is_visible_late_and_caused_below():
    """The shares of tracker-early, tuned below layer 17, as docs/family-study.md has them."""
    patched = {
        "structure_reader": (-0.09, 0.2),
        "position_detector": (0.37, 0.25),
        "position_transmitter": (0.8, 0.19),
        "value_fetcher": (0.96, 0.12),
    }
    in_order = {"position_detector": 0.65, "position_transmitter": 0.3, "value_fetcher": 0.2, "structure_reader": -0.1}
    parts = {
        name: part(0.0) | {"alone": credit(*alone), "in_order": credit(in_order[name], 0.25)}
        for name, alone in patched.items()
    }
    layers = {"layers 0 to 16": part(1.0), "layers 17 to 29": part(0.0)}
    data = evidence(patched=parts, graft=replace(GRAFT, layers=layers))
    visible = "Yes: the gain is visible at position_transmitter and value_fetcher."
    assert said(data, "visible_part").text == visible
    assert said(data, "cause_layers").text == "Yes: the gain is caused in layers 0 to 16."


def test_a_section_with_too_few_scenarios_of_its_own_establishes_nothing_and_states_its_own_prompts():
    own = Measured("accuracy on 10 prompts", 10)
    data = evidence(measured={"graft": own, "layers": own, "cross_model": own._replace(n_scenarios=50)})
    for claim in ("improved_part", "cause_layers"):
        assert said(data, claim).answer == "not established"
        assert "only 10 held-out scenarios" in said(data, claim).text
        assert said(data, claim).scope.endswith("; accuracy on 10 prompts")
    assert said(data, "visible_part").answer == said(data, "same_circuit").answer == "yes"
    assert said(data, "same_circuit").scope == WELL.scope


def test_a_share_that_is_undefined_establishes_nothing_and_hands_on_why():
    far = {"alone": undefined("far from clean"), "left_out": undefined("far"), "in_order": undefined("far from clean")}
    found = said(evidence(patched={"fetcher": far}), "visible_part")
    assert found.answer == "not established"
    assert "far from clean" in found.text


def test_thresholds_are_settings():
    assert said(evidence(), "improved_part", share=1.5).answer == "no"
    assert said(evidence(), "better", scenarios=100).answer == "not established"


def test_long_reasons_are_cut_in_the_text_but_not_in_the_list():
    found = said(evidence(circuits={"slot": CircuitEvidence(), "kind": CircuitEvidence()}), "same_circuit")
    assert len(found.reasons) == 8
    assert found.text.endswith("; and 6 more.")
