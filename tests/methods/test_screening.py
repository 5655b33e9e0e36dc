"""What a screen keeps, what it leaves out, and that leaving out makes no head look better."""

from __future__ import annotations

import math

import pytest
import torch

from circuitdiff.circuit import Head
from circuitdiff.errors import InputError
from circuitdiff.methods.attribution_patching import path_attribution
from circuitdiff.methods.discovery import Plan, Stage, discover, measure_with, stage_result
from circuitdiff.methods.path_patching import Path, path_effects
from circuitdiff.methods.screening import Screen, Screened, screened_effects
from circuitdiff.stats.selection import Discoveries, TopK, select
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import N_HEADS, N_LAYERS, subject
from methods.test_discovery import effects

RECEIVERS = (Head(2, 1), Head(3, 4))
PATHS = {"direct": Path("last"), "via_q": Path("last", RECEIVERS, "q")}


@pytest.mark.parametrize("path", PATHS)
def test_the_strongest_by_attribution_and_a_sample_have_their_exact_effects(path):
    model, pairs, path = subject("llama").model, fake_pairs(), PATHS[path]
    along = (path.at, path.receivers, path.via, path.receivers_at)
    exact = path_effects(model, pairs, *along)
    one, two = (path_attribution(model, pairs, *along, steps=n).scores["last"] for n in (1, 2))
    estimates = torch.where(two.abs() > one.abs(), two, one) if path.via else one
    found = screened_effects(model, pairs, path, Screen(keep=3, sample=4), 0.0, seed=5)
    torch.testing.assert_close(found.estimates, estimates)
    n_live = (path.last_layer or N_LAYERS) * N_HEADS
    kept = estimates.abs().flatten().argsort(descending=True)[:3].tolist()
    assert sorted(found.strongest.flatten().nonzero()[:, 0].tolist()) == sorted(kept)
    assert int(found.sampled.sum()) == 4
    assert int(found.sampled.flatten()[:n_live].sum()) == 4, "heads that no receiver can see are not drawn"
    measured = found.strongest | found.sampled
    assert measured.sum() > 4
    torch.testing.assert_close(found.effects.per_prompt[measured], exact.per_prompt[measured])
    other = exact.on_counterfactual_answer
    if other is not None:
        torch.testing.assert_close(found.effects.on_counterfactual_answer[measured], other[measured])
    assert found.effects.per_prompt[~measured].isnan().all()
    again = screened_effects(model, pairs, path, Screen(keep=3, sample=4), 0.0, seed=6)
    assert not torch.equal(again.sampled, found.sampled)


def test_auto_keeps_what_reaches_the_minimum_and_what_could_be_twice_that_given_how_far_weak_estimates_are_off():
    model, pairs = subject("llama").model, fake_pairs()
    everything = path_effects(model, pairs, "last").effects
    wider = set()
    for share in (0.1, 0.3, 0.5, 0.6, 0.7, 0.8):
        minimum = share * float(everything.abs().max())
        found = screened_effects(model, pairs, PATHS["direct"], Screen(sample=12), minimum)
        weak = found.sampled & (found.estimates.abs() < minimum)
        spread = float((everything - found.estimates)[weak].abs().max())
        size = found.estimates.abs()
        assert torch.equal(found.strongest, (size >= minimum) | (size + spread >= 2 * minimum))
        if 0 < int(found.strongest.sum()) < N_LAYERS * N_HEADS:
            wider.add(spread > minimum)
    assert wider == {False, True}


def test_through_receivers_the_gradient_is_taken_on_the_way_too(monkeypatch):
    taken = []

    def noted(*args, steps, **more):
        taken.append(steps)
        return path_attribution(*args, steps=steps, **more)

    monkeypatch.setattr("circuitdiff.methods.screening.path_attribution", noted)
    model, pairs = subject("llama").model, fake_pairs()
    receivers = (Head(N_LAYERS - 1, 0),)
    screened_effects(model, pairs, PATHS["direct"], Screen(keep=1, sample=1), 0.0)
    for via in ("q", "k", "v"):
        screened_effects(model, pairs, Path("query_label", receivers, via), Screen(keep=1, sample=1), 0.0)
    screened_effects(model, pairs, Path("query_label", receivers, "k"), Screen(keep=1, sample=1, steps=3), 0.0)
    assert taken == [1, 1, 2, 1, 2, 1, 2, 3]


