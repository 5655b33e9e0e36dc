"""Intervals for shares of hits and their differences, against loops, scipy and the definition of a score test."""

from itertools import product

import numpy as np
import pytest
from scipy import optimize, stats

from circuitdiff.errors import InputError
from circuitdiff.stats.proportions import accuracy_interval, difference_interval, paired_interval

Z = stats.norm.ppf(0.975)


def effective_by_hand(values, scenarios, level=0.95):
    """Prompts over the design effect, scenario by scenario."""
    z = stats.norm.ppf((1 + level) / 2)
    n, mean = len(values), sum(values) / len(values)
    members = [[v for v, s in zip(values, scenarios, strict=True) if s == name] for name in sorted(set(scenarios))]
    one = sum(len(each) ** 2 for each in members) / n
    between = sum(sum(v - mean for v in each) ** 2 for each in members) + z**2 / 2 * one**2
    within = sum((v - mean) ** 2 for v in values) + z**2 / 2 * one
    few = stats.t.ppf((1 + level) / 2, n - 1) / stats.t.ppf((1 + level) / 2, len(members) - 1)
    return n / (between / within) * few**2


def wilson_by_hand(p, n):
    """Where (p - truth)^2 = z^2 truth (1 - truth) / n."""
    return sorted(np.roots([1 + Z**2 / n, -2 * p - Z**2 / n, p**2]).real)


def variance_given(difference, won, lost, n):
    """The variance of won - lost at the largest likelihood with this true difference."""

    def negative(share_lost):
        shares = np.array([share_lost + difference, share_lost, 1 - 2 * share_lost - difference])
        counts = np.array([won, lost, n - won - lost])
        return -np.sum(counts * np.log(np.maximum(shares, 1e-300)))

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    share = optimize.minimize_scalar(negative, bounds=bounds, method="bounded", options={"xatol": 1e-11}).x
    return n * (2 * share + difference - difference**2)


def highest_by_hand(won, lost, n):
    """The difference that the score test just rejects."""

    def excess(difference):
        return n * difference - (won - lost) - Z * np.sqrt(variance_given(difference, won, lost, n))

    return optimize.brentq(excess, (won - lost) / n + 1e-9, 1 - 1e-9, xtol=1e-10)


def tables(n, most):
    """Rows of every table with at most so many wins and losses among n prompts, by (wins, losses)."""
    found = {}
    for won, lost in product(range(most + 1), repeat=2):
        if won + lost <= min(n, most):
            found[won, lost] = np.repeat([1.0, -1.0, 0.0], [won, lost, n - won - lost])
    return found


@pytest.mark.parametrize("n_hits", [0, 1, 13, 39, 40])
def test_with_one_prompt_per_scenario_an_accuracy_has_wilsons_interval(n_hits):
    interval = accuracy_interval(np.arange(40) < n_hits, np.arange(40))
    wilson = stats.binomtest(n_hits, 40).proportion_ci(method="wilson")
    assert interval == pytest.approx((n_hits / 40, wilson.low, wilson.high), abs=1e-12)
    assert all(type(bound) is float for bound in interval)


def test_of_scenarios_with_several_prompts_it_is_wilsons_for_the_effective_number():
    scenarios = np.repeat(np.arange(12), [1, 2, 3] * 4)
    for seed in range(5):
        hits = np.random.default_rng(seed).random(24) < 0.4
        low, high = wilson_by_hand(hits.mean(), effective_by_hand(hits.astype(float), scenarios))
        assert accuracy_interval(hits, scenarios) == pytest.approx((hits.mean(), low, high), abs=1e-9)


def test_copies_of_a_prompt_tell_no_more_than_the_prompt():
    alone, copied = np.arange(200) % 3 == 0, np.repeat(np.arange(200) % 3 == 0, 4)
    one, four = accuracy_interval(alone, np.arange(200)), accuracy_interval(copied, np.repeat(np.arange(200), 4))
    assert four == pytest.approx(one, abs=0.002)  # by Student's quantile, of 199 instead of 799
    independent = accuracy_interval(copied, np.arange(800))
    assert (one.high - one.low) / (independent.high - independent.low) == pytest.approx(2, abs=0.03)


def test_without_a_hit_scenarios_count_however_many_prompts_they_have():
    high = accuracy_interval(np.zeros(80), np.repeat(np.arange(40), 2)).high
    n = 40 * (stats.t.ppf(0.975, 79) / stats.t.ppf(0.975, 39)) ** 2
    assert high == pytest.approx(Z**2 / (n + Z**2))


