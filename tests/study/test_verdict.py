"""What may be said of made-up numbers: what happened to the behaviour, what is not asked, and how sure it all is."""

from __future__ import annotations

from typing import Any

import pytest

from circuitdiff.study.evidence import Measured, Thresholds, TransferEvidence
from circuitdiff.study.verdict import TRIED, sentences
from helpers.invented_evidence import TRANSFER, WELL, ability, behaviour, divided, evidence, part, said

TABLES = {
    "behaviour": "accuracy",
    "same_circuit": "circuits",
    "stable_choice": "circuits",
    "beats_rival": "circuits",
    "beats_base": "circuits",
    "beats_own": "circuits",
    "further_heads": "circuits",
    "same_function": "functions",
    "improved_part": "graft",
    "cause_layers": "layers",
    "visible_part": "cross_model",
}
ON_GAINS = ("improved_part", "cause_layers", "visible_part")


def test_everything_is_established_when_every_condition_is_met():
    found = {each.claim: each for each in sentences(WELL, Thresholds())}
    assert {claim: each.rests_on for claim, each in found.items()} == TABLES
    assert {claim: each.answer for claim, each in found.items()} == dict.fromkeys(TABLES, "yes") | {
        "behaviour": "better"
    }
    assert all(each.reasons == () and each.scope == WELL.scope for each in found.values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"failed_checks": ["window = full"]}, "self-checks failed: window = full"),
        ({"failed_checks": None}, "self-checks were not run"),
        ({"n_scenarios": 49}, "only 49 held-out scenarios, of at least 50"),
    ],
)
def test_nothing_is_said_unless_checks_pass_and_scenarios_suffice(change, reason):
    for claim in TABLES:
        found = said(evidence(**change), claim)
        assert found.answer == "not established"
        assert any(reason in each for each in found.reasons)


NO_LONGER = {"variant": ability(0.2, -0.5)}


@pytest.mark.parametrize(
    ("numbers", "answer"),
    [
        (behaviour(0.3), "better"),
        (behaviour(-0.3), "worse"),
        (behaviour(-0.3, **NO_LONGER), "lost"),
        (behaviour(0.0), "kept"),
        (behaviour(0.0, spread=0.06), "not established"),
        (behaviour(0.04), "better"),  # surely above 0, though within the margin
        (behaviour(0.0, base=ability(0.11, 1.0)), "not established"),  # with a margin of 0.05 there is nothing to lose
        (behaviour(0.3, base=ability(0.2, -0.5)), "better"),
        (behaviour(0.0, base=ability(0.2, -0.5), variant=ability(0.2, -0.5)), "not established"),
        (behaviour(0.0, -2.0, **NO_LONGER), "lost"),  # by the logit difference
    ],
)
def test_what_happened_to_the_behaviour(numbers, answer):
    found = said(evidence(behaviour=numbers), "behaviour")
    assert found.answer == answer
    assert "tuned less base, accuracy" in found.text
    assert "logit difference" in found.text


def test_why_a_behaviour_is_not_called_kept():
    few = said(evidence(behaviour=behaviour(0.0, base=ability(0.11, 1.0))), "behaviour")
    assert "an accuracy of 0.11 [0.09, 0.13] leaves too little to lose for a margin of 0.05" in few.text
    neither = behaviour(0.0, base=ability(0.2, -0.5), variant=ability(0.2, -0.5))
    assert "base does not do the task: accuracy 0.20" in said(evidence(behaviour=neither), "behaviour").text


def test_a_variant_with_equal_accuracy_gets_its_answers_on_circuit_and_function():
    kept = evidence(behaviour=behaviour(0.0))
    for claim in ("same_circuit", "same_function", "beats_own", "further_heads"):
        assert said(kept, claim).answer == "yes"
    for claim in ON_GAINS:
        found = said(kept, claim)
        assert (found.answer, found.reasons) == ("not asked", ())
        assert "there is no gain to attribute (tuned less base, accuracy 0.00 [-0.02, 0.02]" in found.text


def test_a_variant_whose_own_circuit_was_not_looked_for_is_asked_of_the_bases_alone():
    transfer = TransferEvidence("slot", TRANSFER.over_base, TRANSFER.faithful)
    rest = {"rivals": WELL.rivals[:1], "stability": WELL.stability[:1], "circuits": (), "transfers": [transfer]}
    found = evidence(searched=["base"], **rest)
    for claim in ("same_circuit", "beats_own", "further_heads"):
        assert said(found, claim).answer == "not asked"
        assert said(found, claim).text.endswith("(tuned's own circuit was not looked for).")
    for claim in ("stable_choice", "beats_rival", "beats_base", "same_function"):
        assert said(found, claim).answer == "yes"
    assert said(found, "beats_base").text.endswith("(by 0.20 [0.18, 0.22]).")
    both = evidence(**rest)  # looked for, and none was found
    assert said(both, "stable_choice").answer == "not established"
    assert said(both, "beats_rival").answer == "not established"


