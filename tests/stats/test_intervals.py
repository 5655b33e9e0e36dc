import numpy as np
import pytest
from scipy import stats

from circuitdiff.errors import InputError
from circuitdiff.stats.intervals import (
    accuracy_interval,
    cluster_p_values,
    cluster_resamples,
    difference_interval,
    false_discovery_adjusted,
    mean_interval,
    normalised_ratio_interval,
    one_sided,
    ratio_interval,
)

PAIRS_OF_PROMPTS = np.repeat(np.arange(40), 2)


def clustered(generator, shape, scenarios, spread_between=1.0, spread_within=1.0):
    """Normal values of mean 0 whose scenario brings a shift of its own."""
    shift = generator.normal(size=(*shape, scenarios.max() + 1))[..., scenarios]
    return spread_between * shift + spread_within * generator.normal(size=(*shape, len(scenarios)))


def test_a_resampled_scenario_brings_all_of_its_prompts():
    scenarios = np.array([7, 3, 7, 9, 7])
    weights = cluster_resamples(scenarios, 50, np.random.default_rng(0))
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()
    assert len(np.unique(weights, axis=0)) > 5


def test_the_interval_agrees_with_resampling_scenarios_one_by_one():
    generator = np.random.default_rng(1)
    values = clustered(generator, (), PAIRS_OF_PROMPTS)
    members = [np.flatnonzero(scenario == PAIRS_OF_PROMPTS) for scenario in range(40)]
    means = [values[np.concatenate([members[i] for i in generator.integers(0, 40, 40)])].mean() for _ in range(4000)]
    interval = mean_interval(values, PAIRS_OF_PROMPTS)
    assert interval.value == pytest.approx(values.mean())
    # 0.03: Monte Carlo errors of a 2.5 % quantile from 4000 and 2000 resamples, where the standard error is about 0.19
    assert [interval.low, interval.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)


def test_intervals_cover_the_truth_as_often_as_they_say_and_naive_ones_do_not():
    values = clustered(np.random.default_rng(2), (1500,), np.repeat(np.arange(50), 3))
    by_scenario = mean_interval(values, np.repeat(np.arange(50), 3))
    by_prompt = mean_interval(values, np.arange(150))
    covered, naive = (((i.low <= 0) & (i.high >= 0)).mean() for i in (by_scenario, by_prompt))
    # With 50 scenarios the percentile bootstrap should cover 2 * t_cdf(1.96 * sqrt(49/50), 49) - 1 = 0.942
    assert 0.925 < covered < 0.96
    assert naive < 0.85


def test_many_rows_at_once_give_each_row_its_own_interval_and_nan_rows_stay_nan():
    values = np.random.default_rng(3).normal(size=(2, 3, 80))
    values[1, 0] = np.nan
    together = mean_interval(values, PAIRS_OF_PROMPTS)
    alone = mean_interval(values[0, 2], PAIRS_OF_PROMPTS)
    assert together.low.shape == (2, 3)
    assert [together.low[0, 2], together.high[0, 2]] == pytest.approx([float(alone.low), float(alone.high)])
    assert np.isnan([bound[1, 0] for bound in together]).all()
    assert np.isfinite(np.delete(together.low.ravel(), 3)).all()


def test_one_scenario_has_no_bounds_and_no_prompts_are_refused():
    interval = mean_interval(np.array([1.0, 2.0]), np.array([0, 0]))
    assert interval.value == 1.5
    assert np.isnan([interval.low, interval.high]).all()
    with pytest.raises(InputError, match="at least one prompt"):
        mean_interval(np.zeros(0), np.zeros(0, dtype=int))


def test_accuracies_of_0_and_1_get_wilsons_interval_on_the_number_of_scenarios():
    z = stats.norm.ppf(0.975)
    bound = z**2 / (40 + z**2)  # Wilson at 0 hits of n: from 0 to z^2 / (n + z^2)
    none = accuracy_interval(np.zeros(80, dtype=bool), PAIRS_OF_PROMPTS)
    every = accuracy_interval(np.ones(80, dtype=bool), PAIRS_OF_PROMPTS)
    assert none == pytest.approx((0, 0, bound))
    assert every == pytest.approx((1, 1 - bound, 1))


def test_other_accuracies_get_the_bootstrap_and_plain_floats():
    hits = np.arange(80) % 4 == 0
    interval = accuracy_interval(hits, PAIRS_OF_PROMPTS)
    assert interval == pytest.approx(tuple(float(b) for b in mean_interval(hits, PAIRS_OF_PROMPTS)))
    assert all(type(bound) is float for bound in interval)


def test_a_paired_difference_loses_what_both_share():
    generator = np.random.default_rng(4)
    first = generator.normal(size=80)
    paired = difference_interval(first + 0.5, first, PAIRS_OF_PROMPTS)
    assert paired == pytest.approx((0.5, 0.5, 0.5))


def test_hits_that_never_differ_may_differ_on_other_prompts():
    hits, scenarios = np.arange(80) % 3 == 0, np.arange(80) // 2
    most = accuracy_interval(np.zeros(80), scenarios).high  # Wilson's bound for none of 40 scenarios
    assert difference_interval(hits, hits, scenarios) == pytest.approx((0, -most, most))
    assert difference_interval(hits.astype(float), hits.astype(float), scenarios) == (0, 0, 0)
    one = hits.copy()
    one[0] = False
    assert difference_interval(hits, one, scenarios).value == pytest.approx(1 / 80)


