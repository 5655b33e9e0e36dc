"""Minimality against its looped definition, and the decision rules on scores made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.errors import InputError
from circuitdiff.evaluation import Evaluation, evaluate_circuits
from circuitdiff.methods.minimality import (
    PUBLISHED,
    HeadCost,
    MinimalityResult,
    MinimalityRule,
    Outcome,
    keep,
    minimality,
    not_needed_p_values,
)
from circuitdiff.prompts import Pairs, PromptSet, halves
from circuitdiff.stats.intervals import cluster_p_values, false_discovery_adjusted, mean_interval, one_sided
from circuitdiff.stats.proportions import paired_interval
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import subject

FETCHERS = (Head(3, 1), Head(2, 5), Head(1, 1), Head(2, 1))
READERS = (Head(0, 2), Head(1, 4))
CIRCUIT = Circuit({"fetcher": Group("last", FETCHERS), "reader": Group("previous_query_label", READERS)})


@cache
def many_pairs(n_copies: int = 3) -> Pairs:
    """Four fake pairs with other answers and scenarios in each copy; two prompts share a scenario."""
    pairs = fake_pairs().select(torch.tensor([0, 1, 2, 0]).repeat(n_copies))
    pairs = replace(pairs, scenarios=torch.tensor([0, 0, 1, 2]).repeat(n_copies))
    g = torch.Generator().manual_seed(4)
    model, copy = subject("llama").model, torch.arange(len(pairs)) // 4
    predicted = [one.predictions for one in evaluate_circuits(model, [CIRCUIT, Circuit({})], pairs, "zero")]
    answers = torch.where(torch.rand(len(pairs), generator=g) < 0.7, *predicted)  # so that some of both are hits
    return replace(pairs, answers=answers, scenarios=pairs.scenarios + 10 * copy)


@cache
def found(rule: MinimalityRule) -> MinimalityResult:
    return minimality(subject("llama").model, CIRCUIT, many_pairs(), "zero", rule)


def without(circuit: Circuit, gone: set[Head], group: str) -> Circuit:
    groups = dict(circuit.groups)
    groups[group] = Group(groups[group].at, tuple(head for head in groups[group].heads if head not in gone))
    return Circuit(groups)


def subsets(heads: tuple[Head, ...]) -> list[frozenset[Head]]:
    return [frozenset(h for i, h in enumerate(heads) if mask >> i & 1) for mask in range(2 ** len(heads))]


def by_hand(pairs: Pairs, rule: MinimalityRule) -> dict[str, list[dict]]:
    """Every subset of each group removed, then every sum a loop; K by the published steps."""
    choosing, testing = halves(pairs) if rule.held_out else (pairs, pairs)
    every = [(name, gone) for name, group in CIRCUIT.groups.items() for gone in subsets(group.heads)]
    circuits = [without(CIRCUIT, set(gone), name) for name, gone in every]
    known = {
        half: dict(zip(every, evaluate_circuits(subject("llama").model, circuits, on, "zero"), strict=True))
        for half, on in (("choosing", choosing), ("testing", testing))
    }

    def scores(half: str, group: str, gone: set[Head]) -> torch.Tensor:
        one = known[half][group, frozenset(gone)]
        return one.hits.double() if rule.score == "hits" else one.log_probs.exp()

    rows: dict[str, list[dict]] = {}
    for name, group in CIRCUIT.groups.items():
        rows[name] = []
        for head in group.heads:
            drops = []
            for other in group.heads:
                same = not rule.joint_removal_of_same_index and head.index == other.index
                both = {head} if same else {head, other}
                alone = scores("choosing", name, {other})
                drops.append(float(alone.mean() - scores("choosing", name, both).mean()))
            order = sorted(range(len(drops)), key=lambda i: -drops[i])
            chosen = [i for i in order[: math.ceil(rule.fraction * len(drops))] if drops[i] > 1e-12]
            removed = {group.heads[i] for i in chosen}
            before, after = scores("testing", name, removed), scores("testing", name, removed | {head})
            rows[name].append({"removed": removed, "before": before, "after": after})
    return rows


def p_below(costs: torch.Tensor, whole: float, scenarios: torch.Tensor, limit: float) -> float:
    """A t-test on scenarios' totals, one of the usual size added in which the head costs all that it could."""
    totals: dict[int, float] = {}
    for cost, scenario in zip(costs.tolist(), scenarios.tolist(), strict=True):
        totals[scenario] = totals.get(scenario, 0.0) + cost - limit
    every = [*totals.values(), round(len(scenarios) / len(totals)) * (whole - limit)]
    test = stats.ttest_1samp(every, 0)
    return float(test.pvalue if test.statistic < 0 else 1)