def test_without_a_sure_gain_that_is_not_surely_none_its_parts_stay_open():
    unsure = evidence(behaviour=behaviour(0.01, spread=0.05))
    for claim in ON_GAINS:
        found = said(unsure, claim)
        assert found.answer == "not established"
        assert (
            "tuned over base, on all 80 evaluation scenarios, is 0.01 [-0.04, 0.06], to be surely above 0" in found.text
        )


@pytest.mark.parametrize("which", ["base", "variant"])
def test_what_a_model_does_not_do_has_no_circuit_and_no_functions(which):
    unable = evidence(behaviour=behaviour(**{which: ability(0.2, 0.01)}))  # neither surely above guessing, nor above 0
    for claim in ("same_circuit", "same_function", "beats_base", "beats_own", "further_heads"):
        found = said(unable, claim)
        assert found.answer == "not established"
        assert "does not do the task: accuracy 0.20 [0.18, 0.22] where guessing gives 0.20" in found.reasons[0]


@pytest.mark.parametrize(
    ("numbers", "able"),
    [((0.23, -1.0), True), ((0.21, -1.0), False), ((0.01, 0.03), True), ((0.01, 0.01), False)],
)
def test_a_model_does_the_task_by_its_hits_or_by_its_logits(numbers, able):
    assert ability(*numbers).does_it is able


def test_of_a_variant_that_is_surely_worse_it_is_said_what_it_lacks():
    worse = evidence(behaviour=behaviour(-0.3), donor="base")
    assert said(worse, "improved_part").text.startswith(
        "Yes: fetcher is what tuned lacks (sufficient, necessary, sole:"
    )
    assert said(worse, "visible_part").text.startswith("Yes: what tuned lacks is visible at fetcher")
    assert said(worse, "cause_layers").answer == "yes"
    unsure = evidence(behaviour=behaviour(-0.01, spread=0.05), donor="base")
    assert (
        "the gain in accuracy of base over tuned, on all 80 evaluation scenarios, is 0.01 [-0.04, 0.06]"
        in said(unsure, "improved_part").text
    )


@pytest.mark.parametrize(
    ("section", "claims"),
    [
        ("overlap", ["same_circuit"]),
        ("functions", ["same_function"]),
        ("graft", ["improved_part", "cause_layers"]),
        ("graft.layers", ["cause_layers"]),
        ("cross_model", ["visible_part"]),
    ],
)
def test_a_section_that_was_switched_off_is_named_without_placeholders(section, claims):
    off: Any = {"graft": None, "layers": None, "patched": None, "functions": ()}
    data = evidence(switched_off=frozenset([section]), **off)
    for claim in claims:
        found = said(data, claim)
        assert found.answer == "not asked"
        assert found.text.endswith(f"(`{section}` is switched off).")
        assert "one part" not in found.text


def test_a_section_with_too_few_scenarios_of_its_own_establishes_nothing_and_states_its_own_prompts():
    own = Measured("accuracy on 10 prompts", 10)
    data = evidence(measured={"graft": own, "layers": own, "cross_model": own._replace(n_scenarios=50)})
    for claim in ("improved_part", "cause_layers"):
        assert said(data, claim).answer == "not established"
        assert "only 10 held-out scenarios" in said(data, claim).text
        assert said(data, claim).scope.endswith("; accuracy on 10 prompts")
    assert said(data, "visible_part").answer == said(data, "same_circuit").answer == "yes"
    assert said(data, "same_circuit").scope == WELL.scope


def test_an_answer_says_for_which_thresholds_it_is_the_same():
    [accuracy] = said(evidence(behaviour=behaviour(0.0)), "behaviour").sensitivity
    assert (accuracy.threshold, accuracy.low, accuracy.high) == ("accuracy", 0.02, 0.2)  # 0.25 is half of what there is
    share, nothing = said(evidence(), "improved_part").sensitivity
    assert (share.threshold, share.low, share.high) == ("share", 0.25, 0.75)  # at 0.2 random heads may bring as much
    assert nothing.threshold == "nothing"
    # one part is far from nothing, two lie within 0.1 and 0.15 of it
    assert (nothing.low, nothing.high) == (0.2, 0.75)


def test_an_answer_that_rests_on_a_circuits_faithfulness_says_for_which_it_is_the_same():
    [faithful] = said(evidence(), "beats_own").sensitivity
    assert (faithful.threshold, faithful.low, faithful.high) == ("faithful", TRIED[0], 0.9)  # 0.93 at least


def test_thresholds_are_settings():
    assert "perhaps sufficient" in said(evidence(), "improved_part", share=0.95).text
    assert said(evidence(), "behaviour", scenarios=100).answer == "not established"


def test_long_reasons_are_cut_in_the_text_but_not_in_the_list():
    found = said(evidence(circuits=()), "same_circuit")
    assert found.text.endswith("because base and variant have no two circuits that could be compared.")
    many = [part(0.15), part(0.2), part(0.18)]
    found = said(evidence(graft=divided(dict(zip("abc", many, strict=True)))), "improved_part")
    assert len(found.reasons) == 3
    assert found.text.endswith("; and 1 more.")
