"""Plans: what feeds what, and which stage keeps a head."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.circuit import Head
from circuitdiff.errors import InputError
from circuitdiff.methods.discovery import Plan, Stage, circuit_of, discover, gaps, measure_with
from circuitdiff.methods.path_patching import PathEffects, path_effects
from circuitdiff.stats.selection import Discoveries, TopK
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import N_HEADS, N_LAYERS, subject

FIRST = Stage("first", "last", TopK(3), n_receivers=2)
SECOND = Stage("second", "last", TopK(2), via="q", receivers_from="first")
THIRD = Stage("third", "query_label", TopK(2), via="v", receivers_from="second", receivers_at="last")
ROLES = ("last", "query_label")


def effects(table: dict[str, float], noise_floor: float = 1e-6) -> PathEffects:
    """Six prompts on which each named head has about its mean effect; the others have none."""
    per_prompt = torch.zeros(N_LAYERS, N_HEADS, 6, dtype=torch.float64)
    for name, value in table.items():
        head = Head.parse(name)
        per_prompt[head.layer, head.index] = value + 0.01 * abs(value) * torch.tensor([-1, 1, -1, 1, -1, 1])
    return PathEffects(per_prompt, None, noise_floor, torch.arange(6), "logit_difference")


def scripted(tables: dict[str, dict[str, float]], asked: list | None = None):
    def measure(stage, receivers, split, senders):
        if asked is not None:
            asked.append((stage.name, [str(h) for h in receivers or ()], split))
        return effects(tables[stage.name])

    return measure


TABLES = {
    "first": {"3.1": -4.0, "2.0": -3.0, "1.5": -2.0, "0.0": -1.0, "3.3": 2.5},
    "second": {"2.0": -1.0, "0.2": -0.5, "0.3": -0.4},
    "third": {"0.2": -0.3, "0.4": -0.2},
}


def test_each_stage_patches_into_the_strongest_heads_of_the_stage_it_names():
    asked: list = []
    results = discover(Plan((FIRST, SECOND, THIRD)), scripted(TABLES, asked))
    assert asked == [
        ("first", [], "discovery"),
        ("second", ["3.1", "2.0"], "discovery"),  # two receivers, though three heads were chosen
        ("third", ["2.0", "0.2"], "discovery"),
    ]
    assert [str(head) for head in results[0].selection.helping] == ["3.1", "2.0", "1.5"]
    assert [str(head) for head in results[0].selection.hurting] == ["3.3"]


@pytest.mark.parametrize(
    ("shared", "first", "second"),
    [
        ("later", ["3.1", "1.5"], ["2.0", "0.2"]),
        ("earlier", ["3.1", "2.0", "1.5"], ["0.2"]),
        ("both", ["3.1", "2.0", "1.5"], ["2.0", "0.2"]),
    ],
)
def test_a_head_that_two_stages_choose_at_one_role_goes_where_the_plan_says(shared, first, second):
    results = discover(Plan((FIRST, SECOND, THIRD)), scripted(TABLES))
    groups = circuit_of(results, shared).groups
    assert [str(head) for head in groups["first"].heads] == first
    assert [str(head) for head in groups["second"].heads] == second
    assert [str(head) for head in groups["third"].heads] == ["0.2", "0.4"]  # another role: shared with no one
    assert groups["third"].at == "query_label"


def test_a_replicated_rule_asks_for_the_second_split():
    asked: list = []
    stage = Stage("first", "last", Discoveries())
    discover(Plan((stage,)), scripted(TABLES, asked))
    assert [split for _, _, split in asked] == ["discovery", "replication"]


def test_stages_that_hang_on_a_stage_without_heads_are_left_out_and_the_others_run():
    asked: list = []
    plan = Plan((FIRST, SECOND, THIRD, Stage("apart", "last", TopK(1))))
    tables = {"first": {"3.3": 2.5}, "apart": {"1.1": -1.0}}  # a head that hurts is nothing to patch into
    results = discover(plan, scripted(tables, asked))
    assert [name for name, _, _ in asked] == [result.stage.name for result in results] == ["first", "apart"]
    assert gaps(plan, results) == [
        "no heads at stage first; use more prompts or a rule that is less strict",
        "stage second was not run: first has no heads to patch into",
        "stage third was not run: second has no heads to patch into",
    ]
    groups = circuit_of(results, "later").groups
    assert {name: group.heads for name, group in groups.items()} == {"first": (), "apart": (Head(1, 1),)}


def test_a_plan_whose_stages_all_choose_heads_has_no_gaps():
    plan = Plan((FIRST, SECOND, THIRD))
    assert gaps(plan, discover(plan, scripted(TABLES))) == []


def test_a_later_stage_without_heads_is_a_gap_that_stops_no_other():
    plan = Plan((FIRST, SECOND, Stage("beside", "last", TopK(1), via="q", receivers_from="first")))
    results = discover(plan, scripted(TABLES | {"second": {}, "beside": {"0.1": -1.0}}))
    assert [result.stage.name for result in results] == ["first", "second", "beside"]
    assert gaps(plan, results) == ["no heads at stage second; use more prompts or a rule that is less strict"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((FIRST, FIRST), "two stages are called 'first'"),
        ((Stage("a", "nowhere", TopK(1)),), "names role 'nowhere', which the task lacks; choose one of last"),
        ((SECOND, FIRST), "takes its receivers from 'first', which is not an earlier stage; choose one of none"),
        ((FIRST, Stage("b", "last", TopK(1), via="q")), "receivers and via go together"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_before_any_work(stages, message):
    with pytest.raises(InputError, match=message):
        Plan(stages).check(ROLES)


def test_measuring_with_a_model_is_path_patching_on_the_split():
    model, pairs = subject("llama").model, fake_pairs()
    measure = measure_with(model, {"discovery": pairs}, metric="log_prob")
    receivers = [Head(3, 0), Head(2, 2)]
    found = measure(Stage("s", "query_label", TopK(1), "v", "r", "last"), receivers, "discovery", None)
    expected = path_effects(model, pairs, "query_label", receivers, "v", "last", metric="log_prob")
    assert torch.equal(found.per_prompt, expected.per_prompt)
    assert found.metric == "log_prob"


def test_a_rule_that_wants_a_second_split_says_so_where_there_is_none():
    measure = measure_with(subject("llama").model, {"discovery": fake_pairs()})
    with pytest.raises(InputError, match=r"stage s wants a second split.*give 'replication', too"):
        discover(Plan((Stage("s", "last"),)), measure)


def test_later_stages_patch_into_no_heads_that_the_rule_did_not_choose():
    few = Stage("first", "last", TopK(1), n_receivers=2)
    asked: list = []
    discover(Plan((few, SECOND)), scripted(TABLES, asked))
    assert asked[1] == ("second", ["3.1"], "discovery")


def test_a_stage_that_reads_from_none_before_it_is_refused():
    with pytest.raises(InputError, match="takes its receivers from 'frist', which is not an earlier stage"):
        discover(Plan((FIRST, Stage("second", "last", TopK(2), "q", "frist"))), scripted(TABLES))
