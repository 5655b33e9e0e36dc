"""What circuits are held against, as a section of a study on a tiny model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.evaluation import Evaluation, all_heads, evaluate_circuit, evaluate_model, mean_activations
from circuitdiff.methods.attribution_patching import attribution
from circuitdiff.stats.intervals import ratio_interval
from circuitdiff.stats.proportions import difference_interval
from circuitdiff.study.estimates import circuit_from
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.sections.discovery import discovered
from circuitdiff.study.sections.faithfulness import (
    SECTION,
    CircuitInModel,
    FaithfulnessOptions,
    _at_other_segments,
    cautions,
)
from circuitdiff.study.sections.faithfulness_controls import Built, control_circuit, next_best, random_circuits
from circuitdiff.tasks import entity_tracking
from helpers.tiny_context import TinyContext, tiny_context

N_LAYERS, N_HEADS = 3, 4  # of the tiny model
GIVEN = Circuit(
    {
        "fetcher": Group("last", (Head(2, 1), Head(1, 3))),
        "reader": Group("query_label", (Head(0, 2),)),
        "more": Group("last", (Head(2, 3),)),
    }
)


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> TinyContext:
    return tiny_context(tmp_path_factory.mktemp("study"), GIVEN)


@pytest.fixture(scope="module")
def results(context) -> dict[str, CircuitInModel]:
    """By circuit, in the base."""
    found = context.run(SECTION.run(context.study, FaithfulnessOptions(random_circuits=5)))
    return {name: models[context.study.base] for name, models in found.items()}


def test_every_control_is_an_evaluated_circuit_held_against_the_circuit_on_its_prompts(context, results):
    loaded = context.loaded()
    pairs, means = (
        loaded.pairs(PromptsOf("evaluation")),
        mean_activations(loaded.model, loaded.pairs(PromptsOf("means"))),
    )
    model = evaluate_model(loaded.model, pairs).hits.numpy()
    n_built = 0
    for cell in results.values():
        own = cell.circuit_accuracy
        assert [each.kind for each in cell.controls] == ["next_best", "other_roles", "by_attribution", "rival"]
        for each in cell.controls:
            if each.accuracy is None:
                assert each.note
                assert (each.groups, each.faithfulness, each.difference) == ({}, None, None)
                continue
            n_built += 1
            hits = evaluate_circuit(loaded.model, circuit_from(each.groups), pairs, means).hits
            assert (each.accuracy.hits, each.accuracy.n) == (int(hits.sum()), own.n)
            assert each.difference.value == pytest.approx(own.value - each.accuracy.value)
            expected = ratio_interval(hits.numpy(), model, pairs.scenarios.numpy())
            assert each.faithfulness.value == pytest.approx(expected.value, nan_ok=True) or expected.undefined
    assert n_built >= 4
    cell = results["given"]
    own = evaluate_circuit(loaded.model, GIVEN, pairs, means).hits.numpy()
    rotated = evaluate_circuit(loaded.model, circuit_from(cell.controls[1].groups), pairs, means).hits.numpy()
    expected = difference_interval(own, rotated, pairs.scenarios.numpy())
    assert (cell.controls[1].difference.low, cell.controls[1].difference.high) == (expected.low, expected.high)


def test_random_circuits_see_the_circuits_own_prompts_and_five_have_no_rank(context, results):
    for cell in results.values():
        assert (len(cell.random.accuracies), cell.random.rank_p) == (5, None)
        assert cell.random.n_prompts == cell.circuit_accuracy.n == len(context.loaded().pairs(PromptsOf("evaluation")))


def test_the_same_heads_at_each_others_roles(results):
    rotated = circuit_from(results["given"].controls[1].groups)
    assert rotated.heads_at("query_label") == GIVEN.heads_at("last")
    assert rotated.heads_at("last") == GIVEN.heads_at("query_label")


def test_heads_by_attribution_are_as_many_at_each_role_as_the_circuits(context, results):
    loaded = context.loaded()
    chosen = circuit_from(results["given"].controls[2].groups)
    scores = attribution(loaded.model, loaded.pairs(PromptsOf("discovery")), list(GIVEN.roles)).per_prompt
    for role, each in scores.items():
        means = {Head(i, j): float(each[i, j].mean()) for i in range(len(each)) for j in range(each.shape[1])}
        assert chosen.heads_at(role) == set(sorted(means, key=lambda head: means[head])[: len(GIVEN.heads_at(role))])


def test_a_rival_is_of_other_heads_chosen_while_the_circuit_is_held(context, results):
    loaded = context.loaded()
    chosen = circuit_from(results["given"].controls[3].groups)
    means = mean_activations(loaded.model, loaded.pairs(PromptsOf("means")))
    pairs = loaded.pairs(PromptsOf("discovery"))
    scores = attribution(loaded.model, pairs, sorted(GIVEN.roles), held=GIVEN, means=means).scores
    for role, each in scores.items():
        others = {
            Head(i, j): float(each[i, j])
            for i in range(len(each))
            for j in range(each.shape[1])
            if Head(i, j) not in GIVEN.heads_at(role)
        }
        assert chosen.heads_at(role) == set(sorted(others, key=lambda head: others[head])[: len(GIVEN.heads_at(role))])
    assert chosen != circuit_from(results["given"].controls[2].groups)


def test_the_next_best_heads_are_ranks_k_plus_1_to_2k_that_help_at_the_same_role(context):
    found = context.run(discovered(context.study, context.study.base))
    built = next_best(found)
    assert found.stages
    for result in found.stages:
        group, own = found.circuit.groups[result.stage.name], found.circuit.heads_at(result.stage.at)
        effects = {Head(i, j): float(x) for i, row in enumerate(result.found.effects) for j, x in enumerate(row)}
        others = [head for head, x in effects.items() if x < -result.found.noise_floor and head not in own]
        expected = sorted(others, key=lambda head: effects[head])[: len(group.heads)]
        assert list(built.circuit.groups[result.stage.name].heads) == expected
        assert built.circuit.groups[result.stage.name].at == result.stage.at


def test_a_control_that_there_is_not_says_why(context, results):
    assert results["given"].controls[0].note == "the circuit was given, not found by a plan"
    found = context.run(discovered(context.study, context.study.base))
    silent = [replace(each, found=replace(each.found, noise_floor=1e9)) for each in found.stages]
    assert next_best(found._replace(stages=silent)).note == "no further head helps"


def test_a_circuit_of_more_than_half_of_all_heads_or_of_one_role_has_no_such_controls(tmp_path):
    whole = tiny_context(tmp_path, all_heads(N_LAYERS, N_HEADS, ["last"]))
    cell = whole.run(SECTION.run(whole.study, FaithfulnessOptions(random_circuits=3)))["given"][whole.study.base]
    assert cell.random is None
    assert cell.controls[1].note == "all of its heads are at one role"
    assert (cell.controls[3].groups, cell.controls[3].accuracy) == ({}, None)
    assert cell.controls[3].note == f"{N_LAYERS * N_HEADS} heads fewer, for no others help"


def test_attribution_is_not_asked_at_a_role_that_some_counterfactual_lacks(context, monkeypatch):
    sampled = type(context.study).pairs

    async def without(study, model, prompts):
        pairs = await sampled(study, model, prompts)
        if prompts != PromptsOf("discovery"):
            return pairs
        positions = pairs.counterfactual_positions | {"last": torch.full((len(pairs),), -1)}
        return replace(pairs, counterfactual_prompts=replace(pairs.counterfactual_prompts, positions=positions))

    monkeypatch.setattr(type(context.study), "pairs", without)
    fresh = context.again(context.study.store.folder)
    found = fresh.run(SECTION.run(fresh.study, FaithfulnessOptions(random_circuits=5)))["given"][fresh.study.base]
    assert found.controls[2].note == "some prompt or counterfactual has no last"


def of_hits(n: int) -> Evaluation:
    """Of 40 prompts, the first so many."""
    hits, zeros = torch.arange(40) < n, torch.zeros(40)
    return Evaluation(hits, torch.zeros(40, dtype=torch.long), zeros, zeros, torch.arange(40))


def test_the_difference_is_what_the_circuit_has_more():
    built = Built(GIVEN, "short of some")
    found = control_circuit("next_best", built, of_hits(10), (of_hits(32), of_hits(24)))
    expected = difference_interval(of_hits(24).hits.numpy(), of_hits(10).hits.numpy(), torch.arange(40).numpy())
    assert (found.difference.value, found.difference.low) == (pytest.approx(0.35), expected.low)
    assert (found.faithfulness.value, found.note) == (pytest.approx(10 / 32), "short of some")
    assert circuit_from(found.groups) == GIVEN


def test_a_circuit_has_a_rank_among_a_hundred_random_ones():
    drawn = [of_hits(10 + i % 20) for i in range(100)]  # five each of 10 to 29
    found = random_circuits(drawn, of_hits(28))
    assert found.rank_p == pytest.approx((1 + 10) / 101), "ten of 28 or 29 are as good"
    assert (found.mean, found.n_prompts, found.accuracies[3]) == (pytest.approx(19.5 / 40), 40, 13 / 40)
    assert random_circuits(drawn[:99], of_hits(28)).rank_p is None


@pytest.mark.parametrize(
    ("accuracies", "rank_p", "warned"),
    [((0.9, 0.6), None, True), ((0.6, 0.5), None, False), ((0.1,) * 100, 0.2, True), ((0.9,) * 100, 0.01, False)],
)
def test_a_circuit_that_is_not_surely_better_than_random_ones_is_warned_of(results, accuracies, rank_p, warned):
    cell = next(iter(results.values()))
    random = replace(cell.random, accuracies=accuracies, rank_p=rank_p)
    sound = replace(cell, value=1.1, random=random, circuit_accuracy=replace(cell.circuit_accuracy, value=0.7))
    said = list(cautions({("tiny", "ours"): sound}))
    assert len(said) == warned
    assert all("ours in tiny is not surely better than random circuits of its size: it scores 0.700" in s for s in said)


def test_faithfulness_above_one_point_one_is_one_caution_a_model(results):
    cell = replace(next(iter(results.values())), random=None)
    values = {("m", "a"): 1.5, ("m", "b"): 1.75, ("n", "a"): 1.25, ("n", "b"): 1.1, ("n", "c"): None}
    said = list(cautions({key: replace(cell, value=value) for key, value in values.items()}))
    assert ["in m is above 1.1 (a 1.500, b 1.750)" in said[0], "(a 1.250)" in said[1], len(said)] == [True, True, 2]


def test_the_mean_of_random_circuits_is_a_share_and_so_are_its_bounds():
    found = random_circuits([of_hits(1), *[of_hits(0)] * 4], of_hits(28))
    assert found.mean == pytest.approx(0.2 / 40)
    assert 0 <= found.low < found.mean < found.high < 1


HEADS = (Head(1, 2), Head(0, 3))


def test_heads_at_other_segments_are_no_control_where_no_head_is_in_one():
    task = entity_tracking(n_boxes=3)
    assert _at_other_segments(Circuit({"a": Group("last", HEADS), "b": Group("query_label", HEADS[:1])}), task) == {}
    inside = Circuit({"a": Group("last", HEADS), "b": Group("previous_query_label", HEADS[:1])})
    found = _at_other_segments(inside, task)
    assert found["wrong_segment"].heads_at("last") == {*HEADS}
    assert found["wrong_segment"].heads_at("previous_query_label") == set()
    assert all(found["every_segment"].heads_at(f"segment_{i}.label") == {HEADS[0]} for i in range(3))
