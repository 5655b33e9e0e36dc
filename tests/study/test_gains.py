"""Gains and their shares as results have them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuitdiff.evaluation import Evaluation
from circuitdiff.study import gains
from circuitdiff.study.gains import (
    Credit,
    Direction,
    control_result,
    direction_of,
    gain_of,
    largest_part,
    random_groups,
)
from helpers.tiny_context import TinyContext, tiny_study


def answers(hits: list[int]) -> Evaluation:
    n = len(hits)
    zeros = torch.zeros(n)
    return Evaluation(
        torch.tensor(hits, dtype=torch.bool), torch.zeros(n, dtype=torch.long), zeros, zeros, torch.arange(n)
    )


def hits(n: int) -> Evaluation:
    """Of 20 prompts, the first so many."""
    return answers([1] * n + [0] * (20 - n))


@pytest.mark.parametrize(
    ("tuned", "base", "expected"),
    [
        (20, 0, Direction("tuned", "base", gains=True)),
        (0, 20, Direction("base", "tuned", gains=True)),
        (20, 20, Direction("tuned", "base", gains=False)),
    ],
)
def test_the_donor_is_the_model_that_is_better_at_95_percent(tmp_path, monkeypatch, tuned, base, expected):
    by_name = {"tuned": hits(tuned), "base": hits(base)}

    async def model_answers(_: Any, model: str) -> Evaluation:
        return by_name[model]

    monkeypatch.setattr(gains, "model_answers", model_answers)
    study = TinyContext.of(tiny_study(Path("base"), variants={"tuned": "tuned"}), tmp_path).study
    assert asyncio.run(direction_of(study, "tuned")) == expected
    gain = asyncio.run(gain_of(study, "tuned", "base"))
    assert (gain.value, gain.n_prompts, gain.n_scenarios) == ((tuned - base) / 20, 20, 20)


def test_controls_are_shares_of_the_gain():
    donor, nothing, half = hits(16), hits(6), hits(11)
    control = control_result(donor, nothing, half)
    assert (control.value, control.share, control.undefined) == (pytest.approx(0.25), pytest.approx(0.5), None)
    far = control_result(donor, nothing, half, compatible=False)
    assert (far.value, far.share) == (control.value, None)
    assert "the run with control" in (far.undefined or "")


def test_few_random_groups_have_no_rank_and_the_bounds_that_all_of_them_keep_to():
    donor, nothing, half = hits(16), hits(6), hits(11)
    drawn = [hits(n) for n in (6, 7, 8, 11)]
    random = random_groups(donor, nothing, half, drawn)
    assert (random.rank_p, random.group, random.bounds_are) == (None, 0.55, "all groups")
    assert random.share == pytest.approx(np.mean([0, 0.1, 0.2, 0.5]))
    controls = [control_result(donor, nothing, each) for each in drawn]  # of each group, over prompts
    assert random.share_low == pytest.approx(min(each.share_low for each in controls))
    assert random.share_high == pytest.approx(max(each.share_high for each in controls))
    assert (random.n, random.n_prompts, random.n_scenarios, random.nothing) == (4, 20, 20, 0.3)
    assert random.accuracies == (0.3, 0.35, 0.4, 0.55)
    alone = random_groups(donor, nothing, half, drawn[3:])
    assert alone.share == pytest.approx(0.5)
    assert alone.share_low < 0.45 < 0.55 < alone.share_high, "one group's share has the bounds of its prompts"


@pytest.mark.parametrize("n", [38, 39, 99, 100])
def test_a_range_of_95_percent_takes_39_groups_and_a_rank_100(n):
    donor, nothing, half = hits(16), hits(6), hits(11)
    drawn = [hits(6 + i % 10) for i in range(n)]
    random = random_groups(donor, nothing, half, drawn)
    highs = [control_result(donor, nothing, each).share_high for each in drawn]
    outside = 0.0 if n < 39 else 0.025
    assert random.share_high == pytest.approx(np.quantile(highs, 1 - outside))
    assert random.bounds_are == ("all groups" if n < 39 else "95 % of the groups")
    as_good = sum(i % 10 >= 5 for i in range(n))
    assert random.rank_p == (None if n < 100 else pytest.approx((1 + as_good) / (1 + n)))


def test_a_random_group_far_from_clean_runs_has_no_share_but_a_value():
    donor, nothing, half = hits(16), hits(6), hits(11)
    drawn = [hits(n) for n in (6, 7, 8, 11)]
    random, far = (random_groups(donor, nothing, half, drawn, which) for which in ((), [3]))
    assert (far.n_far, far.share, far.value) == (1, pytest.approx(0.1), random.value)
    assert random_groups(donor, nothing, half, drawn, range(4)).share is None


def test_without_a_gain_random_groups_have_no_share_and_say_why():
    random = random_groups(hits(6), hits(6), hits(11), [hits(7)])
    assert random.share is None
    assert "covers 0" in (random.undefined or "")


def test_the_largest_part_is_that_which_adds_most_and_the_first_of_equals():
    def credit(value: float | None) -> dict[str, Credit]:
        return {"alone": Credit(value, None, None, None, None, None, "no gain")}

    parts = {"unknown": credit(None), "less": credit(-0.5), "most": credit(-0.25), "as_much": credit(-0.25)}
    assert largest_part(parts, "alone") == "most"
