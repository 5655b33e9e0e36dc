"""Areas of curves against integrals on a fine grid, and their intervals against repeated draws."""

import numpy as np
import pytest

from circuitdiff.errors import InputError
from circuitdiff.stats.curves import curve_areas

SHARES = np.array([0.05, 0.3, 0.6, 1.0])
SCENARIOS = np.arange(40)


def scores(*means: float, spread: float = 0.0, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(len(means), len(SCENARIOS)))
    return np.array(means)[:, None] + spread * noise


def on_a_grid(f: list[float], what) -> float:
    x = np.linspace(0, 1, 200_001)
    return float(np.trapezoid(what(np.interp(x, [0, *SHARES], [0, *f])), x))


@pytest.mark.parametrize("f", [[0.2, 0.5, 0.9, 1.0], [0.4, 1.3, 0.7, 1.1], [-0.5, 1.5, 2.0, 1.0]])
def test_areas_are_integrals_of_straight_pieces(f):
    ablated, model = 2.0, 6.0
    circuits = scores(*(ablated + 4 * each for each in f))
    found = curve_areas(circuits[None], scores(ablated)[0], scores(model)[0], SHARES, SCENARIOS)
    np.testing.assert_allclose(found.faithfulness.value, f, rtol=1e-12)
    assert found.cpr.value == pytest.approx(on_a_grid(f, lambda y: y), abs=1e-8)
    assert found.cmd.value == pytest.approx(on_a_grid(f, lambda y: np.abs(1 - y)), abs=1e-8)
    assert (found.cpr.low, found.cpr.high) == pytest.approx((found.cpr.value,) * 2), "nothing varies"


def test_intervals_hold_what_scenarios_leave_open():
    circuits = scores(1.0, 2.0, 3.0, 4.0, spread=2.0)
    found = curve_areas(circuits[None], scores(0.0)[0], scores(4.0, spread=1.0, seed=1)[0], SHARES, SCENARIOS)
    for interval in (found.cpr, found.cmd):
        assert interval.low < interval.value < interval.high
    twice = np.concatenate([circuits, circuits], axis=1)
    both = curve_areas(
        twice[None], np.zeros(80), np.tile(scores(4.0, spread=1.0, seed=1)[0], 2), SHARES, np.tile(SCENARIOS, 2)
    )
    assert both.cpr == pytest.approx(found.cpr), "a scenario asked twice says no more"


def test_a_model_that_is_no_better_than_ablated_has_no_faithfulness():
    found = curve_areas(scores(1.0, 2.0, 3.0, 4.0)[None], scores(4.0)[0], scores(4.0)[0], SHARES, SCENARIOS)
    assert np.isnan(found.faithfulness.value).all()
    assert np.isnan([*found.cpr, *found.cmd]).all()


@pytest.mark.parametrize("shares", [[0.1, 0.1, 0.5, 1.0], [0.0, 0.2, 0.5, 1.0], [0.1, 0.2, 0.5, 0.9]])
def test_shares_rise_to_one(shares):
    with pytest.raises(InputError, match="must rise"):
        curve_areas(scores(1, 2, 3, 4)[None], scores(0.0)[0], scores(4.0)[0], np.array(shares), SCENARIOS)


def test_each_order_has_its_own_areas():
    """Half too much in one and half too little in the other: their mean is 1, but neither is."""
    orders = np.stack([scores(0.5, 1.5, 1.0, 1.0), scores(1.5, 0.5, 1.0, 1.0)])
    found = curve_areas(orders, scores(0.0)[0], scores(1.0)[0], SHARES, SCENARIOS)
    alone = [curve_areas(each[None], scores(0.0)[0], scores(1.0)[0], SHARES, SCENARIOS) for each in orders]
    for what in ("cpr", "cmd"):
        assert getattr(found, what).value == pytest.approx(np.mean([getattr(each, what).value for each in alone]))
    np.testing.assert_allclose(found.faithfulness.value, [1.0, 1.0, 1.0, 1.0])
    assert found.cmd.value > 0.1


def test_one_scenario_bounds_nothing():
    found = curve_areas(
        scores(1.0, 2.0, 3.0, 4.0)[None], scores(0.0)[0], scores(4.0)[0], SHARES, np.zeros(len(SCENARIOS), dtype=int)
    )
    assert np.isnan([*found.cpr, *found.cmd]).all()
