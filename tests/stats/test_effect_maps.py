"""Comparing two models' effects: alike where they are, no better than chance where they are not, and what changed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from circuitdiff.circuit import Head
from circuitdiff.errors import InputError
from circuitdiff.stats.effect_maps import changed_heads, compare_maps

N_LAYERS, N_HEADS, N_PROMPTS = 5, 7, 40
SCENARIOS = np.arange(N_PROMPTS) // 2


def effects(seed, strong=6, noise=0.3):
    """The same `strong` heads for the same seed, with other noise on each prompt."""
    g = np.random.default_rng(seed)
    mean = np.zeros(N_LAYERS * N_HEADS)
    mean[g.permutation(len(mean))[:strong]] = -1.0 - np.arange(strong)
    return lambda draw: (
        mean[:, None] + noise * np.random.default_rng(draw).normal(size=(len(mean), N_PROMPTS))
    ).reshape(N_LAYERS, N_HEADS, N_PROMPTS)


def test_the_same_circuit_is_as_alike_between_models_as_in_a_retest():
    same = effects(0)
    found = compare_maps(same(1), same(2), SCENARIOS, ks=[6])
    assert found.shared[6].jaccard.between.value == found.shared[6].jaccard.first.value == 1.0
    assert found.correlation.between.value == pytest.approx(found.correlation.second.value, abs=0.02)
    assert found.correlation.between.value > 0.95


def test_other_circuits_are_no_more_alike_than_chance():
    found = [compare_maps(effects(i)(1), effects(100 + i)(2), SCENARIOS, ks=[6]) for i in range(30)]
    assert np.mean([each.shared[6].jaccard.between.value for each in found]) == pytest.approx(
        found[0].shared[6].jaccard.floor, abs=0.04
    )
    assert abs(np.mean([each.correlation.between.value for each in found])) < 0.1
    assert found[0].shared[6].jaccard.first.value == 1.0


def test_halves_share_no_scenario():
    """Noise that belongs to the scenario must not make two halves alike."""
    shared = np.random.default_rng(0).normal(size=(N_LAYERS, N_HEADS, N_PROMPTS // 2)).repeat(2, axis=-1)
    found = compare_maps(shared, shared, SCENARIOS, ks=[5])
    assert abs(found.correlation.between.value) < 0.3


def test_the_chance_overlap_is_that_of_random_sets():
    """Of 7 heads 5 help in one model and 2 in the other: of the 4 strongest, 4 and 2 heads are shared by chance."""
    draws = [({*a}, {*b}) for a in itertools.combinations(range(7), 4) for b in itertools.combinations(range(7), 2)]
    common = np.mean([len(a & b) for a, b in draws])
    first, second = np.ones((1, 7, N_PROMPTS)), np.ones((1, 7, N_PROMPTS))
    first[0, :5], second[0, 3:5] = -1.0, -2.0
    found = compare_maps(first, second, SCENARIOS, ks=[4]).shared[4]
    floors = (found.precision.floor, found.recall.floor, found.jaccard.floor)
    assert floors == pytest.approx((common / 4, common / 2, common / (6 - common)))


def test_precision_is_the_share_of_the_first_models_heads_and_recall_of_the_seconds():
    first, second = np.ones((1, 7, N_PROMPTS)), np.ones((1, 7, N_PROMPTS))
    first[0, :5], second[0, 3:5] = -1.0 - np.arange(5)[:, None], -2.0
    for k, precision, recall, jaccard in ((1, 0.0, 0.0, 0.0), (2, 1.0, 1.0, 1.0), (4, 0.5, 1.0, 0.5)):
        found = compare_maps(first, second, SCENARIOS, ks=[k]).shared[k]
        assert found.precision.between.value == pytest.approx(precision)
        assert found.recall.between.value == pytest.approx(recall)
        assert found.jaccard.between.value == pytest.approx(jaccard)
        assert found.precision.first.value == found.recall.second.value == 1.0


def test_heads_that_can_have_no_effect_are_not_tested():
    """With them among the tests, a head that changed a little would be lost."""
    g = np.random.default_rng(0)
    before, after = np.zeros((2, 50, 7, N_PROMPTS))
    before[0], after[0] = 0.3 * g.normal(size=(2, 7, N_PROMPTS))
    after[0, 2] = before[0, 2] + 0.1 * (1 + 1.5 * g.normal(size=N_PROMPTS))
    alone = [change.adjusted_p for change in changed_heads(before[:1], after[:1], SCENARIOS)]
    assert [change.head for change in changed_heads(before, after, SCENARIOS)] == [Head(0, 2)]
    assert [change.adjusted_p for change in changed_heads(before, after, SCENARIOS)] == alone


def test_heads_without_any_effect_do_not_count_as_agreement():
    same = effects(3)(1)
    same[3:] = 0.0
    padded = compare_maps(same, same, SCENARIOS, ks=[4]).correlation.first.value
    alone = compare_maps(same[:3], same[:3], SCENARIOS, ks=[4]).correlation.first.value
    assert padded == alone


def test_heads_that_only_one_model_can_use_count_against_agreement():
    """The second model's receivers end two layers earlier: the first one's strongest heads are out of its reach."""
    reaching = effects(5)(1)
    reaching[3:] -= 8.0
    ending = effects(5)(2)
    ending[3:] = 0.0
    found = compare_maps(reaching, ending, SCENARIOS, ks=[6])
    assert found.shared[6].jaccard.between.value == 0.0
    assert found.shared[6].jaccard.first.value > 0.3
    assert found.correlation.between.value < 0.2
    inside = compare_maps(ending[:3], ending[:3], SCENARIOS, ks=[6])
    assert found.correlation.second == pytest.approx(inside.correlation.second)
    alike = compare_maps(reaching, reaching, SCENARIOS, ks=[6])
    assert found.correlation.first == pytest.approx(alike.correlation.first)


def test_a_head_that_helps_more_is_found_and_others_are_not():
    before, after = effects(5)(1), effects(5)(2)
    after[2, 3] -= 1.2
    after[4, 1] += 0.5
    found = changed_heads(before, after, SCENARIOS)
    assert [(change.head, np.sign(change.difference)) for change in found] == [(Head(2, 3), -1), (Head(4, 1), 1)]
    assert found[0].difference == pytest.approx(float((after - before)[2, 3].mean()))
    assert changed_heads(before, after, SCENARIOS, minimum=0.8)[0].head == Head(2, 3)
    assert len(changed_heads(before, after, SCENARIOS, minimum=0.8)) == 1


def test_false_discoveries_are_controlled():
    same = effects(7)
    n_false = sum(len(changed_heads(same(2 * i), same(2 * i + 1), SCENARIOS)) > 0 for i in range(40))
    assert n_false <= 6  # 5 % of 40 expected


def test_maps_of_other_shapes_are_refused():
    with pytest.raises(InputError, match="must have one shape"):
        compare_maps(effects(0)(1), effects(0)(1)[:4], SCENARIOS, ks=[3])
    with pytest.raises(InputError, match="at least two scenarios; got 1"):
        compare_maps(effects(0)(1), effects(0)(2), np.zeros(N_PROMPTS, dtype=int), ks=[3])
