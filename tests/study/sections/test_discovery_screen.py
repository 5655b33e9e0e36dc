"""A stage with a screen in a study: what is measured, on which prompts, and what is said of the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from circuitdiff.circuit import Head
from circuitdiff.methods.discovery import Stage, stage_result
from circuitdiff.methods.path_patching import PathEffects, path_effects
from circuitdiff.methods.screening import Screen, Screened
from circuitdiff.report.discovery import _caption
from circuitdiff.stats.selection import Discoveries
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.sections.discovery import SECTION, Sweep
from circuitdiff.study.sections.discovery_screen import screening_of
from helpers.tiny_context import TinyContext, tiny_study
from helpers.tiny_folder import save_tiny_model

RULE = {"error_rate": 0.99, "minimum": 0.0, "replication_level": 0.99}
PLANS = {
    "main": {
        "stages": [
            {"name": "fetcher", "at": "last", "select": {"top": 4}, "screen": {"keep": 8, "sample": 2}},
            {"name": "feeder", "at": "last", "via": "q", "receivers_from": "fetcher", "select": RULE, "screen": "auto"},
        ]
    }
}


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> TinyContext:
    folder = tmp_path_factory.mktemp("study")
    return TinyContext.of(tiny_study(save_tiny_model(folder / "base"), plans=PLANS, prompts=24), folder / "run")


def test_only_what_the_screen_keeps_is_measured_and_only_what_was_chosen_is_measured_again(context):
    [found] = context.run(SECTION.run(context.study, None)).values()
    first, second = found.stages
    loaded = context.loaded()
    exact = path_effects(loaded.model, loaded.pairs(PromptsOf("discovery")), "last").effects
    assert first.screening.n_heads == 12
    assert 8 <= first.screening.n_measured <= 10
    assert len(shown(first)) == first.screening.n_measured
    for i, j in shown(first):
        assert first.effects[i][j] == pytest.approx(float(exact[i, j]), rel=1e-4)
    assert (second.split, second.screening.n_sampled) == ("replication", min(30, second.screening.n_heads))
    assert shown(second) == {*second.selected, *second.hurting, *second.not_replicated}


def shown(stage: Sweep) -> set[tuple[int, int]]:
    return {(i, j) for i, row in enumerate(stage.effects) for j, effect in enumerate(row) if effect is not None}


def screened(sampled: list, strongest: list, exact: torch.Tensor, estimates: torch.Tensor) -> Screened:
    marks = [torch.zeros(3, 4, dtype=torch.bool) for _ in range(2)]
    for mark, places in zip(marks, (strongest, sampled), strict=True):
        for place in places:
            mark[place] = True
    table = torch.where(marks[0] | marks[1], exact, torch.nan)
    effects = PathEffects(table[..., None].repeat(1, 1, 5), None, 0.0, torch.arange(5), "logit_difference")
    return Screened(effects, estimates, *marks)


def test_what_a_screen_may_have_missed_follows_from_its_random_sample():
    exact = torch.arange(12, dtype=torch.float64).reshape(3, 4) / 10  # 0.0 to 1.1
    estimates = exact.clone()
    estimates[2, 2] = 0.0  # 1.0 in truth
    sampled = [(0, 1), (0, 3), (1, 2), (2, 1), (2, 2)]  # 0.1, 0.3, 0.6, 0.9, 1.0
    first = screened(sampled, [(2, 1), (2, 3)], exact, estimates)
    rule = Discoveries(minimum=0.5, replicated=False)
    result = stage_result(Stage("s", "last", rule, screen=Screen(keep=2)), None, first)
    found = screening_of(result)
    assert (found.n_heads, found.n_measured, found.n_sampled) == (12, 6, 5)
    assert (found.large_in_sample, found.large_kept) == (3, 1), "0.6, 0.9 and 1.0; of these 0.9"
    assert found.largest_left_out == pytest.approx(1.0)
    assert found.share_beyond == pytest.approx(1 - 0.05**0.25), "four of the sample were left out"
    assert found.rank_agreement == pytest.approx(0.0), "ranks 2 3 4 5 1 beside 1 2 3 4 5"
    below = replace(result, receivers=(Head(2, 0),))
    assert screening_of(below).n_heads == 8
    assert screening_of(stage_result(Stage("s", "last", rule), None, first.effects)) is None


def test_the_page_says_how_many_were_left_out_and_how_large_one_could_be(context):
    [found] = context.run(SECTION.run(context.study, None)).values()
    said = _caption(found.stages[0]).lines
    [line] = [line for line in said if "screened by attribution" in line]
    assert f"{found.stages[0].screening.n_measured} of 12 heads were measured" in line
    assert "no more than" in line