@pytest.mark.parametrize(
    "rule",
    [MinimalityRule(fraction=0.7), MinimalityRule(fraction=0.5, held_out=False), PUBLISHED],
    ids=["held_out", "same_prompts", "published"],
)
def test_minimality_agrees_with_its_looped_definition(rule):
    pairs, result = many_pairs(), found(rule)
    expected = by_hand(pairs, rule)
    scenarios = (halves(pairs)[1] if rule.held_out else pairs).scenarios
    assert torch.equal(result.scenarios, scenarios)
    every_cost, every_whole = [], []
    for name, group in result.groups.items():
        for entry, per_prompt, row in zip(group.costs, group.per_prompt, expected[name], strict=True):
            costs = row["before"] - row["after"]
            every_cost.append(costs)
            every_whole.append(float(row["before"].max()))
            assert set(entry.removed_with) == row["removed"]
            torch.testing.assert_close(per_prompt, costs, rtol=0, atol=1e-10)
            of_costs = paired_interval if rule.score == "hits" else mean_interval
            interval = of_costs(costs.double().numpy()[None], scenarios.numpy())
            np.testing.assert_allclose(entry.cost, [float(np.asarray(b)[0]) for b in interval], atol=1e-10)
    if rule.decision == "credible":
        p = one_sided(
            cluster_p_values(torch.stack(every_cost).numpy(), scenarios.numpy()), np.zeros(len(every_cost), dtype=bool)
        )
        every = [entry for group in result.groups.values() for entry in group.costs]
        np.testing.assert_allclose([entry.needed_p for entry in every], false_discovery_adjusted(p), atol=1e-8)
        below = [p_below(*each, scenarios, rule.margin) for each in zip(every_cost, every_whole, strict=True)]
        np.testing.assert_allclose(
            [entry.not_needed_p for entry in every], false_discovery_adjusted(np.array(below)), atol=1e-8
        )
    assert rule.score == "hits" or any(entry.removed_with for group in result.groups.values() for entry in group.costs)


def test_the_published_rule_keeps_by_the_ratio_of_hits():
    result = found(PUBLISHED)
    for group in result.groups.values():
        for entry in group.costs:
            assert entry.before == int(entry.before), "a number of hits"
            assert (entry.outcome == "needed") == keep(entry.before, entry.after, 0.01)
    outcomes = {entry.outcome for group in result.groups.values() for entry in group.costs}
    assert outcomes == {"needed", "not_needed"}, "nothing is open"


def planted(monkeypatch, values: dict[frozenset[Head], torch.Tensor]) -> Pairs:
    """Makes circuits score, at `last`, what `values` says of the heads that are gone; prompts are scenarios."""
    n = len(next(iter(values.values())))
    at = {"last": torch.zeros(n, dtype=torch.long)}
    tokens = torch.zeros(n, 1, dtype=torch.long)
    prompts = PromptSet(tokens, torch.ones(n, dtype=torch.long), at, tokens, ["last"], ["last"])
    zeros = torch.zeros(n, dtype=torch.long)
    pairs = Pairs(prompts, prompts, zeros, zeros[:, None] + 1, None, torch.arange(n), zeros)

    def evaluate(model, circuits, on, *_, **__):
        probabilities = [values[frozenset(FETCHERS) - circuit.heads_at("last")][on.scenarios] for circuit in circuits]
        return [Evaluation(p > 0.5, zeros[: len(on)], p, p.log(), on.scenarios) for p in probabilities]

    monkeypatch.setattr("circuitdiff.methods.minimality.evaluate_circuits", evaluate)
    return pairs