@pytest.mark.parametrize(("n", "won", "lost"), [(20, 0, 0), (20, 3, 0), (20, 0, 3), (20, 5, 2), (31, 4, 4), (9, 9, 0)])
def test_a_paired_difference_has_the_interval_of_its_score_test(n, won, lost):
    interval = paired_interval(np.repeat([1.0, -1.0, 0.0], [won, lost, n - won - lost]), np.arange(n))
    high = 1.0 if won == n else highest_by_hand(won, lost, n)
    low = -1.0 if lost == n else -highest_by_hand(lost, won, n)
    assert interval == pytest.approx(((won - lost) / n, low, high), abs=1e-6)  # of the optimiser


def test_of_clustered_pairs_all_counts_are_divided_by_the_design_effect():
    scenarios = np.repeat(np.arange(15), [1, 2, 3] * 5)
    d = np.random.default_rng(0).choice([-1.0, 0, 0, 1], size=30)
    n = effective_by_hand(d, scenarios)
    won, lost = n * (d == 1).mean(), n * (d == -1).mean()
    expected = (d.mean(), -highest_by_hand(lost, won, n), highest_by_hand(won, lost, n))
    assert paired_interval(d, scenarios) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("n", "most"), [(2, 2), (3, 3), (5, 5), (8, 8), (13, 13), (21, 21), (60, 12), (100, 9), (300, 7)]
)
def test_one_difference_more_never_makes_two_models_look_more_equal(n, most):
    rows = tables(n, most)
    bounds = paired_interval(np.array(list(rows.values())), np.arange(n))
    high, low = (dict(zip(rows, np.asarray(each), strict=True)) for each in (bounds.high, bounds.low))
    for won, lost in rows:
        if (won + 1, lost) in rows:
            assert high[won + 1, lost] >= high[won, lost] - 1e-12
            assert low[lost, won + 1] <= low[lost, won] + 1e-12 if (lost, won + 1) in rows else True
            if won >= lost:
                before, after = ((max(high[at], -low[at])) for at in ((won, lost), (won + 1, lost)))
                assert after >= before - 1e-12


@pytest.mark.parametrize(("n_scenarios", "size", "unchanged"), [(4, 2, 0), (2, 4, 0), (3, 2, 20), (2, 3, 30)])
def test_nor_does_it_in_a_scenario_in_which_no_prompt_differs_the_other_way(n_scenarios, size, unchanged):
    rows = np.array(list(product((-1.0, 0.0, 1.0), repeat=n_scenarios * size)))
    scenarios = np.repeat(np.arange(n_scenarios + unchanged), size)

    def bounds(some):
        return paired_interval(np.concatenate([some, np.zeros((len(some), unchanged * size))], axis=1), scenarios)

    before = bounds(rows)
    can = (rows[:, 0] == 0) & (rows[:, 1:size] >= 0).all(1)
    more = rows[can].copy()
    more[:, 0] = 1
    after = bounds(more)
    assert (np.asarray(after.high) >= np.asarray(before.high)[can] - 1e-12).all()


def test_models_that_never_differ_may_differ_on_other_prompts():
    hits = np.arange(80) % 3 == 0
    most = Z**2 / (80 + Z**2)
    assert difference_interval(hits, hits, np.arange(80)) == pytest.approx((0, -most, most))


def test_the_first_models_hits_count_for_it():
    first, second = np.arange(60) < 20, np.arange(60) < 8
    expected = paired_interval(np.repeat([0.0, 1.0, 0.0], [8, 12, 40]), np.arange(60))
    assert difference_interval(first, second, np.arange(60)) == pytest.approx(tuple(expected))
    assert difference_interval(second, first, np.arange(60)).high == pytest.approx(-expected.low)


def test_many_rows_at_once_give_each_row_its_own_interval_at_every_level():
    rows = np.random.default_rng(1).choice([-1.0, 0, 1], size=(2, 3, 40))
    together = paired_interval(rows, np.arange(40) // 2, level=0.8)
    alone = paired_interval(rows[1, 2], np.arange(40) // 2, level=0.8)
    assert [np.asarray(bound)[1, 2] for bound in together] == pytest.approx(list(alone))
    wider = paired_interval(rows[1, 2], np.arange(40) // 2)
    assert wider.low < alone.low < alone.high < wider.high


def test_one_scenario_has_no_bounds_and_no_prompts_are_refused():
    for interval in (accuracy_interval(np.ones(3), np.zeros(3, int)), paired_interval(np.ones(3), np.zeros(3, int))):
        assert interval.value == 1
        assert np.isnan([interval.low, interval.high]).all()
    with pytest.raises(InputError, match="at least one prompt"):
        accuracy_interval(np.zeros(0), np.zeros(0, dtype=int))
