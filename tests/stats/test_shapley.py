"""Shares of a gain, against their definitions."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from circuitdiff.errors import InputError
from circuitdiff.stats.intervals import mean_interval, ratio_bounds
from circuitdiff.stats.proportions import difference_interval, paired_interval
from circuitdiff.stats.shapley import all_subsets, attribute, needed_subsets, shapley_weights

PARTS = ("reader", "detector", "transmitter", "fetcher")
N_PROMPTS = 60
SCENARIOS = np.repeat(np.arange(30), 2)
NOTHING, WHOLE = frozenset(), frozenset(PARTS)


def invented(seed: int = 0, gain: float = 2.0) -> tuple[dict, np.ndarray]:
    """Scores of every subset that grow with its size, irregularly; and the donor's."""
    g = np.random.default_rng(seed)
    own = g.normal(size=N_PROMPTS)
    scores = {subset: own + gain * len(subset) / 5 + g.normal(size=N_PROMPTS) for subset in all_subsets(PARTS)}
    return scores, own + gain + 0.3 * g.normal(size=N_PROMPTS)


def shapley_by_definition(scores: dict, part: str) -> float:
    """The mean over all orders of what the part adds when it enters."""
    added = []
    for order in permutations(PARTS):
        before = frozenset(order[: order.index(part)])
        added.append(scores[before | {part}].mean() - scores[before].mean())
    return float(np.mean(added))


def test_every_way_of_counting_agrees_with_its_definition():
    scores, donor = invented()
    mean = {subset: values.mean() for subset, values in scores.items()}
    gain = donor.mean() - mean[NOTHING]
    found = attribute(scores, donor, SCENARIOS, PARTS)
    for i, part in enumerate(PARTS):
        before = frozenset(PARTS[:i])
        expected = {
            "alone": mean[frozenset([part])] - mean[NOTHING],
            "left_out": mean[WHOLE] - mean[WHOLE - {part}],
            "in_order": mean[before | {part}] - mean[before],
            "shapley": shapley_by_definition(scores, part),
        }
        for how, value in expected.items():
            assert found.parts[part][how].value == pytest.approx(value, abs=1e-12)
            assert found.parts[part][how].share == pytest.approx(value / gain, abs=1e-12)
    assert found.together.value == pytest.approx(mean[WHOLE] - mean[NOTHING])
    assert found.unexplained.value == pytest.approx(donor.mean() - mean[WHOLE])


@pytest.mark.parametrize("how", ["shapley", "in_order"])
def test_values_of_all_parts_and_what_none_explains_add_up_to_the_gain(how):
    found = attribute(*invented(1), SCENARIOS, PARTS)
    shares = [found.parts[part][how].share for part in PARTS]
    assert sum(shares) + found.unexplained.share == pytest.approx(1)


def shapley_by_prompt(scores: dict, part: str) -> np.ndarray:
    """As `shapley_by_definition`, of each prompt."""
    prompts = [{subset: values[i : i + 1] for subset, values in scores.items()} for i in range(N_PROMPTS)]
    return np.array([shapley_by_definition(each, part) for each in prompts])


def test_intervals_are_those_of_means_and_of_ratios_to_the_gain():
    """Whose own tests hold them."""
    scores, donor = invented(2)
    found = attribute(scores, donor, SCENARIOS, PARTS)
    gain = donor - scores[NOTHING]
    assert found.gain == pytest.approx(tuple(mean_interval(gain, SCENARIOS)))
    added = {
        "alone": scores[frozenset(["detector"])] - scores[NOTHING],
        "left_out": scores[WHOLE] - scores[WHOLE - {"detector"}],
        "shapley": shapley_by_prompt(scores, "detector"),
    }
    for how, values in added.items():
        credit = found.parts["detector"][how]
        assert credit[:3] == pytest.approx(tuple(mean_interval(values, SCENARIOS)))
        assert credit[4:6] == pytest.approx(ratio_bounds(values, gain, SCENARIOS, hits=False))


def test_of_hits_they_are_those_of_paired_differences():
    g = np.random.default_rng(3)
    scores = {subset: g.random(N_PROMPTS) < 0.2 + len(subset) / 8 for subset in all_subsets(PARTS)}
    donor = g.random(N_PROMPTS) < 0.8
    found = attribute(scores, donor, SCENARIOS, PARTS)
    assert found.gain == pytest.approx(difference_interval(donor, scores[NOTHING], SCENARIOS))
    alone, reader = found.parts["reader"]["alone"], scores[frozenset(["reader"])]
    assert alone[:3] == pytest.approx(tuple(difference_interval(reader, scores[NOTHING], SCENARIOS)))
    gain = donor * 1.0 - scores[NOTHING]
    assert alone[4:6] == pytest.approx(ratio_bounds(reader * 1.0 - scores[NOTHING], gain, SCENARIOS, hits=True))
    shapley = shapley_by_prompt(scores, "reader")
    assert found.parts["reader"]["shapley"][:3] == pytest.approx(tuple(paired_interval(shapley, SCENARIOS)))


