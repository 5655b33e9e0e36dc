"""What a stage reports of the heads that it chose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from circuitdiff.circuit import Head
from circuitdiff.methods.discovery import Plan, Stage, stage_result
from circuitdiff.methods.path_patching import PathEffects
from circuitdiff.stats.selection import Discoveries, TopK
from circuitdiff.study.sections.discovery import Sweep, _identity, sweep_of

N_LAYERS, N_HEADS, N_PROMPTS = 3, 4, 20
RULE = Discoveries(error_rate=0.5, minimum=0.0)


def split(truth: torch.Tensor, generator: torch.Generator, n_prompts: int = N_PROMPTS) -> PathEffects:
    noise = torch.randn(N_LAYERS, N_HEADS, n_prompts, generator=generator, dtype=torch.float64)
    return PathEffects(truth[..., None] + noise, None, 0.0, torch.arange(n_prompts), "logit_difference")


def sweep(
    truth: torch.Tensor, generator: torch.Generator, rule: TopK | Discoveries = RULE
) -> tuple[PathEffects, PathEffects, Sweep]:
    stage = Stage("s", "last", rule)
    splits = [split(truth, generator, n) for n in (N_PROMPTS, N_PROMPTS + 3)]
    return *splits, sweep_of(stage_result(stage, None, *splits[: len(stage.splits)]))


def test_effects_reported_of_chosen_heads_are_unbiased():
    """Ten heads without an effect and two with one of 1.3 standard errors: those chosen are mostly lucky."""
    truth, generator = torch.zeros(N_LAYERS, N_HEADS, dtype=torch.float64), torch.Generator().manual_seed(0)
    truth[0, 1], truth[2, 3] = -0.3, 0.3
    too_large, where_chosen = [], []
    for _ in range(150):
        first, _, reported = sweep(truth, generator)
        for place in (*reported.selected, *reported.hurting, *reported.not_replicated):
            sign = np.sign(first.effects[place])
            too_large.append(float(sign * (reported.effects[place[0]][place[1]] - truth[place])))
            where_chosen.append(float(sign * (first.effects[place] - truth[place])))
    error = np.std(too_large) / len(too_large) ** 0.5
    assert len(too_large) > 60
    assert abs(np.mean(too_large)) < 3 * error
    assert np.mean(where_chosen) > 10 * error  # what the prompts that chose would say


def test_effects_and_intervals_are_of_the_prompts_that_did_not_choose_and_p_of_those_that_did():
    truth, generator = torch.zeros(N_LAYERS, N_HEADS, dtype=torch.float64), torch.Generator().manual_seed(1)
    truth[1, 2] = -2.0
    first, second, reported = sweep(truth, generator)
    assert (reported.split, reported.n_prompts, reported.n_choosing) == ("replication", N_PROMPTS + 3, N_PROMPTS)
    assert reported.selected == ((1, 2),)
    assert np.array_equal(reported.effects, second.effects)
    _, low, high = second.intervals()
    assert np.array_equal(reported.low, low)
    assert np.array_equal(reported.high, high)
    chosen = stage_result(Stage("s", "last", RULE), None, first, second).selection
    assert np.array_equal(reported.adjusted_p, chosen.adjusted_p)


def test_top_k_reports_the_prompts_that_chose_and_says_so():
    first, _, reported = sweep(torch.zeros(N_LAYERS, N_HEADS), torch.Generator().manual_seed(2), TopK(2))
    assert (reported.split, reported.n_prompts, reported.n_choosing) == ("discovery", N_PROMPTS, N_PROMPTS)
    assert np.array_equal(reported.effects, first.effects)
    assert len(reported.selected) == 2
    assert np.isfinite(reported.adjusted_p).all()


def test_a_head_is_shown_and_tabled_with_its_interval_and_its_adjusted_p():
    first = split(torch.zeros(N_LAYERS, N_HEADS), torch.Generator().manual_seed(2))
    result = stage_result(Stage("s", "last", TopK(2)), None, first)
    table, (value, low, high) = result.to_pandas(), first.intervals()
    assert len(table) == N_LAYERS * N_HEADS
    assert table.chosen_as.value_counts().to_dict() == {"helping": 2, "hurting": 2}
    for head in result.selection.helping:
        place = head.layer, head.index
        p = float(result.selection.adjusted_p[place])
        row = table[(table.layer == head.layer) & (table["head"] == head.index)].iloc[0]
        assert (row.effect, row.low, row.high, row.adjusted_p) == (value[place], low[place], high[place], p)
        words = f"{head} {value[place]:+.3f} [{low[place]:+.3f}, {high[place]:+.3f}] p {p:.2g}"
        assert words in repr(result)
        assert Head.parse(words.split()[0]) == head


def test_plans_share_the_cost_of_a_sweep_only_where_its_receivers_are_chosen_alike():
    first, second = Stage("a", "last", Discoveries()), Stage("b", "last", TopK(2), "q", "a")
    one = _identity(Plan((first, second)), second)
    assert one == _identity(Plan((first, Stage("beside", "last"), second)), replace(second, select=Discoveries()))
    for other in (replace(first, select=TopK(3)), replace(first, n_receivers=2)):
        assert _identity(Plan((other, second)), second) != one
    assert _identity(Plan((first, second), metric="log_prob"), second) != one