def test_a_head_that_was_left_out_counts_as_tested():
    """Of 20 heads one is measured: its p is that of one in 20, not of one alone."""
    g = torch.Generator().manual_seed(0)
    per_prompt = torch.randn(4, 5, 30, generator=g, dtype=torch.float64) - 0.5
    scenarios, rule = torch.arange(30), Discoveries(minimum=0.0, replicated=False)
    alone = torch.full_like(per_prompt, torch.nan)
    alone[1, 2] = per_prompt[1, 2]
    found = select(alone, scenarios, rule, 0.0)
    torch.testing.assert_close(found.adjusted_p[1, 2], (20 * found.p[1, 2]).clamp(max=1))
    assert (found.adjusted_p.flatten().sort().values[1:] == 1).all()
    assert {*found.helping, *found.hurting} <= {Head(1, 2)}


def plan(**screen) -> Plan:
    rule = Discoveries(error_rate=1.0, minimum=0.0, replication_level=1.0)
    stages = [Stage("first", "last", rule, **screen), Stage("second", "last", rule, "q", "first", **screen)]
    return Plan(tuple(stages))


def test_discovery_replicates_only_what_was_chosen_and_finds_the_same_where_all_is_kept():
    model, pairs = subject("llama").model, fake_pairs()
    splits = {"discovery": pairs, "replication": pairs}
    whole = discover(plan(), measure_with(model, splits))
    kept = discover(plan(screen=Screen(keep=N_LAYERS * N_HEADS)), measure_with(model, splits))
    assert [each.selection.helping for each in kept] == [each.selection.helping for each in whole]
    few = discover(plan(screen=Screen(keep=2, sample=1)), measure_with(model, splits))
    first = few[0]
    assert first.screened is not None
    assert first.replication is not None
    chosen = {*first.selection.helping, *first.selection.hurting, *first.selection.not_replicated}
    measured = {Head(*place) for place in (~first.replication.per_prompt.isnan().any(-1)).nonzero().tolist()}
    assert measured == chosen
    assert 0 < len(chosen) <= 3


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage("s", "last", TopK(3), screen="auto"), "TopK has no minimum"),
        (Stage("s", "last", Discoveries(method="max_t"), screen=Screen(keep=3)), "max_t needs every head"),
    ],
)
def test_a_screen_goes_with_rules_that_allow_for_it(stage, message):
    with pytest.raises(InputError, match=message):
        Plan((stage,)).check()
    Plan((Stage("s", "last", TopK(3), screen=Screen(keep=9)), Stage("t", "last", screen="auto"))).check()


def test_a_screened_stage_is_as_stable_as_its_sample_says_and_nobody_knows_without_one():
    """Heads that no receiver can see are none that were left out."""
    stage, clear = Stage("s", "last", Discoveries(replicated=False), "q", "r"), effects({"2.1": -4.0})
    nothing = torch.zeros(N_LAYERS, N_HEADS)
    kept, sample = nothing.bool(), nothing.bool()
    kept[2, 1] = sample[0, 3] = True
    of_all = stage_result(stage, RECEIVERS, clear)
    with_one, none = (stage_result(stage, RECEIVERS, Screened(clear, nothing, kept, of)) for of in (sample, kept))
    assert of_all.selection.helping == with_one.selection.helping == (Head(2, 1),)
    assert of_all.stability().value == with_one.stability().value == 1
    assert math.isnan(none.stability().value)
    kept[:3] = True
    assert stage_result(stage, RECEIVERS, Screened(clear, nothing, kept, nothing.bool())).stability().value == 1
