import numpy as np
import pytest
from scipy import stats

from circuitdiff.errors import InputError
from circuitdiff.stats.intervals import (
    cluster_p_values,
    cluster_weights,
    false_discovery_adjusted,
    mean_interval,
    normalised_ratio_interval,
    one_sided,
    ratio_bounds,
    ratio_interval,
)

PAIRS_OF_PROMPTS = np.repeat(np.arange(40), 2)


def clustered(generator, shape, scenarios, spread_between=1.0, spread_within=1.0):
    """Normal values of mean 0 whose scenario brings a shift of its own."""
    shift = generator.normal(size=(*shape, scenarios.max() + 1))[..., scenarios]
    return spread_between * shift + spread_within * generator.normal(size=(*shape, len(scenarios)))


def pivot_quantiles_by_hand(residuals, sizes, weights):
    """Of the mean over its standard error, resample by resample; residuals are scenarios' totals."""
    added = sum(r**2 for r in residuals) / len(residuals)
    pivots = []
    for counts in weights:
        n = sum(c * m for c, m in zip(counts, sizes, strict=True))
        mean = sum(c * r for c, r in zip(counts, residuals, strict=True)) / n
        squares = sum(c * (r - mean * m) ** 2 for c, r, m in zip(counts, residuals, sizes, strict=True))
        pivots.append(mean / (np.sqrt(squares + added) / n))
    return np.quantile(pivots, [0.025, 0.975])


def error_by_hand(residuals, n):
    squares = sum(r**2 for r in residuals)
    return np.sqrt(squares + squares / len(residuals)) / n


UNEQUAL = np.repeat(np.arange(6), [1, 2, 3, 1, 2, 3])
FIRST = [0, 1, 3, 6, 7, 9]  # of each scenario's prompts


def test_a_resampled_scenario_brings_all_of_its_prompts():
    scenarios = np.array([7, 3, 7, 9, 7])
    weights = cluster_weights(scenarios)
    assert weights.shape == (2000, 5)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()
    assert len(np.unique(weights, axis=0)) > 5


def test_the_interval_of_a_mean_agrees_with_its_looped_definition():
    values = np.random.default_rng(1).exponential(size=12)
    sizes = [1, 2, 3, 1, 2, 3]
    residuals = [sum(v - values.mean() for v in values[s == UNEQUAL]) for s in range(6)]
    low, high = pivot_quantiles_by_hand(residuals, sizes, cluster_weights(UNEQUAL)[:, FIRST])
    error = error_by_hand(residuals, 12)
    expected = (values.mean(), values.mean() - high * error, values.mean() - low * error)
    interval = mean_interval(values, UNEQUAL)
    assert interval == pytest.approx(expected, abs=1e-10)
    assert all(type(bound) is float for bound in interval)


def test_of_a_mean_of_skewed_values_it_agrees_with_scipys_bca():
    """Both are of second order. BCa's is a few percent narrower: it does not allow for the unknown variance."""
    values = np.random.default_rng(2).exponential(size=200)
    bca = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=9999, rng=np.random.default_rng(3))
    interval = mean_interval(values, np.arange(200))
    low, high = bca.confidence_interval
    # 12 % of the half width: Monte Carlo errors of both, and what is of third order
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.12 * (high - low) / 2)
    assert interval.high - values.mean() > 1.1 * (values.mean() - interval.low), "skewed as the values are"


def test_of_many_normal_values_it_is_students():
    values = np.random.default_rng(4).normal(size=(50, 400))
    interval = mean_interval(values, np.arange(400))
    half = stats.t.ppf(0.975, 399) * values.std(1, ddof=1) / 20
    assert (np.asarray(interval.high) - values.mean(1)).mean() == pytest.approx(
        half.mean(), rel=0.03
    )  # 2,000 resamples
    assert (values.mean(1) - np.asarray(interval.low)).mean() == pytest.approx(half.mean(), rel=0.03)


def test_values_that_never_vary_have_bounds_at_their_mean_and_one_that_differs_finite_ones():
    rows = np.zeros((3, 50))
    rows[1], rows[2, 7] = 2.5, 1.0
    low, high = mean_interval(rows, np.arange(50))[1:]
    assert [low[0], high[0], low[1], high[1]] == pytest.approx([0, 0, 2.5, 2.5])
    assert low[2] < 0.02 < high[2] < 0.3