def test_a_ratio_resamples_numerator_and_denominator_together():
    denominator = np.random.default_rng(5).uniform(0.2, 1, size=80)
    assert ratio_interval(0.75 * denominator, denominator, PAIRS_OF_PROMPTS)[:3] == pytest.approx((0.75,) * 3)


def test_a_ratio_agrees_with_the_delta_method():
    generator = np.random.default_rng(6)
    below = generator.normal(3, 1, size=400)
    above = 0.5 * below + generator.normal(0, 1, size=400)
    ratio = above.mean() / below.mean()
    half = 1.96 * np.std(above - ratio * below) / below.mean() / 20
    interval = ratio_interval(above, below, np.arange(400))
    # 10 % of the half width: Monte Carlo error of the quantiles, and the delta method is of first order
    assert interval[:3] == pytest.approx((ratio, ratio - half, ratio + half), abs=0.1 * half)


def test_a_ratio_by_what_may_be_zero_is_undefined_and_says_why():
    denominator = np.tile([1.0, -0.9], 40)
    result = ratio_interval(np.ones(80), denominator, np.arange(80))
    assert np.isnan(result[:3]).all()
    assert result.undefined is not None
    assert "the denominator is 0.05" in result.undefined


def test_a_share_of_what_is_below_0_is_undefined():
    below = ratio_interval(np.full(80, -3.0), np.full(80, -1.0), PAIRS_OF_PROMPTS)
    assert np.isnan(below[:3]).all()
    assert "not surely above 0" in str(below.undefined)


def test_the_normalised_ratio_is_0_for_the_ablated_and_1_for_the_model():
    generator = np.random.default_rng(7)
    ablated, model = generator.uniform(0, 0.2, 80), generator.uniform(0.6, 1, 80)
    halfway = (ablated + model) / 2
    assert normalised_ratio_interval(ablated, ablated, model, PAIRS_OF_PROMPTS).value == pytest.approx(0)
    assert normalised_ratio_interval(model, ablated, model, PAIRS_OF_PROMPTS)[:3] == pytest.approx((1, 1, 1))
    assert normalised_ratio_interval(halfway, ablated, model, PAIRS_OF_PROMPTS).value == pytest.approx(0.5)


def test_p_values_are_those_of_a_t_test_on_scenario_means():
    values = clustered(np.random.default_rng(8), (3, 4), PAIRS_OF_PROMPTS) + 0.2
    expected = stats.ttest_1samp(values.reshape(3, 4, 40, 2).mean(-1), 0, axis=-1)
    actual = cluster_p_values(values, PAIRS_OF_PROMPTS, n_flips=9)
    np.testing.assert_allclose(actual.p, expected.pvalue)
    np.testing.assert_allclose(actual.t, expected.statistic)


def test_max_t_of_one_row_is_its_exact_sign_flip_p():
    values = np.array([3.0, 2.0, 4.0, -1.0, 2.5, 1.0])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T
    exact = (abs(signs @ values) >= abs(values.sum())).mean()
    actual = cluster_p_values(values[None], np.arange(6), n_flips=20_000)
    assert actual.max_t_p[0] == pytest.approx(exact, abs=0.006)  # four standard errors of 20,000 flips at p = 0.06


def test_max_t_errs_in_few_families_of_pure_noise_where_raw_p_errs_in_most():
    generator = np.random.default_rng(9)
    families = [cluster_p_values(generator.normal(size=(40, 24)), np.arange(24), n_flips=199) for _ in range(200)]
    false_alarm = np.mean([(family.max_t_p <= 0.05).any() for family in families])
    assert 0.01 < false_alarm < 0.1
    assert np.mean([(family.p <= 0.05).any() for family in families]) > 0.7


def test_max_t_sees_through_copies_of_one_row():
    row = np.random.default_rng(10).normal(0.4, 1, size=(1, 40))
    alone = cluster_p_values(row, np.arange(40))
    copied = cluster_p_values(np.repeat(row, 100, axis=0), np.arange(40))
    np.testing.assert_array_equal(copied.max_t_p, alone.max_t_p[0])


def test_rows_of_zeros_have_p_1_and_unmeasured_rows_or_a_single_scenario_have_none():
    values = np.random.default_rng(11).normal(size=(3, 80))
    values[1], values[2, 5] = 0, np.nan
    test = cluster_p_values(values, PAIRS_OF_PROMPTS, n_flips=99)
    assert (test.p[1], test.max_t_p[1]) == (1, 1)
    assert np.isnan([test.p[2], test.max_t_p[2]]).all()
    assert np.isnan(cluster_p_values(values, np.zeros(80, dtype=int), n_flips=9).p).all()


def test_a_one_sided_p_is_half_on_the_named_side_and_the_rest_on_the_other():
    rows = np.array([[-1.0, -2.0, -3.0, -2.5]] * 2)
    test = cluster_p_values(rows, np.arange(4), n_flips=9)
    expected = stats.ttest_1samp(rows[0], 0, alternative="less").pvalue
    np.testing.assert_allclose(one_sided(test, np.array([True, False])), [expected, 1 - expected])


def test_false_discovery_control_by_hand_and_without_the_unmeasured():
    p = np.array([[0.01, np.nan], [0.04, 0.03]])
    # sorted 0.01, 0.03, 0.04 of three: 0.03, 0.045, 0.04; the smaller of each and all later ones: 0.03, 0.04, 0.04
    np.testing.assert_allclose(false_discovery_adjusted(p), [[0.03, np.nan], [0.04, 0.04]])
    assert np.isnan(false_discovery_adjusted(np.full(3, np.nan))).all()
