"""Two models' effects: alike where they are however noisy, no better than chance where not, and what changed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from circuitdiff.circuit import Head
from circuitdiff.errors import InputError
from circuitdiff.stats.effect_maps import changed_heads, likeness, reliability, strongest_in_common

N_LAYERS, N_HEADS, N_PROMPTS = 5, 7, 40
SCENARIOS = np.arange(N_PROMPTS) // 2
UNEQUAL = np.repeat(np.arange(8), [1, 2, 3, 1, 2, 4, 1, 3])


def effects(seed, strong=6, noise=0.3):
    """The same `strong` heads for the same seed, with other noise on each prompt."""
    g = np.random.default_rng(seed)
    mean = np.zeros(N_LAYERS * N_HEADS)
    mean[g.permutation(len(mean))[:strong]] = -1.0 - np.arange(strong)
    return lambda draw: (
        mean[:, None] + noise * np.random.default_rng(draw).normal(size=(len(mean), N_PROMPTS))
    ).reshape(N_LAYERS, N_HEADS, N_PROMPTS)


def measured(g, correlation, noise, n_prompts=60, n_heads=80, common=0.0):
    """Two models' effects, of skewed means that correlate so; of the noise of prompts, `common` is in both."""
    strong = np.where(np.arange(n_heads) < 6, g.exponential(size=n_heads) + 0.3, 0.05 * g.normal(size=n_heads))
    first = (strong - strong.mean()) / strong.std()
    other = g.normal(size=n_heads)
    other -= other.mean() + first * (first * other).mean()
    second = correlation * first + np.sqrt(1 - correlation**2) * other / other.std()
    shared, *own = g.normal(size=(3, n_heads, n_prompts))
    return [
        (mean[:, None] + scale * (np.sqrt(common) * shared + np.sqrt(1 - common) * each))[None]
        for mean, scale, each in zip((first, second), noise, own, strict=True)
    ]


def by_loops(first, second, scenarios):
    """Covariance of one scenario's effects in one map with another's in the other, over all pairs of scenarios."""
    rows = [each.reshape(-1, len(scenarios)) for each in (first, second)]
    centred = [each - each.mean(0) for each in rows]
    total, n_pairs = 0.0, 0
    for i, j in itertools.product(range(len(scenarios)), repeat=2):
        if scenarios[i] != scenarios[j]:
            total += (centred[0][:, i] * centred[1][:, j]).mean()
            n_pairs += 1
    return total / n_pairs


def jackknifed(number, scenarios):
    """Value and bounds from `number(of these prompts)`."""
    names = np.unique(scenarios)
    n, whole = len(names), number(np.ones(len(scenarios), dtype=bool))
    without = np.array([number(scenarios != name) for name in names])
    error = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    value = n * whole - (n - 1) * without.mean()
    return value, value - stats.t.ppf(0.975, n - 1) * error, value + stats.t.ppf(0.975, n - 1) * error


def test_a_weight_is_how_often_a_head_is_there():
    g = np.random.default_rng(0)
    first, second = (np.arange(3.0)[:, None] + g.normal(size=(1, 3, len(UNEQUAL))) for _ in range(2))
    times = np.array([[1, 4, 2]])
    weighted = likeness(first, second, UNEQUAL, times.astype(float))
    assert weighted == pytest.approx(likeness(*(np.repeat(each, times[0], 1) for each in (first, second)), UNEQUAL))
    assert weighted != pytest.approx(likeness(first, second, UNEQUAL))
    repeated = reliability(np.repeat(first, times[0], 1), UNEQUAL)
    assert reliability(first, UNEQUAL, times.astype(float)) == pytest.approx(repeated)


