"""An automatic plan: where it looks next, when it stops, and whether it finds what was planted."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import yaml

from circuitdiff import mean_activations
from circuitdiff.circuit import Circuit, Head
from circuitdiff.errors import InputError
from circuitdiff.evaluation import evaluate_circuits
from circuitdiff.evaluation.roles import roles_everywhere
from circuitdiff.methods.attention import AttentionToRoles
from circuitdiff.methods.auto_plan import (
    AutoPlan,
    Search,
    attended_roles,
    find_circuit,
    roles_before,
    share_reached,
    windows_of,
)
from circuitdiff.methods.discovery import Plan, Stage, discover, gaps, stage_result
from circuitdiff.models import load_model
from circuitdiff.planted import build_planted
from circuitdiff.stats.selection import Discoveries, TopK
from circuitdiff.study.registry import parse_study
from circuitdiff.study.settings import plan_file
from circuitdiff.tasks import entity_tracking
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import subject
from methods.test_discovery import effects, scripted

ONCE = Discoveries(replicated=False)


def found(stage: Stage, table: dict[str, float]):
    return stage_result(stage, None if stage.via is None else (Head(3, 1),), effects(table))


def searching(table: dict[str, float], **rule):
    search = Search(AutoPlan(select=ONCE, **rule), {"last": 1.0, "query_label": 4.0})
    [first] = search.look_into(None, ())
    search.add([found(first, table)])
    return search


def groups(search: Search) -> dict[str, list[str]]:
    return {name: list(map(str, group.heads)) for name, group in search.circuit.groups.items()}


def test_it_begins_at_the_logits_and_looks_into_queries_here_and_keys_and_values_where_heads_attend():
    search = searching({"3.1": -2.0})
    [first] = search.plan.stages
    assert (first.name, first.at, first.via, first.receivers_from) == ("last_to_logits", "last", None, None)
    receivers = search.receivers()
    assert receivers is not None
    stages = search.look_into(receivers, ("query_label", "last"))
    assert [(s.name, s.at, s.via, s.receivers_from, s.receivers_at) for s in stages] == [
        ("last_to_q_of_last", "last", "q", "last_to_logits", None),
        ("query_label_to_k_of_last", "query_label", "k", "last_to_logits", "last"),
        ("query_label_to_v_of_last", "query_label", "v", "last_to_logits", "last"),
        ("last_to_k_of_last", "last", "k", "last_to_logits", "last"),
        ("last_to_v_of_last", "last", "v", "last_to_logits", "last"),
    ]
    assert search.receivers() is None, "these have been looked into"


def test_without_a_head_the_first_stage_is_the_plan_and_nothing_is_left_to_look_into():
    search = searching({})
    assert [stage.name for stage in search.plan.stages] == ["last_to_logits"]
    assert search.receivers() is None
    assert gaps(search.plan, search.results) == [
        "no heads at stage last_to_logits; use more prompts or a rule that is less strict"
    ]


def test_a_group_near_the_end_comes_before_a_stronger_one_that_costs_more():
    search = searching({"3.1": -2.0})
    near, far, *_ = search.look_into(search.receivers(), ("query_label",))
    for_its_cost = [found(near, {"1.0": -0.5}), found(far, {"2.0": -1.9})]
    search.add(for_its_cost)
    assert search.receivers() == for_its_cost[0]


def test_from_a_role_to_the_end_a_window_has_these_tokens():
    pairs = fake_pairs()
    expected = {
        role: sum(int(pairs.positions["last"][i]) - int(at[i]) + 1 for i in range(len(pairs))) / len(pairs)
        for role, at in pairs.positions.items()
    }
    assert windows_of(pairs) == pytest.approx(expected)
    assert expected["last"] == 1


def test_the_group_of_the_largest_effect_comes_next_and_no_two_stages_have_one_name():
    search = searching({"3.1": -2.0})
    weak, strong, *_ = search.look_into(search.receivers(), ("query_label",))
    search.add([found(weak, {"1.0": -0.5, "3.1": -9.0}), found(strong, {"2.0": -1.9, "2.1": -0.8})])  # 3.1 is known
    second = search.receivers()
    assert second is not None
    assert second.stage == strong
    search.look_into(second, ())
    third = search.receivers()
    assert third is not None
    assert third.stage == weak
    assert search.look_into(third, ())[0].name == "last_to_q_of_last_2"


def test_heads_that_were_found_before_at_their_role_are_no_group_and_at_another_role_they_are():
    search = searching({"3.1": -2.0, "2.0": -1.0})
    same, other, *_ = search.look_into(search.receivers(), ("query_label",))
    search.add([found(same, {"2.0": -0.9}), found(other, {"2.0": -0.9})])
    assert groups(search) == {"last_to_logits": ["3.1", "2.0"], other.name: ["2.0"]}
    assert search.empty == [same]
    assert [stage.name for stage in search.plan.stages] == ["last_to_logits", same.name, other.name]


def test_of_more_groups_than_there_is_room_for_the_strongest_stay_and_the_others_are_still_tested():
    search = searching({"3.1": -2.0}, most_groups=2)
    weak, strong, *_ = search.look_into(search.receivers(), ("query_label",))
    search.add([found(weak, {"1.0": -0.5}), found(strong, {"2.0": -0.9})])
    assert groups(search) == {"last_to_logits": ["3.1"], strong.name: ["2.0"]}
    assert [(stage.name, stage.in_circuit) for stage in search.plan.stages] == [
        ("last_to_logits", True),
        (weak.name, False),
        (strong.name, True),
    ]
    assert search.receivers() is None


def test_a_role_that_comes_later_in_some_prompt_or_split_cannot_be_read():
    pairs = fake_pairs()
    later = {role: at.clone() for role, at in pairs.positions.items()}
    later["previous_query_label"][0] = pairs.positions["query_label"][0] + 1
    other = replace(pairs, clean_prompts=replace(pairs.clean_prompts, positions=later))
    roles = ["previous_query_label", "query_label"]
    assert roles_before("query_label", [*roles, "last"], [pairs]) == roles
    assert roles_before("query_label", [*roles, "last"], [pairs, other]) == ["query_label"]


def test_how_far_the_search_came_is_the_circuits_place_between_no_head_and_all():
    some = evaluate_circuits(subject("llama").model, [Circuit({})], fake_pairs(), "zero")[0]
    nothing = some.logit_differences
    circuit, everything = (replace(some, logit_differences=nothing + more) for more in (1.0, 4.0))
    assert share_reached([some, circuit, everything]) == pytest.approx(0.25)


def test_how_far_the_search_came_is_undefined_where_all_heads_may_do_no_more_than_none():
    pairs = fake_pairs()
    answers = evaluate_circuits(subject("llama").model, [Circuit({})], pairs, "zero")[0]
    assert math.isnan(share_reached([answers, answers, answers]))


def test_roles_are_looked_at_where_some_head_attends_and_not_where_none_does():
    shares = torch.tensor([[[0.5, 0.01, torch.nan, 0.4]], [[0.0, 0.04, torch.nan, 0.6]]])
    attention = AttentionToRoles((Head(1, 0), Head(2, 0)), ("a", "b", "c"), shares, shares, torch.tensor([0]))
    assert attended_roles(attention, 0.05) == ("a",)
    assert attended_roles(attention, 0.03) == ("a", "b")


def test_roles_that_are_always_at_one_token_count_once_and_those_of_a_segment_or_missing_ones_not():
    pairs = fake_pairs()
    for positions in (pairs.positions, pairs.counterfactual_positions):
        positions["again"] = positions["query_label"].clone()
        positions["segment.1"] = positions["last"] - 1
        positions["seldom"] = torch.full_like(positions["last"], -1)
        positions["end"] = positions.pop("last")
        positions["last"] = positions["end"].clone()
    pairs.positions["apart"] = pairs.positions["query_label"].clone()
    pairs.counterfactual_positions["apart"] = pairs.counterfactual_positions["query_label"] + 1
    roles = roles_everywhere(pairs)
    assert {"query_label", "last", "apart"} <= set(roles)
    assert not {"again", "segment.1", "seldom", "end"} & set(roles)


def test_a_plan_that_adjusts_over_receivers_tests_their_stages_as_one_family():
    """A p of 0.0004 in 1 stage of 2 that are tested together is that of one in twice as many."""
    first = Stage("first", "last", ONCE)
    q = Stage("q", "last", ONCE, via="q", receivers_from="first")
    k = Stage("k", "query_label", ONCE, via="k", receivers_from="first", receivers_at="last")
    tables = {"first": {"3.1": -4.0}, "q": {"2.0": -1.0}, "k": {}}
    alone, together = (
        discover(Plan((first, q, k), adjusted_over=over), scripted(tables)) for over in ("stage", "receivers")
    )
    own = [float(results[1].selection.adjusted_p[2, 0]) for results in (alone, together)]
    assert own[1] == pytest.approx(2 * own[0])
    assert [len(result.beside) for result in together] == [0, 1, 1]


def test_a_family_needs_a_rule_that_adjusts():
    stages = (Stage("a", "last", TopK(1)), Stage("b", "last", TopK(1)))
    with pytest.raises(InputError, match="stages a, b are one family of tests"):
        Plan(stages, adjusted_over="receivers").check()
    Plan(stages).check()


def test_it_writes_an_ordinary_plan():
    search = searching({"3.1": -2.0})
    search.add([found(search.look_into(search.receivers(), ("query_label",))[1], {"1.0": -0.5})])
    study = {"name": "s", "base": "planted-base", "task": "entity-tracking"} | yaml.safe_load(
        plan_file("mine", search.plan)
    )
    assert parse_study(study, "here").plans == {"mine": search.plan}


@pytest.fixture(scope="module")
def planted():
    model, task = load_model("planted-base"), entity_tracking()
    splits = {name: task.sample(model.tokenizer, 48, 0, name) for name in ("discovery", "replication", "mask")}
    means = mean_activations(model, splits["mask"], by="kind")
    return find_circuit(model, splits, means)


def test_it_finds_a_planted_circuit_whose_roles_nobody_named(planted):
    there, here = (
        {(group.at, head) for group in circuit.groups.values() for head in group.heads}
        for circuit in (build_planted("planted-base").circuit, planted.circuit)
    )
    assert here <= there
    assert len(here) >= 0.9 * len(there)
    assert planted.reached > 0.7
    assert len(planted.plan.stages) == len(planted.stages) > len(planted.circuit.groups)