def test_a_share_and_the_gain_are_resampled_together():
    """A part that always brings half of the gain has a share without spread, though both spread."""
    scores, donor = invented(3)
    half = {subset: (scores[NOTHING] + donor) / 2 if "reader" in subset else scores[NOTHING] for subset in scores}
    credit = attribute(half, donor, SCENARIOS, PARTS).parts["reader"]["shapley"]
    assert credit.high - credit.low > 0.01
    assert (credit.share_low, credit.share_high) == pytest.approx((0.5, 0.5))


def test_a_gain_whose_interval_covers_0_has_no_shares_and_says_so():
    found = attribute(*invented(4, gain=0.0), SCENARIOS, PARTS)
    credit = found.parts["fetcher"]["alone"]
    assert np.isnan([credit.share, credit.share_low, credit.share_high]).all()
    assert not np.isnan(credit.value)
    assert "its interval covers 0" in (credit.undefined or "")
    assert found.unexplained.undefined


def test_shares_of_hits_are_not_certain_where_no_prompt_of_the_sample_tells_them_apart():
    """A gain of 12 hits on 40 scenarios: the reader brings each of them, the detector none."""
    nothing, donor = np.zeros(40, dtype=bool), np.arange(40) < 12
    scores = {subset: donor if "reader" in subset else nothing for subset in all_subsets(PARTS)}
    found = attribute(scores, donor, np.arange(40), PARTS)
    reader, detector = (found.parts[part]["alone"] for part in ("reader", "detector"))
    assert (reader.share, detector.share) == (1.0, 0.0)
    assert 0.5 < reader.share_low < 0.8
    assert 1.2 < reader.share_high < 2
    assert -0.6 < detector.share_low < -0.2
    assert 0.2 < detector.share_high < 0.5


def test_a_gain_that_may_nearly_be_nothing_leaves_shares_unbounded():
    nothing, donor = np.zeros(40, dtype=bool), np.arange(40) < 4
    scores = {subset: donor if "reader" in subset else nothing for subset in all_subsets(PARTS)}
    found = attribute(scores, donor, np.arange(40), PARTS)
    assert found.gain.low > 0
    assert found.parts["reader"]["alone"][3:6] == (1.0, -np.inf, np.inf)


def test_a_loss_has_shares_too():
    scores, donor = invented(5)
    found = attribute({s: -v for s, v in scores.items()}, -donor, SCENARIOS, PARTS)
    assert found.gain.high < 0
    same = attribute(scores, donor, SCENARIOS, PARTS)
    assert found.parts["reader"]["alone"].share == pytest.approx(same.parts["reader"]["alone"].share)


def test_incompatible_runs_have_no_share_wherever_they_enter():
    far = frozenset(["reader"])
    found = attribute(*invented(6), SCENARIOS, PARTS, incompatible=[far])
    assert "the run with reader lies far" in (found.parts["reader"]["alone"].undefined or "")
    assert found.parts["detector"]["in_order"].undefined  # reader + detector against reader
    assert found.parts["fetcher"]["shapley"].undefined
    assert found.parts["fetcher"]["in_order"].undefined is None
    assert found.parts["reader"]["left_out"].undefined is None
    assert found.runs[far].undefined
    assert found.runs[WHOLE].undefined is None


def test_without_all_subsets_there_are_no_symmetric_values():
    scores, donor = invented(7)
    few = {subset: scores[subset] for subset in needed_subsets(PARTS)}
    found = attribute(few, donor, SCENARIOS, PARTS)
    assert set(found.parts["reader"]) == {"alone", "left_out", "in_order"}
    assert len(few) == 1 + 4 + 2 + 4 + 1 - 1  # the last part left out is a prefix


def test_a_missing_run_is_named():
    scores, donor = invented(8)
    del scores[frozenset(["detector", "reader"])]
    with pytest.raises(InputError, match=r"detector \+ reader is missing"):
        attribute(scores, donor, SCENARIOS, PARTS)


def test_shapley_weights_of_one_part_are_plus_and_minus_one():
    assert shapley_weights(["only"], "only") == {frozenset(["only"]): 1.0, frozenset(): -1.0}


def test_one_scenario_has_values_without_bounds():
    scores, donor = invented(9)
    found = attribute(scores, donor, np.zeros(N_PROMPTS, dtype=int), PARTS)
    assert np.isnan(found.gain.low)
    assert found.parts["reader"]["alone"].undefined
