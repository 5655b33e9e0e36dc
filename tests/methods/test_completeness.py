"""Completeness against loops, on the tiny models, and what its numbers say of scores made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.errors import InputError
from circuitdiff.evaluation import evaluate_circuit, evaluate_circuits, evaluate_without, mean_activations
from circuitdiff.methods.completeness import Completeness, completeness, greedy_part, random_parts, whole_groups
from circuitdiff.prompts import Pairs
from circuitdiff.stats.intervals import mean_interval
from circuitdiff.stats.proportions import accuracy_interval, difference_interval
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import subject

CIRCUIT = Circuit(
    {
        "fetcher": Group("last", (Head(3, 1), Head(2, 5), Head(1, 1))),
        "reader": Group("previous_query_label", (Head(0, 2), Head(1, 4))),
    }
)
N_HEADS = 5


def few_pairs() -> Pairs:
    """Three of the fake pairs, each a scenario."""
    return replace(fake_pairs().select(torch.tensor([0, 2, 3])), scenarios=torch.arange(3))


def minus_by_hand(part: Circuit) -> Circuit:
    gone = {(group.at, head) for group in part.groups.values() for head in group.heads}
    return Circuit(
        {
            name: Group(group.at, tuple(head for head in group.heads if (group.at, head) not in gone))
            for name, group in CIRCUIT.groups.items()
        }
    )


def of_scores(model: list[list[float]], circuit: list[list[float]]) -> Completeness:
    """One row per part; every prompt is a scenario."""
    both = (torch.tensor(rows, dtype=torch.float64) for rows in (model, circuit))
    return Completeness((Circuit({}),) * len(model), *both, torch.arange(len(model[0])))


def test_both_terms_agree_with_one_circuit_at_a_time():
    pairs, model = few_pairs(), subject("llama").model
    means = mean_activations(model, fake_pairs())
    parts = [*whole_groups(CIRCUIT), *random_parts(CIRCUIT, 1, torch.Generator().manual_seed(3))]
    alone = [evaluate_circuit(model, minus_by_hand(part), pairs, means) for part in parts]
    without = [evaluate_without(model, [part], pairs, means)[0] for part in parts]
    for quantity in ("probability", "hits", "logit_difference"):
        found = completeness(model, CIRCUIT, parts, pairs, means, quantity)
        assert found.of_hits == (quantity == "hits")
        for actual, expected in ((found.circuit, alone), (found.model, without)):
            for row, one in zip(actual, expected, strict=True):
                columns = {
                    "probability": one.log_probs.exp(),
                    "hits": one.hits,
                    "logit_difference": one.logit_differences,
                }
                torch.testing.assert_close(row, columns[quantity].double(), rtol=0, atol=1e-10)


def test_differences_are_signed_and_paired():
    found = of_scores([[0.9, 0.5, 0.7], [0.1, 0.2, 0.3]], [[0.5, 0.5, 0.5], [0.4, 0.2, 0.6]])
    expected = mean_interval(np.array([[0.4, 0.0, 0.2], [-0.3, 0.0, -0.3]]), np.arange(3))
    np.testing.assert_allclose(found.differences(), expected, atol=1e-12)
    np.testing.assert_allclose(found.of_model().value, [0.7, 0.2])
    np.testing.assert_allclose(found.of_circuit().value, [0.5, 0.4])


def test_of_hits_they_are_paired_differences_of_accuracies():
    model, circuit = torch.arange(40) % 2 == 0, torch.arange(40) % 3 == 0
    rows = (model.double()[None], circuit.double()[None])
    found = Completeness((Circuit({}),), *rows, torch.arange(40), of_hits=True)
    difference = difference_interval(model.numpy(), circuit.numpy(), np.arange(40))
    np.testing.assert_allclose(np.ravel(found.differences()), difference)
    np.testing.assert_allclose(np.ravel(found.of_model()), accuracy_interval(model.numpy(), np.arange(40)))


def test_absolute_differences_reach_down_to_zero_only_where_the_signed_interval_holds_it():
    signed = [[0.3, 0.5, 0.4], [-0.3, -0.5, -0.4], [-0.2, 0.3, 0.2]]
    found = of_scores(signed, [[0.0] * 3] * 3)
    value, low, high = found.absolute_differences()
    np.testing.assert_allclose(value, [0.4, 0.4, 0.1])
    lowest, highest = (np.asarray(bound) for bound in found.differences()[1:])
    assert lowest[0] > 0 > highest[1]
    assert lowest[2] < 0 < highest[2]
    np.testing.assert_allclose(low, [lowest[0], -highest[1], 0.0])
    np.testing.assert_allclose(high, [highest[0], -lowest[1], max(highest[2], -lowest[2])])


def test_the_correlation_is_that_of_the_means_over_prompts():
    g = torch.Generator().manual_seed(2)
    base = torch.rand(7, 1, generator=g, dtype=torch.float64)
    model = base + 0.3 * torch.rand(7, 40, generator=g, dtype=torch.float64)
    circuit = base + 0.3 * torch.rand(7, 40, generator=g, dtype=torch.float64)
    found = Completeness((Circuit({}),) * 7, model, circuit, torch.arange(40) // 2)
    r = found.correlation()
    assert r.value == pytest.approx(np.corrcoef(model.mean(1), circuit.mean(1))[0, 1])
    assert 0.9 < r.low < r.value < r.high < 1.0
    opposite = replace(found, circuit=-model)
    np.testing.assert_allclose(opposite.correlation(), [-1, -1, -1])


@pytest.mark.parametrize("rows", [[[0.1, 0.2], [0.3, 0.4]], [[0.1, 0.1]] * 4], ids=["two_parts", "all_alike"])
def test_no_correlation_is_given_where_there_is_none(rows):
    found = of_scores(rows, [[0.3, 0.1 * i] for i in range(len(rows))])
    assert np.isnan(found.correlation()).all()


def test_random_parts_hold_each_head_half_of_the_time():
    parts = random_parts(CIRCUIT, 400, torch.Generator().manual_seed(0))
    for name, group in CIRCUIT.groups.items():
        for head in group.heads:
            share = sum(name in part.groups and head in part.groups[name].heads for part in parts) / 400
            assert 0.42 < share < 0.58
    assert all(set(part.heads_at(role)) <= set(CIRCUIT.heads_at(role)) for part in parts for role in part.roles)
    sizes = [len(part) for part in parts]
    assert (min(sizes), max(sizes)) == (0, N_HEADS)


def test_whole_groups_are_the_circuits_own():
    assert whole_groups(CIRCUIT) == [Circuit({name: group}) for name, group in CIRCUIT.groups.items()]


def differences_by_hand(parts: list[Circuit], pairs: Pairs) -> list[float]:
    model = subject("llama").model
    alone = evaluate_circuits(model, [minus_by_hand(part) for part in parts], pairs, "zero")
    without = evaluate_without(model, parts, pairs, "zero")
    return [
        float((one.log_probs.exp() - other.log_probs.exp()).mean()) for one, other in zip(without, alone, strict=True)
    ]


def test_a_greedy_search_over_all_candidates_takes_the_worst_head_at_each_step():
    pairs, model = few_pairs(), subject("llama").model
    g = torch.Generator().manual_seed(0)
    found = greedy_part(model, CIRCUIT, pairs, "zero", n_steps=2, n_candidates=9, generator=g)
    members = [(name, head) for name, group in CIRCUIT.groups.items() for head in group.heads]
    taken: list[tuple[str, Head]] = []
    for step in found.steps:
        left = [member for member in members if member not in taken]
        parts = [
            Circuit(
                {
                    name: Group(group.at, tuple(h for n, h in [*taken, one] if n == name))
                    for name, group in CIRCUIT.groups.items()
                }
            )
            for one in left
        ]
        by_hand = differences_by_hand(parts, pairs)
        worst = max(range(len(left)), key=lambda i: abs(by_hand[i]))
        assert (step.group, step.head) == left[worst]
        assert step.difference == pytest.approx(by_hand[worst], abs=1e-10)
        taken.append(left[worst])
    sizes = [abs(step.difference) for step in found.steps]
    assert len(found.removed) == 1 + sizes.index(max(sizes))
    (whole,) = differences_by_hand([found.removed], pairs)
    assert abs(whole) == pytest.approx(max(sizes), abs=1e-10)


def test_a_search_draws_as_many_candidates_as_it_is_told(monkeypatch):
    drawn = []

    def measure(model, circuit, parts, pairs, *_, **__):
        drawn.append(len(parts))
        sizes = [[float(len(part)) - 0.15 * len(part) ** 2] * 2 for part in parts]
        return of_scores(sizes, [[0.0, 0.0]] * len(parts))

    monkeypatch.setattr("circuitdiff.methods.completeness.completeness", measure)
    g = torch.Generator().manual_seed(0)
    found = greedy_part(subject("llama").model, CIRCUIT, few_pairs(), "zero", n_steps=50, n_candidates=3, generator=g)
    assert drawn == [3, 3, 3, 2, 1]
    assert [round(step.difference, 2) for step in found.steps] == [0.85, 1.4, 1.65, 1.6, 1.25]
    assert found.removed == Circuit(
        {
            name: Group(group.at, tuple(h for h in group.heads if (name, h) in taken))
            for taken in [{(step.group, step.head) for step in found.steps[:3]}]
            for name, group in CIRCUIT.groups.items()
            if any((name, h) in taken for h in group.heads)
        }
    )


def test_parts_of_another_circuit_and_empty_groups_are_refused():
    pairs, model = few_pairs(), subject("llama").model
    foreign = Circuit({"fetcher": Group("last", (Head(0, 2),))})
    with pytest.raises(InputError, match=r"head 0\.2 at 'last', which the circuit does not; remove heads of"):
        completeness(model, CIRCUIT, [foreign], pairs, "zero")
    with pytest.raises(InputError, match="group 'fetcher' has no heads"):
        completeness(model, Circuit({"fetcher": Group("last", ())}), [], pairs, "zero")