def test_a_head_whose_stand_in_hides_it_is_needed_and_one_without_effect_is_not(monkeypatch):
    """3.1 and 2.5 do the same; 1.1 matters alone; 2.1 does nothing."""
    noise = torch.linspace(-0.05, 0.05, 240, dtype=torch.float64)[
        torch.randperm(240, generator=torch.Generator().manual_seed(0))
    ]
    one, two, own, _ = FETCHERS
    values = {
        gone: 0.6 + noise - 0.3 * float({one, two} <= gone) - 0.1 * float(own in gone) for gone in subsets(FETCHERS)
    }
    pairs = planted(monkeypatch, values)
    circuit = Circuit({"fetcher": Group("last", FETCHERS)})
    result = minimality(subject("llama").model, circuit, pairs, "zero", MinimalityRule(fraction=0.25))
    costs = {entry.head: entry for entry in result.groups["fetcher"].costs}
    assert costs[one].removed_with == (two,)
    assert costs[one].cost.value == pytest.approx(0.3)
    assert costs[own].cost.value == pytest.approx(0.1)
    assert [costs[head].outcome for head in FETCHERS] == ["needed", "needed", "needed", "not_needed"]
    assert result.pruned == Circuit({"fetcher": Group("last", (one, two, own))})
    assert result.n_choosing == 120


def outcomes(result: MinimalityResult) -> dict[Head, Outcome]:
    return {entry.head: entry.outcome for entry in result.groups["fetcher"].costs}


def test_on_few_prompts_nothing_is_surely_not_needed_and_nothing_is_pruned(monkeypatch):
    """No head costs anything here; but 0.03 may be the cost of one prompt in 20, and 15 may lack such a prompt."""
    tiny = torch.linspace(-0.001, 0.001, 15, dtype=torch.float64)
    values = {gone: 0.5 + tiny * len(gone) for gone in subsets(FETCHERS)}
    circuit, rule = Circuit({"fetcher": Group("last", FETCHERS)}), MinimalityRule(fraction=0.25, held_out=False)
    few = minimality(subject("llama").model, circuit, planted(monkeypatch, values), "zero", rule)
    assert set(outcomes(few).values()) == {"open"}
    assert few.pruned == circuit
    many = planted(monkeypatch, {gone: each.repeat(10) for gone, each in values.items()})
    assert set(outcomes(minimality(subject("llama").model, circuit, many, "zero", rule)).values()) == {"not_needed"}


@pytest.mark.parametrize("n", [100, 115, 150])
@pytest.mark.parametrize("share", [0.03, 0.06, 0.2, 1.0])
def test_heads_that_cost_the_margin_are_pruned_in_at_most_one_sample_in_twenty(share, n):
    """One head in four costs the margin, all of it in this share of the prompts; the others nothing.

    With 0.03 the head costs the whole of the few prompts, and where a sample lacks them it has no cost at all.
    """
    g, margin, n_heads, n_samples = np.random.default_rng(0), 0.03, 20, 300
    wrong = right = 0
    for _ in range(n_samples):
        costs = g.normal(0, 0.002, (n_heads, n))
        costs[:5] += (g.random((5, n)) < share) * margin / share
        p = false_discovery_adjusted(not_needed_p_values(costs, np.ones(n_heads), np.arange(n), margin))
        pruned = (np.asarray(mean_interval(costs, np.arange(n)).high) < margin) & (p <= 0.05)
        wrong, right = wrong + int(pruned[:5].sum()), right + int(pruned[5:].sum())
    assert wrong / (n_samples * 5) <= 0.05
    assert n < 115 or right == n_samples * 15