def test_a_sample_of_weak_heads_stands_for_all_of_them():
    """Heads that look strong in either map are kept, of the others a quarter is drawn: without weights too alike."""
    n_heads, n_drawn, scenarios, found = 120, 30, np.arange(40), []
    for seed in range(80):
        g = np.random.default_rng(seed)
        maps = measured(g, 0.6, (0.5, 1.0), n_prompts=40, n_heads=n_heads)
        kept = np.zeros(n_heads, dtype=bool)
        for effects_of in maps:
            kept[np.argsort(-np.abs(effects_of[0].mean(1) + 0.1 * g.normal(size=n_heads)))[:12]] = True
        drawn = g.permutation(np.flatnonzero(~kept))[:n_drawn]
        weights = kept.astype(float)
        weights[drawn] = (~kept).sum() / n_drawn
        holes = [np.where(weights[None, :, None] > 0, each, np.nan) for each in maps]
        alike = likeness(*maps, scenarios), likeness(*holes, scenarios, weights[None]), likeness(*holes, scenarios)
        found.append([each.value for each in alike])
    whole, weighted, plain = np.mean(found, axis=0)
    assert weighted == pytest.approx(whole, abs=0.015)
    assert plain > whole + 0.05


def test_a_map_whose_weighted_heads_are_noise_is_like_nothing():
    noisy = np.random.default_rng(3).normal(size=(1, 12, len(UNEQUAL)))
    noisy[0, :2] += 9.0
    assert likeness(noisy, noisy, UNEQUAL).undefined is None
    without = np.where(np.arange(12) < 2, 0.0, 1.0)[None]
    assert "reliability" in likeness(noisy, noisy, UNEQUAL, without).undefined


def test_likeness_is_its_looped_definition():
    g = np.random.default_rng(0)
    mean = 3 * g.normal(size=(2, 3, 1))
    first, second = (mean + g.normal(size=(2, 3, len(UNEQUAL))) for _ in range(2))

    def correlation(of):
        covariance, *variances = (
            by_loops(one[..., of], other[..., of], UNEQUAL[of])
            for one, other in ((first, second), (first, first), (second, second))
        )
        return covariance / np.sqrt(np.prod(variances))

    found = likeness(first, second, UNEQUAL)
    assert found.undefined is None
    assert found[:3] == pytest.approx(jackknifed(correlation, UNEQUAL), abs=1e-12)


def test_reliability_is_its_looped_definition():
    g = np.random.default_rng(1)
    effects = 2 * g.normal(size=(2, 3, 1)) + g.normal(size=(2, 3, len(UNEQUAL)))
    _, sizes = np.unique(UNEQUAL, return_counts=True)

    def share_of_truth(of):
        kept = effects[..., of].reshape(6, -1)
        sums = [kept[:, UNEQUAL[of] == name].sum(1) for name in np.unique(UNEQUAL[of])]
        kept_sizes = np.unique(UNEQUAL[of], return_counts=True)[1]
        within = sum(((each - each.mean()) ** 2).mean() for each in sums) / (kept_sizes**2).sum()
        true = by_loops(effects[..., of], effects[..., of], UNEQUAL[of])
        return true / (true + (within - true) * (sizes**2).sum() / sizes.sum() ** 2)

    assert reliability(effects, UNEQUAL) == pytest.approx(jackknifed(share_of_truth, UNEQUAL), abs=1e-12)


def test_reliability_is_the_correlation_with_other_prompts():
    g = np.random.default_rng(2)
    rows = []
    for _ in range(60):
        first, again = measured(g, 1.0, (6.0, 6.0))
        repeated = np.corrcoef(first[0].mean(1), again[0].mean(1))[0, 1]
        rows.append((reliability(first, np.arange(60)).value, repeated))
    found, repeated = np.mean(rows, axis=0)
    assert repeated == pytest.approx(0.625, abs=0.03)  # 1 / (1 + 36 / 60)
    assert found == pytest.approx(repeated, abs=0.03)


