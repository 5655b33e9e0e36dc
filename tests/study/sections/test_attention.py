"""Attention to roles as a section of a study on tiny models, one of which has a circuit of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.errors import InputError
from circuitdiff.methods.attention import AttentionToRoles, attention_to_roles
from circuitdiff.study.estimates import with_heads
from circuitdiff.study.preflight import outlined
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.records import record_of, value_of
from circuitdiff.study.sections import attention
from circuitdiff.study.sections.attention import SECTION, AttentionOptions, group_attention, roles_of
from circuitdiff.study.sections.discovery import discovered
from helpers.fake_pairs import fake_pairs
from helpers.tiny_context import TinyContext, tiny_study
from helpers.tiny_folder import save_tiny_model

OPTIONS = AttentionOptions(prompts=7)
GIVEN = Circuit({"reader": Group("query_label", (Head(0, 1), Head(2, 3)))})


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> TinyContext:
    folder = tmp_path_factory.mktemp("study")
    models = [save_tiny_model(folder / name, seed) for seed, name in enumerate(("base", "tuned", "plain"))]
    GIVEN.to_json(folder / "given.json")
    more = {"circuits": {"given": str(folder / "given.json")}, "discover_in": ["tuned"]}
    variants = {path.name: str(path) for path in models[1:]}
    return TinyContext.of(tiny_study(models[0], variants=variants, **more), folder / "run")


@pytest.fixture(scope="module")
def results(context):
    return context.run(SECTION.run(context.study, OPTIONS))


def test_the_bases_and_a_given_circuit_are_seen_in_every_model_and_a_variants_own_in_the_variant(results):
    everywhere = ["base", "tuned", "plain"]
    assert {name: list(models) for name, models in results.items()} == {
        "base": everywhere,
        "tuned": ["tuned"],
        "given": everywhere,
    }
    assert list(results["given"]["plain"].groups) == ["reader"]
    assert {(each.n_prompts, each.n_scenarios) for models in results.values() for each in models.values()} == {(7, 7)}


def test_every_number_is_the_librarys(context, results):
    for name, models in results.items():
        circuit = with_heads(context.run(circuit_of(context, name)))
        for model, each in models.items():
            loaded = context.loaded(model)
            pairs = loaded.pairs(PromptsOf("evaluation", first=7))
            roles = [role for role in context.study.task.roles if "." not in role]
            by_group = attention_to_roles(loaded.model, circuit, pairs, roles)
            assert each.groups == {
                group: group_attention(circuit.groups[group].at, found) for group, found in by_group.items()
            }


async def circuit_of(context: TinyContext, name: str) -> Circuit:
    return (await discovered(context.study, name)).circuit


def test_a_heads_shares_are_its_own_role_by_role_and_of_prompts_that_have_the_role():
    g = torch.Generator().manual_seed(0)
    plain, weighted = torch.rand(2, 2, 5, 3, generator=g)
    for shares in (plain, weighted):
        shares[:, 0, 0] = shares[:, :, 1] = torch.nan
    found = AttentionToRoles((Head(3, 1), Head(0, 2)), ("object", "later"), plain, weighted, torch.arange(5))
    group = group_attention("last", found)
    assert (group.at, [head.head for head in group.heads]) == ("last", [(3, 1), (0, 2)])
    for i, head in enumerate(group.heads):
        assert list(head.to) == ["object", "later"]
        for shares, expected in (("attention", plain[i]), ("value_weighted", weighted[i])):
            assert getattr(head.to["object"], shares).value == pytest.approx(float(expected[1:, 0].mean()))
            assert getattr(head.to["later"], shares).value is None
            assert getattr(head.other, shares).value == pytest.approx(float(expected[:, 2].mean()))
        assert [each.n_prompts for each in (*head.to.values(), head.other)] == [4, 0, 5]


def test_only_the_roles_that_are_named_are_told_apart(context):
    options = AttentionOptions(prompts=7, roles=("correct_object", "segment_1.label"))
    given = context.run(SECTION.run(context.study, options))["given"]
    for head in given["tuned"].groups["reader"].heads:
        assert list(head.to) == ["correct_object", "segment_1.label"]
        values = [each.attention.value for each in (*head.to.values(), head.other)]
        assert sum(values) == pytest.approx(1, abs=1e-6)


def test_a_role_that_no_prompt_has_is_left_out_and_so_is_one_segment_of_many(context):
    task, pairs = context.study.task, fake_pairs()
    more = {"other_object": torch.full((5,), -1), "segment_0.label": torch.ones(5, dtype=torch.long)}
    both = (pairs.clean_prompts, pairs.counterfactual_prompts)
    clean, other = (replace(each, positions={**each.positions, **more}) for each in both)
    pairs = replace(pairs, clean_prompts=clean, counterfactual_prompts=other)
    assert roles_of(OPTIONS, task, pairs) == ("query_label", "last", "previous_query_label")
    named = AttentionOptions(roles=("segment_0.label", "other_object", "correct_object"))
    assert roles_of(named, task, pairs) == ("segment_0.label",)
    with pytest.raises(InputError, match="no prompt has other_object or correct_object; name other roles"):
        roles_of(AttentionOptions(roles=("other_object", "correct_object")), task, pairs)


def test_a_second_time_nothing_is_computed_and_the_same_comes_back(context, results, monkeypatch):
    again = context.again(context.study.store.folder)
    monkeypatch.setattr(
        "circuitdiff.study.common_units.attention_to_roles", lambda *_, **__: pytest.fail("computed again")
    )
    assert again.run(SECTION.run(again.study, OPTIONS)) == results


def test_a_record_comes_back_as_it_was():
    shares = torch.rand(2, 3, 2)
    found = AttentionToRoles((Head(1, 2), Head(0, 3)), ("last",), shares, shares**2, torch.arange(3))
    back = value_of(record_of(found))
    assert (back.heads, back.roles) == (found.heads, found.roles)
    for name in ("attention", "value_weighted", "scenarios"):
        assert torch.equal(getattr(back, name), getattr(found, name))


def test_circuits_without_heads_attend_nowhere(context, monkeypatch):
    async def none(_):
        return {}

    monkeypatch.setattr(attention, "main_circuits", none)
    assert context.run(SECTION.run(context.study, OPTIONS)) == {}


def test_roles_that_the_task_lacks_are_refused(context):
    study = outlined(context.study.settings)
    with pytest.raises(InputError, match=r"attention\.roles names 'lats'"):
        SECTION.check(study, AttentionOptions(roles=("last", "lats")))
    SECTION.check(study, AttentionOptions(roles=("last", "segment_1.label")))