def test_a_cost_surely_below_the_margin_but_above_the_threshold_is_needed(monkeypatch):
    """Until the threshold is above it, too."""
    spread = torch.linspace(-0.01, 0.01, 300, dtype=torch.float64)
    values = {gone: 0.5 - (0.008 + spread) * float(FETCHERS[0] in gone) for gone in subsets(FETCHERS)}
    pairs, circuit = planted(monkeypatch, values), Circuit({"fetcher": Group("last", FETCHERS)})
    judged = []
    for threshold in (0.0, 0.01):
        rule = MinimalityRule(fraction=0.25, held_out=False, threshold=threshold)
        judged.append(outcomes(minimality(subject("llama").model, circuit, pairs, "zero", rule))[FETCHERS[0]])
    assert judged == ["needed", "not_needed"]


def test_a_cost_seen_only_where_the_removal_set_was_chosen_does_not_keep_a_head(monkeypatch):
    """On the choosing half 2.1 seems to matter once 1.1 is gone, on the other it does not."""
    choosing = torch.zeros(400, dtype=torch.float64)
    choosing[::2] = 1  # `halves` takes every other scenario
    *_, own, null = FETCHERS
    values = {gone: 0.5 - 0.2 * choosing * float({own, null} <= gone) for gone in subsets(FETCHERS)}
    pairs = planted(monkeypatch, values)
    circuit = Circuit({"fetcher": Group("last", FETCHERS)})
    held_out = minimality(subject("llama").model, circuit, pairs, "zero", MinimalityRule(fraction=0.25))
    assert held_out.groups["fetcher"].costs[3].removed_with == (own,)
    assert held_out.pruned.groups["fetcher"].heads == ()
    same = minimality(subject("llama").model, circuit, pairs, "zero", MinimalityRule(fraction=0.25, held_out=False))
    assert null in same.pruned.groups["fetcher"].heads


def test_a_threshold_asks_of_needed_heads_for_costs_that_are_surely_larger(monkeypatch):
    spread = torch.linspace(-0.02, 0.02, 40, dtype=torch.float64)
    one, two, *_ = FETCHERS
    values = {
        gone: 0.6 - (0.05 + spread) * float(one in gone) - (0.2 + spread) * float(two in gone)
        for gone in subsets(FETCHERS)
    }
    pairs = planted(monkeypatch, values)
    circuit = Circuit({"fetcher": Group("last", FETCHERS)})
    needed = {}
    for threshold in (0.0, 0.1):
        rule = MinimalityRule(fraction=0.25, threshold=threshold)
        judged = outcomes(minimality(subject("llama").model, circuit, pairs, "zero", rule))
        needed[threshold] = [head for head, outcome in judged.items() if outcome == "needed"]
    assert needed == {0.0: [one, two], 0.1: [two]}


def costing(monkeypatch, mean: float, threshold: float, circuit: tuple[Head, ...]) -> HeadCost:
    """3.1 costs threshold + 0.001 (mean + 1 or - 1) on 40 prompts, the other heads of the circuit nothing."""
    cost = threshold + 0.001 * (torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(20) + mean)
    values = {gone: 0.5 - cost * float(FETCHERS[0] in gone) for gone in subsets(FETCHERS)}
    pairs = planted(monkeypatch, {frozenset(gone | set(FETCHERS) - set(circuit)): values[gone] for gone in values})
    rule = MinimalityRule(fraction=0.25, held_out=False, threshold=threshold, margin=0.0)
    found = minimality(subject("llama").model, Circuit({"fetcher": Group("last", circuit)}), pairs, "zero", rule)
    return found.groups["fetcher"].costs[0]


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_false_discoveries_are_controlled_over_the_whole_circuit(monkeypatch, threshold):
    """p is near 0.02 alone: enough among one, not among four."""
    among_four = costing(monkeypatch, 0.34, threshold, FETCHERS)
    assert among_four.cost.low > threshold
    assert 0.01 < among_four.needed_p / 4 < 0.025
    assert among_four.outcome == "open"
    assert costing(monkeypatch, 0.34, threshold, FETCHERS[:1]).outcome == "needed"


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_the_interval_must_lie_above_the_threshold_even_if_the_test_is_passed(monkeypatch, threshold):
    """One-sided p near 0.035, and so within a two-sided interval of 95 %."""
    alone = costing(monkeypatch, 0.3, threshold, FETCHERS[:1])
    assert alone.needed_p < 0.05
    assert alone.cost.low <= threshold < alone.cost.value
    assert alone.outcome != "needed"


