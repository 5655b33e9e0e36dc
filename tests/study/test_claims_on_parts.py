"""What may be said of the parts of a gain, from made-up shares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from circuitdiff.study.claims_on_parts import PartVerdict, judged_parts
from circuitdiff.study.evidence import PartsEvidence, Thresholds
from circuitdiff.study.gains import ControlResult, Credit, RandomGroups
from helpers.invented_evidence import GRAFT, PARTS, control, credit, divided, evidence, part, said

SHARED = "other heads that read the same keys and values"
NO_SHARE = ControlResult(0.1, 0.0, 0.2, None, None, None, "far", 80)


def judged(found: PartsEvidence, **limits: Any) -> dict[str, PartVerdict]:
    return {each.part: each for each in judged_parts(found, Thresholds(**limits))}


def manners(verdict: PartVerdict) -> tuple[str, str, str, str]:
    return verdict.sufficient, verdict.necessary, verdict.sole, verdict.improved


def with_parts(controls: Any = GRAFT.controls, **parts: Any) -> PartsEvidence:
    return divided(PARTS | parts, controls=controls)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (GRAFT, ("yes", "yes", "yes", "yes")),
        (with_parts(fetcher=part(0.9, left_out=0.1)), ("yes", "no", "yes", "yes")),
        (with_parts(fetcher=part(0.1, left_out=0.9)), ("no", "yes", "no", "yes")),
        (with_parts(fetcher=part(0.55)), ("not established", "not established", "not established", "yes")),
        (with_parts(fetcher=part(0.3)), ("no", "no", "no", "not established")),  # a part of the gain
        (with_parts(fetcher=part(0.0)), ("no", "no", "no", "no")),
        (with_parts(reader=part(0.45)), ("yes", "yes", "no", "yes")),
        (with_parts(reader=part(0.9)), ("yes", "yes", "no", "yes")),
        (with_parts(mlps=part(0.0, left_out=0.9)), ("yes", "yes", "no", "yes")),
    ],
)
def test_a_part_is_sufficient_necessary_and_sole_or_not(found, expected):
    assert manners(judged(found)["fetcher"]) == expected


def test_two_true_causes_are_both_named_and_neither_is_refuted():
    """The shares of the review: gains with a common ceiling, sharper fetchers and clearer addresses together."""
    parts = {
        "position_transmitter": {"alone": credit(0.83, 0.14), "left_out": credit(0.28, 0.16)},
        "value_fetcher": {"alone": credit(0.72, 0.15), "left_out": credit(0.17, 0.15)},
        "mlps": part(0.0, spread=0.05),
    }
    found = divided(parts)
    verdicts = judged(found)
    for name in ("position_transmitter", "value_fetcher"):
        sufficient, necessary, sole, improved = manners(verdicts[name])
        assert (sufficient, sole, improved) == ("yes", "no", "yes")
        assert necessary in ("no", "not established")
    text = said(evidence(graft=found), "improved_part").text
    assert text.startswith("Yes: position_transmitter improved (sufficient, not necessary, not sole:")
    assert "value_fetcher improved (sufficient, not necessary, not sole:" in text
    assert text.endswith("; surely not mlps.")


def test_two_causes_that_each_bring_half_improved_whether_or_not_either_suffices():
    """As two planted causes do: in accuracy, which saturates, each suffices; in logits each is half of the gain."""
    accuracy = {"a": part(0.92, left_out=0.17), "b": part(0.83, left_out=0.08), "mlps": part(0.0)}
    logits = {"a": part(0.5, spread=0.02), "b": part(0.51, spread=0.02), "mlps": part(0.0, spread=0.02)}
    verdicts = judged(divided(accuracy, logits))
    for name in ("a", "b"):
        assert manners(verdicts[name]) == ("not established", "not established", "no", "yes")
    assert manners(verdicts["mlps"]) == ("no", "no", "no", "no")


def test_both_scores_are_judged_and_shown():
    logits = PARTS | {"fetcher": part(0.3)}
    assert manners(judged(divided(PARTS, logits))["fetcher"])[:2] == ("not established", "not established")
    assert manners(judged(divided(logits, PARTS))["fetcher"])[:2] == ("not established", "not established")
    numbers = "alone it brings 0.90 [0.80, 1.00] of the gain in accuracy and 0.90 [0.80, 1.00] in logit difference"
    assert numbers in said(evidence(), "improved_part").text


def test_a_yes_of_one_part_among_many_is_held_to_more():
    barely = {"first": part(0.5 + 0.101), **{f"other {i}": part(0.3) for i in range(9)}}
    assert judged(divided({"first": barely["first"]}))["first"].sufficient == "not established"  # two ways to ask
    assert judged(divided({"first": part(0.62)}))["first"].sufficient == "yes"
    assert judged(divided(barely | {"first": part(0.62)}))["first"].sufficient == "not established"
    assert judged(divided(barely | {"first": part(0.7)}))["first"].sufficient == "yes"


@pytest.mark.parametrize(
    ("controls", "more", "reason"),
    [
        ({}, {}, "no random groups in the stead of fetcher were grafted"),
        ({"fetcher": {"same_layers": control(0.7)}}, {}, "the control random heads of the same layers brings 0.70"),
        ({"fetcher": {"same_layers": control(0.45)}}, {}, "the control random heads of the same layers"),
        ({"fetcher": {"same_layers": NO_SHARE}}, {}, "no share (far)"),
        (
            {"fetcher": {"same_layers": control(0.1, n_scenarios=37)}},
            {},
            "held against fetcher on only 37 scenarios of",
        ),
        (GRAFT.controls, {"also_touched": {"fetcher": 1}}, f"1 {SHARED} were not grafted without fetcher"),
        ({"fetcher": {"same_layers": control(0.1), "shared_kv": control(0.9)}}, {}, f"the control {SHARED} brings"),
    ],
)
def test_a_part_is_the_sole_one_only_if_its_controls_bring_less(controls, more, reason):
    found = judged(replace(with_parts(controls), **more))["fetcher"]
    assert (found.sufficient, found.sole) == ("yes", "not established")
    assert any(reason in each for each in found.reasons)


def test_a_part_with_the_same_weights_did_not_improve_and_takes_no_share_of_the_error():
    barely = {"first": part(0.6), "second": part(0.0), "mlps": part(0.0)}
    same = judged(divided(barely, unchanged=("second", "mlps")))
    assert manners(same["mlps"]) == ("no", "no", "no", "no")
    assert same["mlps"].numbers == "its weights are the same in both models"
    found = divided(barely | {"first": part(0.615)}, unchanged=("second", "mlps"))
    assert judged(found)["first"].sufficient == "yes"
    assert judged(replace(found, unchanged=()))["first"].sufficient == "not established"  # of six questions, not two


def test_where_there_is_no_gain_to_share_out_it_is_said_once():
    none = Credit(0.0, -0.1, 0.1, None, None, None, "the gain is 0.14 [-0.0015, 0.29]: its interval covers 0")
    parts = {name: dict.fromkeys(("alone", "left_out", "in_order"), none) for name in ("fetcher", "reader")}
    data = evidence(graft=divided(parts, PARTS), patched=divided(parts, PARTS))
    for claim in ("improved_part", "visible_part"):
        found = said(data, claim)
        assert (found.answer, len(found.reasons)) == ("not established", 1)
        assert found.text.count("the gain is 0.14 [-0.0015, 0.29]") == 1
        assert "in accuracy, on the prompts of this section" in found.text


def test_few_random_groups_have_no_rank_and_leave_it_open():
    for n, sole in ((99, "not established"), (100, "yes")):
        drawn = random_groups(n)
        found = judged(with_parts({"fetcher": {"same_layers": drawn}}))["fetcher"]
        assert (found.sufficient, found.sole) == ("yes", sole)
    few = judged(with_parts({"fetcher": {"same_layers": random_groups(99)}}))["fetcher"]
    assert few.reasons == ("only 99 random groups of at least 100 were grafted",)


def random_groups(n: int) -> RandomGroups:
    drawn: Any = {"n": n, "bounds_are": "95 % of the groups", "n_far": 0, "n_prompts": 80, "rank_p": None}
    return RandomGroups(**vars(control(0.1)), **drawn, group=0.9, accuracies=(0.1,) * n, nothing=0.05)


def test_keys_and_values_that_others_share_must_bring_nothing_with_the_others():
    controls: Any = {"fetcher": {"same_layers": control(0.1), "shared_kv": control(0.1)}}
    assert judged(replace(with_parts(controls), also_touched={"fetcher": 1}))["fetcher"].sole == "yes"


@pytest.mark.parametrize("kind", ["mlps", "unembedding"])
def test_a_gain_outside_heads_needs_no_random_heads_beside_it(kind):
    parts = {"reader": part(0.0), "fetcher": part(0.1), kind: part(0.9)}
    assert manners(judged(divided(parts))[kind]) == ("yes", "yes", "yes", "yes")


def test_where_no_other_weights_differ_it_is_no_finding():
    layers = divided(
        {"layers 0 to 16": part(1.0), "layers 17 to 29": part(0.0, spread=0.0)}, unchanged=["layers 17 to 29"]
    )
    text = said(evidence(layers=layers), "cause_layers").text
    assert text.endswith("by construction, since no other weights differ: this is no finding.")
    assert "by construction" not in said(evidence(), "cause_layers").text


def test_no_part_improved_only_where_all_are_surely_near_nothing():
    nothing = divided({"reader": part(0.0), "fetcher": part(0.05)})
    assert said(evidence(graft=nothing), "improved_part").answer == "no"
    some = divided({"reader": part(0.0), "fetcher": part(0.3)})
    found = said(evidence(graft=some), "improved_part")
    assert found.answer == "not established"
    assert found.reasons[0].startswith("fetcher: alone it brings 0.30 [0.20, 0.40] of the gain in accuracy")


def test_patched_activations_alone_do_not_locate_the_cause():
    text = said(evidence(graft=None), "visible_part").text
    assert text.startswith("Yes: the gain is visible at fetcher (fetcher: 0.90 [0.80, 1.00] of the gain in accuracy")
    assert text.endswith("; its cause was not located.")
    spread = divided({"reader": part(0.4), "fetcher": part(0.45)})
    assert said(evidence(patched=spread), "visible_part").answer == "not established"
    assert said(evidence(patched=divided({"reader": part(0.1), "fetcher": part(0.2)})), "visible_part").answer == "no"
    assert said(evidence(patched=None), "visible_part").answer == "not established"


def test_a_gain_may_be_visible_at_several_parts():
    several = divided({"reader": part(0.1), "fetcher": part(0.9), "transmitter": part(0.8)})
    assert "is visible at fetcher and transmitter (" in said(evidence(patched=several), "visible_part").text


def test_a_share_that_is_undefined_establishes_nothing_and_hands_on_why():
    far = Credit(0.1, 0.08, 0.12, None, None, None, "far from clean")
    found = said(evidence(patched=divided({"fetcher": {"alone": far, "left_out": far}})), "visible_part")
    assert found.answer == "not established"
    assert "far from clean" in found.text
