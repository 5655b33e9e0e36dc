"""Overlap of variants with the base in a study of tiny models, one of which was not searched for a circuit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from circuitdiff.circuit import Circuit, Group, Head, circuit_overlap
from circuitdiff.errors import InputError
from circuitdiff.methods.attention import attention_to_roles
from circuitdiff.methods.discovery import Stage, StageResult, stage_result
from circuitdiff.methods.edges import Edge, edge_effects, possible_edges
from circuitdiff.methods.group_profile import effect_by_role
from circuitdiff.methods.path_patching import PathEffects
from circuitdiff.stats.effect_maps import likeness, reliability
from circuitdiff.stats.intervals import cluster_p_values, false_discovery_adjusted
from circuitdiff.stats.selection import Discoveries
from circuitdiff.study.estimates import estimate, ratio
from circuitdiff.study.preflight import outlined
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.records import GroupWork, record_of, value_of
from circuitdiff.study.sections.discovery import discovered
from circuitdiff.study.sections.overlap import (
    SECTION,
    OverlapOptions,
    VariantOverlap,
    _changed,
    _with_ceiling,
    edges_compared,
    group_work,
)
from circuitdiff.study.sections.overlap_maps import MapOf, two_maps
from circuitdiff.study.sections.overlap_profiles import cosine, profiles
from helpers.tiny_context import TinyContext, tiny_context, tiny_study
from helpers.tiny_folder import save_tiny_model

OPTIONS = OverlapOptions(prompts=7)


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> TinyContext:
    folder = tmp_path_factory.mktemp("study")
    models = [save_tiny_model(folder / name, seed) for seed, name in enumerate(("base", "tuned", "plain"))]
    variants = {path.name: str(path) for path in models[1:]}
    return TinyContext.of(tiny_study(models[0], variants=variants, discover_in=["tuned"]), folder / "run")


@pytest.fixture(scope="module")
def results(context) -> dict[str, VariantOverlap]:
    return context.run(SECTION.run(context.study, OPTIONS))


def parts(result: VariantOverlap) -> set[str]:
    return {name for name, part in vars(result).items() if part is not None}


def test_edges_and_profiles_are_measured_in_every_model(results):
    assert list(results) == ["tuned", "plain"]
    assert parts(results["plain"]) == {"edges", "profiles", "n_scenarios"}
    assert parts(results["tuned"]) == set(vars(VariantOverlap()))
    for result in results.values():
        assert {(edge.sender, edge.receiver, edge.via) for edge in result.edges} >= {("fetcher", None, None)}
        for edge, of_base in zip(result.edges, results["tuned"].edges, strict=True):
            assert edge.base == of_base.base
            assert edge.difference.value == pytest.approx(edge.variant.value - edge.base.value)
        assert result.n_scenarios == 7
    adjusted = [edge.adjusted_p for edge in results["plain"].edges]
    assert len(adjusted) > 1
    assert all(0 < p <= 1 for p in adjusted)


def test_edges_and_profiles_are_the_librarys(context, results):
    circuit = context.run(circuit_of(context, context.study.base))
    for name, of in ((context.study.base, "base"), ("plain", "variant")):
        loaded = context.loaded(name)
        pairs = loaded.pairs(PromptsOf("evaluation", first=7))
        effects = edge_effects(loaded.model, circuit.groups, possible_edges(circuit.groups, pairs), pairs)
        for edge, effect in zip(results["plain"].edges, effects, strict=True):
            assert getattr(edge, of).value == pytest.approx(float(effect.mean()), abs=1e-6)
        roles = [row.role for row in results["plain"].profiles["fetcher"].attention]
        assert roles
        assert not any("." in role for role in roles)
        attention = attention_to_roles(loaded.model, circuit, pairs, roles)
        written = effect_by_role(loaded.model, circuit.groups, pairs, roles)
        for group, profile in results["plain"].profiles.items():
            mean = attention[group].attention.nan_to_num()[..., :-1].mean((0, 1)).tolist()  # to later roles nothing
            assert [getattr(row, of).value for row in profile.attention] == pytest.approx(mean, abs=1e-6)
            mean = written[group].mean(1).tolist()
            assert [getattr(row, of).value for row in profile.effect] == pytest.approx(mean, abs=1e-6)


async def circuit_of(context: TinyContext, name: str):
    return (await discovered(context.study, name)).circuit


def test_groups_have_the_heads_of_both_circuits(context, results):
    base, tuned = (context.run(circuit_of(context, name)) for name in (context.study.base, "tuned"))
    common = circuit_overlap(base, tuned)
    rows = {row.group: row for row in results["tuned"].groups}
    assert list(rows) == ["fetcher", "transmitter", None]
    for name, heads in common.items():
        assert (rows[name].base, rows[name].variant, rows[name].common) == tuple(heads)
    assert (rows[None].base, rows[None].variant) == (len(base), len(tuned))
    assert rows[None].common == sum(len(base.heads_at(role) & tuned.heads_at(role)) for role in base.roles)


def test_strongest_heads_are_compared_at_the_size_of_each_group_too(results):
    assert [stage.stage for stage in results["tuned"].stages] == ["fetcher", "transmitter"]
    assert results["tuned"].not_run == ()
    for stage, size in zip(results["tuned"].stages, (3, 2), strict=True):
        assert sorted({size, 5, 10, 20, 40}) == [row.k for row in stage.strongest]
        assert stage.n_chosen[0] == size


def test_likeness_is_that_of_the_maps_of_the_stage_and_of_another_one(context, results):
    base, tuned = (
        {each.stage: each.found for each in context.run(discovered(context.study, name)).stages}
        for name in (context.study.base, "tuned")
    )

    def alike(one, other):
        return ratio(likeness(*(found.per_prompt.double().numpy() for found in (one, other)), one.scenarios.numpy()))

    for stage, other in zip(results["tuned"].stages, ("transmitter", "fetcher"), strict=True):
        one, two = ({name.name: found for name, found in maps.items()} for maps in (base, tuned))
        assert stage.likeness == alike(one[stage.stage], two[stage.stage])
        assert stage.different in (alike(one[stage.stage], two[other]), None)
        repeated = reliability(two[stage.stage].per_prompt.double().numpy(), two[stage.stage].scenarios.numpy())
        assert stage.variant_reliability == estimate(repeated)
        assert stage.ceiling is None


def test_the_base_trained_again_is_the_ceiling_of_the_others(context, results):
    again = results["tuned"]
    other = _with_ceiling(replace(again, stages=again.stages[:1]), again)
    assert [stage.ceiling for stage in other.stages] == [again.stages[0].likeness]
    assert context.run(SECTION.run(context.study, replace(OPTIONS, same_again="tuned"))) == results  # none is its own


def test_a_ceiling_that_was_not_searched_is_refused_in_one_line(context):
    known = outlined(context.study.settings)
    for name in ("plain", context.study.base, "nowhere"):
        with pytest.raises(InputError, match=rf"same_again names '{name}', no variant .*; choose one of tuned"):
            SECTION.check(known, OverlapOptions(same_again=name))
    SECTION.check(known, OverlapOptions(same_again="tuned"))


def test_how_alike_profiles_of_all_groups_with_heads_are_has_an_interval(context, results):
    moved = results["tuned"].moved
    base, tuned = (
        [name for name, group in context.run(circuit_of(context, model)).groups.items() if group.heads]
        for model in (context.study.base, "tuned")
    )
    assert [(row.base, row.variant) for row in moved] == [(one, other) for one in base for other in tuned]
    for row in moved:
        for alike in (row.attention, row.effect):
            assert -1 <= alike.low <= alike.value <= alike.high <= 1 + 1e-9
            assert alike.low < alike.high


def test_a_group_gives_nothing_to_a_role_that_comes_after_its_own(context):
    heads, prompts = (Head(0, 1), Head(2, 3)), PromptsOf("evaluation", first=4)
    circuit = Circuit({"reader": Group("query_label", heads)})
    work = group_work(context.loaded(), prompts=prompts, circuit=circuit, edges=(), roles=("last", "query_label"))
    later, at = work.attention["reader"].T
    assert (later == 0).all()
    assert (at > 0).all()


def test_attention_is_a_share_and_so_are_its_bounds():
    """One prompt in ten attends: a bootstrap alone would reach below 0, or above 1."""
    attends = (torch.arange(10) == 0).double()[:, None]
    for rows, at in ((attends, 0.1), (1 - attends, 0.9)):
        work = GroupWork({}, {"fetcher": rows}, {"fetcher": 5 * rows.T})
        [attention] = profiles(["last"], work, work, torch.arange(10))["fetcher"].attention
        assert attention.base.value == pytest.approx(at)
        assert 0 <= attention.base.low < at < attention.base.high <= 1
    [effect] = profiles(["last"], work, work, torch.arange(10))["fetcher"].effect
    assert effect.base.high > 1


def test_profiles_of_the_same_numbers_are_alike_and_one_scenario_gives_no_bounds():
    profile = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert cosine(profile, 2 * profile, torch.arange(6)).value == pytest.approx(1)
    alone = cosine(profile, -profile, torch.zeros(6, dtype=torch.long))
    assert (alone.value, alone.low, alone.high) == (pytest.approx(-1), None, None)


def test_false_discoveries_are_controlled_over_all_edges_of_a_variant():
    g, scenarios = torch.Generator().manual_seed(0), torch.arange(30) // 2
    edges = [Edge(name, None, None) for name in "abcd"]
    one, other = ({edge: torch.randn(30, generator=g) for edge in edges} for _ in range(2))
    raw = [float(cluster_p_values((other[edge] - one[edge]).numpy(), scenarios.numpy()).p) for edge in edges]
    compared = edges_compared(GroupWork(one, {}, {}), GroupWork(other, {}, {}), scenarios)
    adjusted = [row.adjusted_p for row in compared]
    assert adjusted == pytest.approx(false_discovery_adjusted(np.array(raw)).tolist(), abs=1e-6)
    assert adjusted != pytest.approx(raw)


def test_a_changed_head_is_told_if_it_shows_again_where_effects_are_reported(context):
    g, true, lucky = torch.Generator().manual_seed(0), (1, 2), (2, 0)
    stage = Stage("s", "last", Discoveries())

    def result(change: float, luck: float) -> StageResult:
        splits = [0.1 * torch.randn(3, 4, 30, generator=g, dtype=torch.float64) for _ in range(2)]
        for split, of_lucky in zip(splits, (luck, -luck), strict=True):
            split[true] += change
            split[lucky] += of_lucky
        return stage_result(
            stage, None, *(PathEffects(each, None, 0.0, torch.arange(30), "logit_difference") for each in splits)
        )

    base, variant = result(0.0, 0.0), result(-0.5, -0.3)
    maps = context.run(two_maps(context.study, MapOf("base", base, ("last",)), MapOf("tuned", variant, ("last",))))
    assert {(each.head.layer, each.head.index) for each in maps.changes} == {true, lucky}
    [changed] = _changed(maps)
    assert changed.head == true
    difference = (variant.replication.per_prompt - base.replication.per_prompt)[true]
    assert changed.difference.value == pytest.approx(float(difference.mean()))
    assert changed.difference.low < changed.difference.value < changed.difference.high < 0
    for of_model, result_there in ((changed.base, base), (changed.variant, variant)):
        assert of_model == pytest.approx(float(result_there.replication.effects[true]))


def test_a_record_comes_back_as_it_was():
    edges = {Edge("a", "b", "q"): torch.arange(3.0), Edge("b", None, None): torch.ones(3)}
    work = GroupWork(edges, {"a": torch.rand(3, 2)}, {"a": torch.rand(2, 3)})
    back = value_of(record_of(work))
    for mine, theirs in zip(back, work, strict=True):
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_second_time_nothing_is_computed_and_the_same_comes_back(context, results, monkeypatch):
    again = context.again(context.study.store.folder)
    monkeypatch.setattr("circuitdiff.study.sections.overlap.edge_effects", lambda *_: pytest.fail("computed again"))
    assert again.run(SECTION.run(again.study, OPTIONS)) == results


def test_too_few_scenarios_to_compare_maps_are_refused_where_there_is_a_variant(context, tmp_path):
    settings = context.study.settings
    prompts = settings.prompts.model_copy(update={"queries_per_scenario": 6})
    few = settings.model_copy(update={"prompts": prompts})
    known = outlined(settings)
    study = type(known)(few, known.plans, known.task, known.models)
    with pytest.raises(InputError, match=r"prompts\.discovery is 6, with 6 prompts a scenario: 1 scenarios"):
        SECTION.check(study, OPTIONS)
    SECTION.check(known, OPTIONS)
    alone = type(known)(few.model_copy(update={"variants": {}}), known.plans, known.task, known.models)
    SECTION.check(alone, OPTIONS)


def test_without_variants_there_is_nothing_to_compare(tmp_path):
    context = tiny_context(tmp_path)
    assert context.run(SECTION.run(context.study, OPTIONS)) == {}