def test_intervals_cover_the_truth_as_often_as_they_say_and_naive_ones_do_not():
    values = clustered(np.random.default_rng(2), (1500,), np.repeat(np.arange(50), 3))
    by_scenario = mean_interval(values, np.repeat(np.arange(50), 3))
    by_prompt = mean_interval(values, np.arange(150))
    covered, naive = (((i.low <= 0) & (i.high >= 0)).mean() for i in (by_scenario, by_prompt))
    assert 0.935 < covered < 0.965  # three standard errors of 1500 draws
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


def test_a_ratio_takes_numerator_and_denominator_together():
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


def fieller_by_hand(above, below, quantile, variance):
    """Where (above - r below)^2 = quantile^2 times its variance; `variance` of both sums."""
    (aa, ab), (_, bb) = variance
    return sorted(
        np.roots(
            [
                below**2 - quantile**2 * bb,
                -2 * (above * below - quantile**2 * ab),
                above**2 - quantile**2 * aa,
            ]
        )
    )


def sums_of_products(rows, scenarios, added):
    """Of the scenarios' totals about their means, with `added` to each."""
    products = np.array(added, dtype=float)
    means = [row.mean() for row in rows]
    names = np.unique(scenarios)
    for name in names:
        totals = [(row[scenarios == name] - mean).sum() for row, mean in zip(rows, means, strict=True)]
        products += np.outer(totals, totals) * (1 + 1 / len(names))
    return products


def test_a_ratio_has_fiellers_interval_with_the_bootstraps_quantiles():
    generator = np.random.default_rng(12)
    below = generator.gamma(9, size=12)
    above = below * generator.uniform(0.2, 0.8, size=12)
    ratio = above.sum() / below.sum()
    residuals = [(above - ratio * below)[s == UNEQUAL].sum() for s in range(6)]
    low, high = pivot_quantiles_by_hand(residuals, [1, 2, 3, 1, 2, 3], cluster_weights(UNEQUAL)[:, FIRST])
    variance = sums_of_products((above, below), UNEQUAL, np.zeros((2, 2)))
    lowest, _ = fieller_by_hand(above.sum(), below.sum(), high, variance)
    _, highest = fieller_by_hand(above.sum(), below.sum(), low, variance)
    assert ratio_interval(above, below, UNEQUAL)[:3] == pytest.approx((ratio, lowest, highest), abs=1e-9)
    assert ratio_bounds(-above, -below, UNEQUAL, hits=False) == pytest.approx((lowest, highest), abs=1e-9)


def test_a_ratio_of_hits_has_fiellers_interval_with_a_few_scenarios_of_each_kind_added():
    scenarios = np.repeat(np.arange(30), [1, 2, 3] * 10)
    model, circuit = np.arange(60) % 5 != 0, np.arange(60) % 5 > 1
    k = stats.norm.ppf(0.975) ** 2 / 2 * ((1 + 4 + 9) * 10 / 60) ** 2
    variance = sums_of_products((circuit * 1.0, model * 1.0), scenarios, [[2 * k, k], [k, 2 * k]])
    low, high = fieller_by_hand(36, 48, stats.t.ppf(0.975, 29), variance)
    assert ratio_interval(circuit, model, scenarios)[:3] == pytest.approx((0.75, low, high))


def test_a_circuit_that_answers_as_the_model_does_may_not_on_other_prompts():
    """Nothing differs in the sample; the ratio's interval is Tango's for the difference, by the model's share."""
    hits = np.arange(400) % 2 == 0
    z = stats.norm.ppf(0.975)
    interval = ratio_interval(hits, hits, np.arange(400))
    assert interval[:3] == pytest.approx((1, 1 - z**2 / 200, 1 + z**2 / 200), abs=0.001)
    nothing = ratio_interval(np.zeros(400, dtype=bool), hits, np.arange(400))
    assert nothing[:2] == (0, 0)
    assert nothing.high == pytest.approx(z**2 / 200, abs=0.001)


def test_ratios_of_differences_of_hits_count_them_as_hits():
    ablated, model = np.zeros(80, dtype=bool), np.arange(80) % 2 == 0
    interval = normalised_ratio_interval(model, ablated, model, np.arange(80))
    assert interval.low < 0.95 < 1.05 < interval.high
    assert interval[:3] == pytest.approx(ratio_interval(model * 1, model * 1, np.arange(80))[:3])


def test_bounds_are_infinite_where_the_denominator_may_be_zero():
    assert ratio_bounds(np.ones(80), np.tile([1.0, -0.9], 40), np.arange(80), hits=False) == (-np.inf, np.inf)
    assert ratio_bounds(np.ones(4), np.tile([1.0, -1.0], 2), np.arange(4), hits=False) == (-np.inf, np.inf)


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
