"""Intervals that meet a requirement, refute it, or leave it open; and a "no" that is adjusted for many tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from circuitdiff.study.estimates import Estimate
from circuitdiff.study.judge import Requirement, above, holm, judged, leaves_room, within
from helpers.invented_evidence import bounds, near

UNDEFINED = Estimate(None, None, None)


@pytest.mark.parametrize(
    ("low", "high", "met"), [(0.1, 0.3, True), (-0.1, 0.3, None), (-0.3, 0.0, False), (-0.3, -0.1, False)]
)
def test_an_interval_is_above_a_bound_below_it_or_across(low, high, met):
    assert above(bounds(low, high)).met is met
    assert above(bounds(low + 1, high + 1), 1.0).met is met


@pytest.mark.parametrize(
    ("low", "high", "met"),
    [(-0.05, 0.05, True), (-0.06, 0.02, None), (0.06, 0.1, False), (-0.2, -0.06, False), (0.01, 0.2, None)],
)
def test_an_interval_is_within_two_bounds_outside_or_across(low, high, met):
    assert within(bounds(low, high), -0.05, 0.05).met is met


def test_what_is_undefined_is_open():
    for test in (above(UNDEFINED), within(None, 0, 1), above(None)):
        assert (test.met, test.p_met, test.p_refuted) == (None, 1.0, 1.0)


def test_p_is_that_of_a_normal_estimate():
    value, error = 0.4, 0.1
    estimate = Estimate(value, *(value + sign * stats.norm.isf(0.025) * error for sign in (-1, 1)))
    assert above(estimate, 0.15).p_met == pytest.approx(stats.norm.sf(2.5))
    assert above(estimate, 0.65).p_refuted == pytest.approx(stats.norm.sf(2.5))
    test = within(estimate, 0.1, 0.6)
    assert test.p_met == pytest.approx(stats.norm.sf(2))
    assert within(estimate, 0.7, 0.9).p_refuted == pytest.approx(stats.norm.sf(3))


@pytest.mark.parametrize("bound", np.linspace(-0.3, 0.9, 13))
def test_an_interval_and_its_p_say_the_same(bound):
    estimate = Estimate(0.3, 0.11, 0.52)  # not symmetric
    for test in (above(estimate, bound), within(estimate, bound), within(estimate, -1, bound)):
        assert (test.met is True) == (test.p_met <= 0.025)
        assert (test.met is False) == (test.p_refuted <= 0.025)


def test_an_exact_number_has_no_error():
    assert above(Estimate(0.2, 0.2, 0.2), 0.1).p_met == 0.0
    assert above(Estimate(0.2, 0.2, 0.2), 0.3).p_refuted == 0.0


def test_holms_rule_by_its_definition():
    p = {0: 0.01, 1: 0.04, 2: 0.03, 3: 0.005}
    assert holm(p) == pytest.approx({3: 0.02, 0: 0.03, 2: 0.06, 1: 0.06})
    assert holm({}) == {}
    assert holm({0: 0.9, 1: 0.8}) == {0: 1.0, 1: 1.0}


def req(met: bool | None, p: float | None = None, reason: str = "r") -> Requirement:
    return Requirement(met, reason, p)


def test_a_claim_is_met_refuted_or_open():
    assert judged([], [req(True), req(True, 0.9)]) == ("yes", ())
    assert judged([], [req(True), req(None, 0.4, "open")]) == ("not established", ("open",))
    assert judged([], [req(False, 0.001, "refuted"), req(None, 0.4, "open")]) == ("no", ("refuted",))
    assert judged([req(None, None, "gate")], [req(False, 0.001)]) == ("not established", ("gate",))
    assert judged([req(False, None, "gate")], [req(True)]) == ("not established", ("gate",))
    assert judged([], [req(False, None, "known")]) == ("no", ("known",))  # nothing was estimated


def test_one_refutation_among_many_that_could_be_is_held_to_more():
    others = [req(None, 0.4)] * 11
    assert judged([], [req(False, 0.02, "one")])[0] == "no"
    assert judged([], [req(False, 0.02, "one"), *others]) == ("not established", ("one", *["r"] * 11))
    assert judged([], [req(False, 0.002, "one"), *others])[0] == "no"
    silent = [each.never_refuting() for each in others]  # no chance to be wrong, no adjustment
    assert judged([], [req(False, 0.02, "one"), *silent])[0] == "no"


def test_what_never_refutes_is_open_where_it_is_not_met():
    assert judged([], [req(False, 0.001, "no").never_refuting()]) == ("not established", ("no",))
    assert judged([], [req(True, 0.9).never_refuting()]) == ("yes", ())


def test_twelve_true_requirements_are_seldom_refuted():
    """Each just met: without an adjustment one of twelve would be refuted in a quarter of the draws."""
    g, wrong = np.random.default_rng(0), 0
    for _ in range(2000):
        tests = [within(near(value, 1.96), 0.0) for value in g.normal(size=12)]
        wrong += judged([], [Requirement(test.met, "", test.p_refuted) for test in tests])[0] == "no"
    assert 0.01 < wrong / 2000 < 0.04


def test_a_margin_means_something_where_more_than_twice_of_it_can_be_lost():
    assert leaves_room(bounds(0.11, 0.2), 0.05)
    assert not leaves_room(bounds(0.1, 0.2), 0.05)
    assert not leaves_room(UNDEFINED, 0.05)
