"""How stable a choice of heads is, against resamples that are drawn and judged by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from circuitdiff.circuit import Head
from circuitdiff.stats.selection import Discoveries, Sample, TopK, select, stability

RULE = Discoveries(minimum=0.05, replicated=False)


def sample(effects: list[float], spread: float, n: int = 60, per_scenario: int = 1, seed: int = 0) -> Sample:
    """One layer; each scenario with as many equal prompts."""
    noise = torch.randn(1, len(effects), n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    table = torch.tensor(effects)[None, :, None] + spread * noise
    return Sample(table.repeat_interleave(per_scenario, -1), torch.arange(n).repeat_interleave(per_scenario))


def of(given: Sample, rule=RULE, replication: Sample | None = None):
    chosen = select(*given, rule, 0.0, replication)
    return chosen, stability(chosen, given, 0.0, replication)


def test_heads_that_stand_out_are_chosen_again_and_again():
    chosen, found = of(sample([-5.0, -4.0, 0.0, 0.0], 0.02))
    assert chosen.helping == (Head(0, 0), Head(0, 1))
    assert found == (1.0, 1.0, 1.0)


def test_the_luckiest_of_many_are_not():
    """Of 40 heads without any effect the 5 strongest: other scenarios have others."""
    chosen, found = of(sample([0.0] * 40, 1.0), TopK(5))
    assert len(chosen.helping) == 5
    assert found.value < 0.6
    assert found.low < found.value < found.high


def test_it_is_the_mean_jaccard_of_what_resamples_choose():
    given = sample([-0.3, -0.25, -0.2, 0.0, 0.3], 1.0, n=40, seed=3)
    chosen, found = of(given)
    assert chosen.helping
    g, jaccards = torch.Generator().manual_seed(0), []
    for _ in range(100):
        drawn = torch.randint(40, (40,), generator=g)
        again = select(given.per_prompt[..., drawn], torch.arange(40), RULE, 0.0).helping
        both, either = {*chosen.helping} & {*again}, {*chosen.helping} | {*again}
        jaccards.append(len(both) / len(either))
    assert found.value == pytest.approx(np.mean(jaccards))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(jaccards, [0.025, 0.975])))


def test_whole_scenarios_are_drawn_and_equal_prompts_say_no_more():
    once, thrice = (of(sample([-0.6, -0.35, 0.0], 1.0, n=40, per_scenario=k, seed=4))[1] for k in (1, 3))
    assert thrice == pytest.approx(once)


def test_a_replication_is_drawn_anew_too():
    given, rule = sample([-0.5, -0.5], 1.0, seed=5), Discoveries(minimum=0.05)
    sure, unsure = (of(given, rule, sample([-0.5, size], 1.0, n=30, seed=6))[1] for size in (-5.0, -0.32))
    assert sure.value > unsure.value


def test_nothing_chosen_has_no_stability():
    chosen, found = of(sample([0.0, 0.0], 1.0), Discoveries(minimum=50.0, replicated=False))
    assert not chosen.helping
    assert np.isnan(found).all()


def test_a_random_sample_stands_for_heads_that_a_screen_left_out():
    """40 invented sweeps, of each of which the 40 strongest of 100 heads are measured, and 15 of the others, and of a
    replication those alone that were chosen: the mean is that of whole sweeps, and without weights it is above.
    """
    rule, g = Discoveries(minimum=0.05), torch.Generator().manual_seed(7)
    whole, by_sample, by_none = [], [], []
    for seed in range(40):
        true = (-0.5 * torch.rand(100, generator=g)).tolist()
        first, second = sample(true, 1.0, n=80, seed=2 * seed), sample(true, 1.0, n=50, seed=2 * seed + 1)
        chosen = select(*first, rule, 0.0, second)
        whole.append(stability(chosen, first, 0.0, second).value)
        order = first.effects[0].argsort()
        drawn = order[40:][torch.randperm(60, generator=g)[:15]]
        measured, weights = torch.cat([order[:40], drawn]), torch.zeros(1, 100, dtype=torch.float64)
        weights[0, order[:40]], weights[0, drawn] = 1.0, 60 / 15
        screened = Sample(_only(first.per_prompt, measured), first.scenarios)
        once = select(*screened, Discoveries(minimum=0.05, replicated=False), 0.0)
        again = torch.tensor([head.index for head in (*once.helping, *once.hurting)])
        replication = Sample(_only(second.per_prompt, again), second.scenarios)
        chosen = select(*screened, rule, 0.0, replication)
        by_sample.append(stability(chosen, screened, 0.0, replication, weights=weights).value)
        by_none.append(stability(chosen, screened, 0.0, replication).value)
    assert np.mean(by_sample) == pytest.approx(np.mean(whole), abs=0.05)
    assert np.mean(by_none) > np.mean(whole) + 0.05


def _only(per_prompt: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    kept = torch.full_like(per_prompt, torch.nan)
    kept[:, heads] = per_prompt[:, heads]
    return kept


def test_a_head_whose_replication_nobody_measured_stands_with_its_first_split():
    given, rule = sample([-1.0, -1.0, *[-0.3] * 12], 1.0, seed=3), Discoveries(minimum=0.05)
    chosen = select(*given, replace(rule, replicated=False), 0.0).helping
    measured = torch.tensor([head.index for head in chosen])
    whole = sample([-1.0, -1.0, *[-0.3] * 12], 1.0, seed=4)
    few = Sample(_only(whole.per_prompt, measured), whole.scenarios)
    everything = torch.ones(1, 14)
    found = stability(select(*given, rule, 0.0, few), given, 0.0, few, weights=everything)
    known = stability(select(*given, rule, 0.0, whole), given, 0.0, whole)
    never = stability(select(*given, rule, 0.0, few), given, 0.0, few)
    assert 2 < len(chosen) < 14
    assert known.value - 0.05 < found.value < never.value