@pytest.mark.parametrize("common", [0.0, 0.8])
@pytest.mark.parametrize("noise", [(0.5, 5.0), (5.0, 5.0)])
def test_noise_takes_nothing_from_the_likeness_and_adds_nothing_to_it(noise, common):
    """The plain correlation of the means is 0.7 and less, or more than the truth where noise is in both models."""
    g = np.random.default_rng(3)
    drawn = [measured(g, 0.9, noise, common=common) for _ in range(60)]
    found = np.array([likeness(*maps, np.arange(60))[:3] for maps in drawn])
    assert found[:, 0].mean() == pytest.approx(0.9, abs=0.03)
    assert ((found[:, 1] <= 0.9) & (found[:, 2] >= 0.9)).mean() >= 0.93


def test_a_noisy_model_is_not_said_to_be_alike_and_two_clear_ones_are():
    g = np.random.default_rng(4)
    noisy = [likeness(*measured(g, 0.85, (0.5, 6.0)), np.arange(60)).low >= 0.9 for _ in range(60)]
    clear = [likeness(*measured(g, 0.98, (0.5, 2.0)), np.arange(60)).low >= 0.9 for _ in range(60)]
    assert np.mean(noisy) <= 0.05
    assert np.mean(clear) >= 0.95


def test_a_map_of_noise_alone_is_like_nothing():
    g = np.random.default_rng(5)
    clear, nothing = effects(0)(1), g.normal(size=(N_LAYERS, N_HEADS, N_PROMPTS))
    for maps, name in (((clear, nothing), "second"), ((nothing, clear), "first")):
        found = likeness(*maps, SCENARIOS)
        assert np.isnan(found[:3]).all()
        assert f"the {name} map may be noise alone: its reliability is" in found.undefined
    flat = likeness(clear, np.zeros_like(clear), SCENARIOS)
    assert flat.undefined == "the effects of the second map are all the same"


