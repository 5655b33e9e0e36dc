"""Maps of base and variant from which screens left out heads, each model's own."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import torch

from circuitdiff.circuit import Head
from circuitdiff.methods.discovery import Stage, stage_result
from circuitdiff.methods.path_patching import PathEffects, path_effects
from circuitdiff.stats.effect_maps import Change, likeness, reliability
from circuitdiff.stats.selection import TopK
from circuitdiff.study.estimates import estimate, ratio
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.sections.discovery import discovered
from circuitdiff.study.sections.overlap import SECTION, OverlapOptions, _different
from circuitdiff.study.sections.overlap_maps import MapOf, TwoMaps, maps_of, two_maps
from helpers.tiny_context import TinyContext, tiny_context

EVERY = {"error_rate": 0.999, "minimum": 0.0, "replication_level": 0.999}  # discoveries, however weak


def screened(folder, keep: int, sample: int, select=MappingProxyType({"top": 3})) -> TinyContext:
    each = {"at": "last", "select": dict(select), "screen": {"keep": keep, "sample": sample}}
    second = {"name": "transmitter", "via": "q", "receivers_from": "fetcher"}
    plans = {"main": {"stages": [each | {"name": "fetcher"}, each | second]}}
    return tiny_context(folder, tuned=True, plans=plans, discover_in=["tuned"])


async def stages(context: TinyContext) -> tuple[list[MapOf], list[MapOf]]:
    base, tuned = [maps_of(await discovered(context.study, name)) for name in (context.study.base, "tuned")]
    return base, tuned


async def compared(context: TinyContext, number: int) -> TwoMaps:
    base, tuned = await stages(context)
    return await two_maps(context.study, base[number], tuned[number])


def full_map(context: TinyContext, of: MapOf, split: str) -> torch.Tensor:
    loaded, stage = context.loaded(of.model), of.result.stage
    receivers = of.result.receivers or None
    return path_effects(loaded.model, loaded.pairs(PromptsOf(split)), stage.at, receivers, stage.via).per_prompt


@pytest.mark.parametrize("number", [0, 1])
def test_both_maps_have_every_head_that_either_screen_kept(tmp_path, number):
    context = screened(tmp_path, keep=2, sample=3)
    maps, of_stage = context.run(compared(context, number)), [each[number] for each in context.run(stages(context))]
    screens = [each.result.screened for each in of_stage]
    assert not torch.equal(screens[0].strongest, screens[1].strongest)
    last = [max((head.layer for head in each.result.receivers), default=3) for each in of_stage]
    n_compared = 0
    for place in np.ndindex(*maps.weights.shape):
        wanted = any(bool(each.strongest[place] | each.sampled[place]) for each in screens)
        for found, each, reach in zip(maps.found, of_stage, last, strict=True):
            mine = found.per_prompt[place]
            if place[0] >= reach:
                assert (mine == 0).all()
            elif wanted:
                torch.testing.assert_close(mine, full_map(context, each, "discovery")[place], atol=1e-5, rtol=1e-4)
                n_compared += 1
            else:
                assert mine.isnan().all()
    assert n_compared > 6


@pytest.mark.parametrize("n_drawn", [0, 1, 2])
def test_heads_of_either_sample_stand_for_those_that_both_screens_left_out(tmp_path, n_drawn):
    """Of a sample without such heads all of them are measured. Strong heads in a sample stand for themselves."""
    context = screened(tmp_path, keep=2, sample=1)
    both = [each[0] for each in context.run(stages(context))]
    strong = [each.result.screened.strongest for each in both]
    kept = (strong[0] | strong[1]).numpy()
    drawn = np.argwhere(~kept)[:n_drawn]
    samples = [each.clone() for each in strong]
    for place, sample in zip(drawn, samples, strict=False):
        sample[tuple(place)] = True
    maps = context.run(two_maps(context.study, *map(with_sample, both, samples)))
    expected = np.where(kept, 1.0, 0.0 if n_drawn else 1.0)
    for place in drawn:
        expected[tuple(place)] = (~kept).sum() / n_drawn
    assert maps.weights == pytest.approx(expected)
    assert all(not each.effects[torch.from_numpy(expected > 0)].isnan().any() for each in maps.found)


def with_sample(of: MapOf, sampled: torch.Tensor) -> MapOf:
    return of._replace(result=replace(of.result, screened=replace(of.result.screened, sampled=sampled)))


def test_the_section_tells_of_these_maps(tmp_path):
    context = screened(tmp_path, keep=2, sample=4)
    result = context.run(SECTION.run(context.study, OverlapOptions(prompts=5)))["tuned"]
    for number, stage in enumerate(result.stages):
        maps = context.run(compared(context, number))
        one, two = (each.per_prompt.double().numpy() for each in maps.found)
        scenarios = maps.found[0].scenarios.numpy()
        assert stage.likeness == ratio(likeness(one, two, scenarios, maps.weights))
        assert stage.variant_reliability == estimate(reliability(two, scenarios, maps.weights))
        if maps.weights.max() > 1:
            assert stage.likeness != ratio(likeness(one, two, scenarios))


def test_in_the_control_a_head_that_a_screen_left_out_has_no_effect(tmp_path):
    g, scenarios = np.random.default_rng(0), np.arange(20)
    maps = [g.normal(size=(3, 4, 1)) + 0.1 * g.normal(size=(3, 4, 20)) for _ in range(2)]
    maps[0][0, 1], maps[1][2, 2:] = np.nan, np.nan
    first, other = (
        stage_result(
            Stage(name, "last", TopK(2)),
            None,
            PathEffects(torch.from_numpy(each), None, 0.0, torch.from_numpy(scenarios), "logit_difference"),
        )
        for name, each in zip("ab", maps, strict=True)
    )
    found = _different(first, [first, other])
    assert found == ratio(likeness(*map(np.nan_to_num, maps), scenarios))
    assert found != ratio(likeness(*maps, scenarios))


def test_changed_heads_are_measured_where_effects_are_reported_if_no_stage_chose_them(tmp_path, monkeypatch):
    places = [(0, 1), (2, 0), (2, 3)]
    changes = [Change(Head(*place), 0.0, 0.1, 0.1, 0.01) for place in places]
    monkeypatch.setattr("circuitdiff.study.sections.overlap_maps.changed_heads", lambda *_: changes)
    context = screened(tmp_path, keep=2, sample=1, select=EVERY)
    maps, of_stage = context.run(compared(context, 0)), [each[0] for each in context.run(stages(context))]
    for reported, each in zip(maps.reported, of_stage, strict=True):
        assert each.result.reported.effects.isnan().all()  # too few prompts to choose any head
        whole = full_map(context, each, "replication")
        for place in np.ndindex(*whole.shape[:2]):
            if place in places:
                torch.testing.assert_close(reported.per_prompt[place], whole[place], atol=1e-5, rtol=1e-4)
            else:
                assert reported.per_prompt[place].isnan().all()