@pytest.mark.parametrize("joint", [True, False])
def test_pairs_of_the_same_index_in_two_layers_leave_together_only_if_told(monkeypatch, joint):
    values = {gone: torch.full((8,), 0.9 - 0.1 * len(gone), dtype=torch.float64) for gone in subsets(FETCHERS)}
    rule = MinimalityRule(joint_removal_of_same_index=joint, held_out=False)
    circuit = Circuit({"fetcher": Group("last", FETCHERS)})  # 3.1, 2.5, 1.1, 2.1
    table = (
        minimality(subject("llama").model, circuit, planted(monkeypatch, values), "zero", rule).groups["fetcher"].table
    )
    both = 0.7 if joint else 0.8
    expected = [[0.8, 0.7, both, both], [0.7, 0.8, 0.7, 0.7], [both, 0.7, 0.8, both], [both, 0.7, both, 0.8]]
    torch.testing.assert_close(table.scores, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"g": Group("last", ())}, "group 'g' has no heads, so there is nothing to test; leave the group out"),
        ({}, "the circuit has no groups"),
        ({"g": Group("last", (Head(9, 0),))}, r"names head 9\.0, but the model has 4 layers of 6 heads"),
        ({"g": Group("elsewhere", (Head(0, 0),))}, "role 'elsewhere', which the task lacks"),
        ({"g": Group("absent", (Head(0, 0),))}, "'absent' has no place in some prompts"),
        ({"g": Group("last", (Head(1, 0), Head(1, 0)))}, r"group 'g' names head 1\.0 twice"),
    ],
)
def test_a_circuit_that_cannot_be_tested_is_refused_before_any_work(groups, message, monkeypatch):
    monkeypatch.setattr("circuitdiff.methods.minimality.evaluate_circuits", lambda *_, **__: pytest.fail("ran"))
    with pytest.raises(InputError, match=message):
        minimality(subject("llama").model, Circuit(groups), fake_pairs(), "zero")


def test_too_few_scenarios_for_two_halves_are_refused():
    with pytest.raises(InputError, match="at least 4 scenarios; got 3; sample more prompts"):
        minimality(subject("llama").model, CIRCUIT, fake_pairs().select(torch.tensor([0, 1, 2, 3])), "zero")


@pytest.mark.parametrize(("name", "value"), [("fraction", 0.0), ("fraction", 1.5), ("error_rate", 1.0), ("level", 0.0)])
def test_a_rule_out_of_range_is_refused(name, value):
    with pytest.raises(InputError, match=f"{name}.*got .*{value}"):
        MinimalityRule(**{name: value})


def test_halves_share_no_scenario_and_ask_for_each_item_alike():
    pairs = many_pairs()
    first, second = halves(pairs)
    assert not set(first.scenarios.tolist()) & set(second.scenarios.tolist())
    assert len(first) + len(second) == len(pairs)
    rows = torch.arange(8)  # scenarios that ask for items 0 1 0 1 0 1 0 1, one prompt each
    alternating = replace(fake_pairs().select(rows % 5), scenarios=rows, queried=rows % 2)
    for half in halves(alternating):
        assert sorted(half.queried.tolist()) == [0, 0, 1, 1]