def test_noise_of_a_scenario_makes_no_map_reliable():
    shared = np.random.default_rng(0).normal(size=(N_LAYERS, N_HEADS, N_PROMPTS // 2)).repeat(2, axis=-1)
    assert reliability(shared, SCENARIOS).low < 0
    assert abs(strongest_in_common(shared, shared, SCENARIOS, [5])[5].first) < 0.3


def test_a_map_is_like_itself_at_any_scale():
    same = effects(0)(1)
    assert likeness(same, 3 * same, SCENARIOS)[:3] == pytest.approx((1, 1, 1))
    assert likeness(same, -same, SCENARIOS)[:3] == pytest.approx((-1, -1, -1))


def test_heads_without_any_effect_do_not_count_as_agreement():
    first, second = effects(3)(1), effects(3)(2)
    first[3:], second[3:] = 0.0, 0.0
    assert likeness(first, second, SCENARIOS) == likeness(first[:3], second[:3], SCENARIOS)
    assert reliability(first, SCENARIOS) == reliability(first[:3], SCENARIOS)


def test_heads_that_only_one_model_can_use_count_against_agreement():
    """The second model's receivers end two layers earlier: the first one's strongest heads are out of its reach."""
    reaching, ending = effects(5)(1), effects(5)(2)
    reaching[3:] -= 8.0
    ending[3:] = 0.0
    common = strongest_in_common(reaching, ending, SCENARIOS, [6])[6]
    assert common.between == 0.0
    assert common.first > 0.3
    assert likeness(reaching, ending, SCENARIOS).value < 0.2


def test_the_same_circuit_has_its_strongest_heads_in_common_and_other_circuits_no_more_than_chance():
    same = effects(0)
    found = strongest_in_common(same(1), same(2), SCENARIOS, [6])[6]
    assert found.between == found.first == found.second == 1.0
    others = [strongest_in_common(effects(i)(1), effects(100 + i)(2), SCENARIOS, [6])[6] for i in range(30)]
    assert np.mean([each.between for each in others]) == pytest.approx(others[0].chance, abs=0.04)
    assert others[0].first == 1.0
    assert abs(np.mean([likeness(effects(i)(1), effects(100 + i)(2), SCENARIOS).value for i in range(30)])) < 0.1


def test_the_chance_overlap_is_that_of_random_sets():
    """Of 7 heads 5 help in one model and 2 in the other: of the 4 strongest, 4 and 2 heads are shared by chance."""
    draws = [({*a}, {*b}) for a in itertools.combinations(range(7), 4) for b in itertools.combinations(range(7), 2)]
    common = np.mean([len(a & b) for a, b in draws])
    first, second = np.ones((1, 7, N_PROMPTS)), np.ones((1, 7, N_PROMPTS))
    first[0, :5], second[0, 3:5] = -1.0, -2.0
    assert strongest_in_common(first, second, SCENARIOS, [4])[4].chance == pytest.approx(common / (6 - common))


def test_strongest_heads_in_common_are_among_those_that_help():
    first, second = np.ones((1, 7, N_PROMPTS)), np.ones((1, 7, N_PROMPTS))
    first[0, :5], second[0, 3:5] = -1.0 - np.arange(5)[:, None], -2.0
    found = strongest_in_common(first, second, SCENARIOS, [1, 2, 4])
    assert [found[k].between for k in (1, 2, 4)] == pytest.approx([0.0, 1.0, 0.5])
    assert np.isnan(strongest_in_common(np.abs(first), np.abs(first), SCENARIOS, [1])[1].between)


def test_by_chance_a_head_that_was_not_measured_could_be_among_the_strongest():
    whole = effects(0)(1)
    few = whole.copy()
    few[2:] = np.nan
    chance = strongest_in_common(few, few, SCENARIOS, [3])[3].chance
    n = N_LAYERS * N_HEADS
    assert chance == pytest.approx((9 / n) / (6 - 9 / n))


def test_heads_that_can_have_no_effect_are_not_tested():
    """With them among the tests, a head that changed a little would be lost."""
    g = np.random.default_rng(0)
    before, after = np.zeros((2, 50, 7, N_PROMPTS))
    before[0], after[0] = 0.3 * g.normal(size=(2, 7, N_PROMPTS))
    after[0, 2] = before[0, 2] + 0.1 * (1 + 1.5 * g.normal(size=N_PROMPTS))
    alone = [change.adjusted_p for change in changed_heads(before[:1], after[:1], SCENARIOS)]
    assert [change.head for change in changed_heads(before, after, SCENARIOS)] == [Head(0, 2)]
    assert [change.adjusted_p for change in changed_heads(before, after, SCENARIOS)] == alone


def test_a_head_that_was_not_measured_in_both_counts_among_those_that_could_have_changed():
    before, after = (effects(0)(draw) for draw in (1, 2))
    after[0, 2] -= 0.5
    [whole] = changed_heads(before, after, SCENARIOS)
    few = np.zeros((N_LAYERS, N_HEADS), dtype=bool)
    few[0, :4] = True
    some = [np.where(few[..., None], each, np.nan) for each in (before, after)]
    [found] = changed_heads(*some, SCENARIOS)
    assert found.head == whole.head == Head(0, 2)
    assert found.adjusted_p == pytest.approx(whole.adjusted_p)
    some = [np.where(few[..., None], each, 0.0) for each in (before, after)]
    [alone] = changed_heads(*some, SCENARIOS)
    assert alone.adjusted_p == pytest.approx(found.adjusted_p * 4 / (N_LAYERS * N_HEADS))


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


def test_maps_of_other_shapes_and_too_few_scenarios_are_refused():
    first, second, alone = effects(0)(1), effects(0)(2), np.zeros(N_PROMPTS, dtype=int)
    with pytest.raises(InputError, match="must have one shape"):
        likeness(first, second[:4], SCENARIOS)
    with pytest.raises(InputError, match="at least three scenarios; got 2"):
        likeness(first, second, np.arange(N_PROMPTS) % 2)
    with pytest.raises(InputError, match="at least two scenarios; got 1"):
        strongest_in_common(first, second, alone, [3])
