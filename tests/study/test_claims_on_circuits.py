"""What may be said of circuits and functions, from made-up numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from circuitdiff.study.estimates import Ratio
from circuitdiff.study.evidence import (
    Evidence,
    GapEvidence,
    NeededHeads,
    Noted,
    RivalEvidence,
    SimilarityEvidence,
    StabilityEvidence,
)
from helpers.invented_evidence import ALL_CIRCUITS, FETCHER, TRANSFER, evidence, near, ratio, said

KIND, KIND_LOGITS = 2, 3  # of ALL_CIRCUITS


def changed(name: str, value: Any, which: int = KIND) -> Evidence:
    rows = [*ALL_CIRCUITS]
    rows[which] = replace(rows[which], **{name: value})
    return evidence(circuits=rows)


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        ("base_own", near(0.81), "not established"),  # its lower bound is below 0.8
        ("base_own", near(0.7), "not established"),  # circuits that are not faithful say nothing of each other
        ("variant_own", near(1.09), "not established"),
        ("variant_own", near(1.2), "not established"),
        ("variant_own", None, "not established"),
        ("variant_own", Noted(None, None, None, "near chance"), "not established"),
        ("transfer", near(0.09), "not established"),
        ("transfer", near(-0.2), "no"),
        ("transfer_where_only_variant_right", near(-0.09), "not established"),
        ("transfer", near(0.3), "not established"),  # the base's circuit does better than the one found there
        ("transfer_where_only_variant_right", near(-0.3), "no"),
    ],
)
def test_the_same_circuit_is_an_equivalence_under_each_ablation(name, value, answer):
    found = said(changed(name, value), "same_circuit")
    assert found.answer == answer
    assert "mean by kind with heads at every segment ablation, accuracy" in found.reasons[0]


def test_circuits_are_judged_in_the_logit_difference_too():
    for which, score in ((KIND, "accuracy"), (KIND_LOGITS, "logit difference")):
        for name, value, answer in (("transfer", near(-0.2), "no"), ("base_own", near(0.7), "not established")):
            found = said(changed(name, value, which), "same_circuit")
            assert found.answer == answer
            assert f"ablation, {score}) " in found.reasons[0]


@pytest.mark.parametrize("own", ["base_own", "variant_own"])
def test_circuits_that_are_not_faithful_do_not_say_that_another_one_is_at_work(own):
    data = changed("transfer", near(-0.6))
    assert said(data, "same_circuit").answer == "no"
    rows = [*data.circuits]
    rows[KIND] = replace(rows[KIND], **{own: near(0.3)})
    assert said(replace(data, circuits=rows), "same_circuit").answer == "not established"


def test_one_of_many_comparisons_that_is_barely_refuted_says_nothing():
    barely = said(changed("transfer", near(-0.1201)), "same_circuit")  # 2.5 % one-sided, one of ten that could be
    assert barely.answer == "not established"
    assert said(changed("transfer", near(-0.14)), "same_circuit").answer == "no"


def test_a_handful_of_prompts_that_only_the_variant_gets_right_establishes_nothing():
    for n, answer in ((49, "not established"), (50, "yes")):
        assert said(changed("transfer_where_only_variant_right", near(0.0, n=n)), "same_circuit").answer == answer
    few = changed("transfer_where_only_variant_right", near(-0.9, n=2))
    assert "there are only 2 such scenarios, of at least 50" in said(few, "same_circuit").text


def test_the_reason_that_a_ratio_is_undefined_is_handed_on():
    data = changed("variant_own", Noted(None, None, None, "near chance"))
    assert "near chance" in said(data, "same_circuit").text


def test_a_no_says_that_the_circuit_is_a_different_one():
    text = said(changed("transfer", near(-0.9)), "same_circuit").text
    assert text.startswith("No: a different circuit is at work, because base's circuit in tuned (mean by kind")
    assert said(evidence(), "same_circuit").text == "Yes: the same circuit is at work."


def test_heads_that_moved_are_not_called_a_different_circuit():
    moved = replace(changed("transfer", near(-0.9)), moved=True, n_scenarios_moved=50)
    assert said(moved, "same_circuit").text.startswith(
        "No: other heads are at work, in groups that look and act alike, because"
    )
    few = said(replace(moved, n_scenarios_moved=49), "same_circuit").text
    assert few.startswith("No: a different circuit is at work, or other heads are at work, in groups that look and act")
    assert "(so far on 49 of 50 scenarios)" in few


def test_one_ablation_is_not_enough_for_the_same_circuit():
    found = said(evidence(circuits=ALL_CIRCUITS[:2]), "same_circuit")
    assert found.answer == "not established"
    assert "under 1 of 2 ablations" in found.text


@pytest.mark.parametrize(
    ("likeness", "different", "answer"),
    [
        (ratio(0.96), ratio(0.2), "yes"),
        (ratio(0.91), ratio(0.2), "not established"),
        (ratio(0.7), ratio(0.2), "no"),
        (ratio(0.96), ratio(0.95), "not established"),  # another stage's effects are as much alike
        (ratio(0.96), None, "yes"),  # there is no other stage
        (None, ratio(0.2), "not established"),
        (Ratio(None, None, None, "too noisy"), ratio(0.2), "not established"),
    ],
)
def test_the_same_circuit_has_effects_as_alike_as_counts_and_more_than_another_stages(likeness, different, answer):
    rows = [SimilarityEvidence("fetcher", likeness, different)]
    assert said(evidence(similarity=rows), "same_circuit").answer == answer
    assert said(evidence(similarity=[]), "same_circuit").answer == "not established"


@pytest.mark.parametrize(
    ("gap", "answer"), [(near(0.05), "yes"), (near(0.09), "not established"), (near(0.5), "not established")]
)
def test_a_circuit_with_a_known_gap_is_not_said_to_be_the_same(gap, answer):
    found = said(evidence(gaps=[GapEvidence("tuned", "fetcher", gap)]), "same_circuit")
    assert found.answer == answer
    assert answer == "yes" or "without fetcher, tuned keeps more than its circuit does: by" in found.text


def test_heads_needed_in_one_model_alone_leave_it_open():
    assert said(evidence(needed=NeededHeads(3, 4, ())), "same_circuit").answer == "yes"
    found = said(evidence(needed=NeededHeads(3, 4, ("2.1", "3.0"))), "same_circuit")
    assert found.answer == "not established"
    assert "surely not in the other: 2.1, 3.0" in found.text


def test_what_was_not_asked_of_the_circuits_is_said():
    off = evidence(switched_off=frozenset(["completeness", "minimality"]))
    assert said(off, "same_circuit").text == "Yes: the same circuit is at work (completeness and minimality not asked)."


@pytest.mark.parametrize("claim", ["beats_base", "beats_own"])
def test_the_bases_circuit_does_better_in_the_variant_by_a_paired_interval(claim):
    field = {"beats_base": "over_base", "beats_own": "over_own"}[claim]
    for value, answer in ((0.1, "yes"), (0.01, "not established"), (-0.1, "no")):
        data = evidence(transfers=[replace(TRANSFER, **{field: near(value)})])
        assert said(data, claim).answer == answer
    assert said(evidence(transfers=[replace(TRANSFER, by="kind")]), claim).answer == "not established"
    assert said(evidence(transfers=[]), claim).answer == "not established"


def test_of_two_circuits_that_do_little_neither_is_said_to_do_better():
    for faithful, answer in ((near(0.83), "yes"), (near(0.8), "not established"), (near(0.2), "not established")):
        found = said(evidence(transfers=[replace(TRANSFER, faithful=faithful)]), "beats_own")
        assert found.answer == answer
    assert "base's circuit in tuned has a normalised faithfulness (accuracy) of 0.20 [0.18, 0.22]" in found.text


def test_a_no_says_what_is_not_so():
    worse = [replace(TRANSFER, over_base=near(-0.6), over_own=near(-0.1), extras_add=near(-0.1))]
    for claim, start in {
        "beats_base": "No: base's circuit alone does no better in tuned",
        "beats_own": "No: base's circuit does no better in tuned",
        "further_heads": "No: the further heads of tuned's own circuit add nothing to base's",
    }.items():
        assert said(evidence(transfers=worse), claim).text.startswith(start)
    assert (
        "less that of the whole of base is -0.60 [-0.62, -0.58]" in said(evidence(transfers=worse), "beats_base").text
    )
    lost = evidence(functions=[replace(FETCHER, difference=near(-0.2))])
    assert said(lost, "same_function").text.startswith("No: fetcher (object) does not have the same function")


def test_the_papers_finding_stands_with_its_control():
    expected = (
        "Yes: base's circuit alone does better in tuned than the whole of base (by 0.20 [0.18, 0.22]; tuned's circuit "
        "in base: -0.10 [-0.12, -0.08])."
    )
    assert said(evidence(), "beats_base").text == expected


def test_further_heads_add_something_or_surely_next_to_nothing():
    for value, answer in ((near(0.1), "yes"), (near(0.02, 0.04), "not established"), (near(0.0), "no")):
        data = evidence(transfers=[replace(TRANSFER, extras_add=value)])
        assert said(data, "further_heads").answer == answer
    none = said(evidence(transfers=[replace(TRANSFER, extras_add=None, extras_alone=None)]), "further_heads")
    assert none.answer == "not established"
    assert "tuned's circuit has no heads beyond base's" in none.text


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"difference": near(-0.04)}, "not established"),
        ({"difference": near(-0.2)}, "no"),
        ({"difference": near(0.2)}, "not established"),  # the base's mask does better than the variant's own
        ({"above_floor": near(0.01)}, "no"),  # surely less than 0.05: the function is lost
        ({"above_floor": near(0.04, 0.05)}, "not established"),
        ({"above_floor": near(0.1)}, "not established"),  # works, but a difference of 0.05 is more than half of it
        ({"above_floor": None}, "not established"),
        ({"trained": False}, "not established"),
        ({"above_floor": near(0.01), "trained": False}, "no"),  # where nothing is above it no floor is trained
    ],
)
def test_the_same_function_needs_masks_that_carry_over_and_beat_the_floor(change, answer):
    assert said(evidence(functions=[replace(FETCHER, **change)]), "same_function").answer == answer


def test_without_a_function_that_is_carried_nothing_is_said_of_functions():
    found = said(evidence(functions=[]), "same_function")
    assert found.answer == "not established"
    assert found.reasons == ("no group of the base carries a function that was asked for",)


def test_the_sentence_on_functions_names_the_groups_that_were_tested_and_those_without_a_known_function():
    assert said(evidence(), "same_function").text == "Yes: fetcher (object) has the same function."
    both = [FETCHER, replace(FETCHER, group="reader", desideratum="label")]
    found = said(evidence(functions=both, unknown=["writer"]), "same_function")
    expected = "Yes: fetcher (object) and reader (label) have the same function (of writer no function is known)."
    assert found.text == expected


@pytest.mark.parametrize(
    ("difference", "answer"),
    [
        (near(0.1), "yes"),
        (near(0.06), "not established"),  # theirs may be as accurate but for the margin of 0.05
        (near(-0.1), "no"),
        (Noted(None, None, None, "some prompt or counterfactual has no label"), "not established"),
    ],
)
def test_a_second_circuit_of_other_heads_is_surely_worse_or_surely_better_or_open(difference, answer):
    rows = [RivalEvidence("base", near(0.5)), RivalEvidence("tuned", difference)]
    found = said(evidence(rivals=rows), "beats_rival")
    assert found.answer == answer
    if answer == "no":
        assert "does surely no more than as many other heads" in found.text
    if difference.value is None:
        assert "some prompt or counterfactual has no label" in found.text


@pytest.mark.parametrize(("jaccard", "answer"), [(0.8, "yes"), (0.79, "not established"), (0.1, "not established")])
def test_a_choice_is_called_stable_from_the_threshold_on_and_never_surely_unstable(jaccard, answer):
    rows = [StabilityEvidence("base", "fetcher", near(0.95)), StabilityEvidence("tuned", "mover", near(jaccard))]
    found = said(evidence(stability=rows), "stable_choice")
    assert found.answer == answer
    assert said(evidence(stability=rows), "stable_choice", stable=0.1).answer == "yes"
    assert answer == "yes" or f"tuned, mover's heads are those of resampled scenarios by {jaccard:.2f}" in found.text


def test_what_was_not_measured_of_circuits_is_open():
    for claim, nothing in (("beats_rival", {"rivals": ()}), ("stable_choice", {"stability": ()})):
        assert said(evidence(**nothing), claim).answer == "not established"


def test_a_claim_on_both_circuits_is_open_where_one_of_them_is_not_known():
    for claim, some in (
        ("beats_rival", {"rivals": [RivalEvidence("base", near(0.4))]}),
        ("stable_choice", {"stability": [StabilityEvidence("base", "fetcher", near(0.9))]}),
    ):
        found = said(evidence(**some), claim)
        assert found.answer == "not established"
        assert found.reasons[0].startswith("tuned: ")
