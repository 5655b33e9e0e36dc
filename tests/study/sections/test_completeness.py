"""Completeness as a section of a study on a tiny model."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.errors import InputError
from circuitdiff.evaluation import evaluate_model, mean_activations
from circuitdiff.methods.completeness import completeness, random_parts
from circuitdiff.study.estimates import circuit_from
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.records import record_of, value_of
from circuitdiff.study.registry import parse_study
from circuitdiff.study.sections.completeness import SECTION, CompletenessOptions, PartsRemoved
from helpers.tiny_context import PLANS, TinyContext, tiny_context, tiny_study

GIVEN = Circuit(
    {
        "fetcher": Group("last", (Head(2, 1), Head(1, 3), Head(2, 3))),
        "reader": Group("previous_query_label", (Head(0, 2),)),
    }
)
OPTIONS = CompletenessOptions(prompts=6, random_parts=4, greedy_steps=2, greedy_candidates=2, greedy_prompts=4)


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> TinyContext:
    return tiny_context(tmp_path_factory.mktemp("study"), GIVEN, plans={"main": PLANS["other"]})


@pytest.fixture(scope="module")
def given(context) -> PartsRemoved:
    results = context.run(SECTION.run(context.study, OPTIONS))
    assert list(results) == [context.study.base, "given"]
    return results["given"][context.study.base]


def test_every_row_is_the_librarys(context, given):
    loaded = context.loaded()
    parts = random_parts(GIVEN, 4, torch.Generator().manual_seed(context.study.settings.seed))
    pairs = loaded.pairs(PromptsOf("evaluation")).select(torch.arange(6))
    means = mean_activations(loaded.model, loaded.pairs(PromptsOf("means")))
    worst = circuit_from(given.greedy.removed)
    groups = [Circuit({name: group}) for name, group in GIVEN.groups.items()]
    result = completeness(loaded.model, GIVEN, [*parts, *groups, Circuit({}), GIVEN, worst], pairs, means)
    rows = [*given.random, *given.groups, given.nothing_removed, given.everything_removed, given.greedy]
    for i, row in enumerate(rows):
        assert row.model.value == pytest.approx(float(result.model[i].mean()), abs=1e-6)
        assert row.circuit.value == pytest.approx(float(result.circuit[i].mean()), abs=1e-6)
        assert row.difference.value == pytest.approx(row.model.value - row.circuit.value, abs=1e-9)
        assert row.absolute_difference.value == pytest.approx(abs(row.difference.value))
        assert row.n_removed == len(result.removed[i])
    assert [row.group for row in given.groups] == ["fetcher", "reader"]
    model = evaluate_model(loaded.model, pairs)
    assert given.nothing_removed.model.value == pytest.approx(float(model.log_probs.exp().mean()), abs=1e-6)
    assert (given.n_prompts, given.quantity) == (6, "probability")


def test_the_search_takes_its_steps_on_prompts_beyond_those_for_evaluation(context, given):
    loaded, removed = context.loaded(), []
    pairs = loaded.pairs(PromptsOf("evaluation", first=4, beyond=True))
    means = mean_activations(loaded.model, loaded.pairs(PromptsOf("means")))
    for step in given.greedy.search:
        removed.append((step.group, Head(*step.head)))
        groups = {
            name: Group(group.at, tuple(head for head in group.heads if (name, head) in removed))
            for name, group in GIVEN.groups.items()
        }
        part = Circuit({name: group for name, group in groups.items() if group.heads})
        alone = completeness(loaded.model, GIVEN, [part], pairs, means)
        assert step.model == pytest.approx(float(alone.model.mean()), abs=1e-6)
        assert step.circuit == pytest.approx(float(alone.circuit.mean()), abs=1e-6)
    assert len(given.greedy.search) == 2


def test_without_steps_there_is_no_search(context):
    options = CompletenessOptions(prompts=6, random_parts=3, greedy_steps=0)
    results = context.run(SECTION.run(context.study, options))
    assert results["given"][context.study.base].greedy is None


def test_a_record_comes_back_as_it_was(context):
    loaded, parts = context.loaded(), [GIVEN, Circuit({})]
    result = completeness(loaded.model, GIVEN, parts, loaded.pairs(PromptsOf("evaluation", first=4)), "zero")
    back, worst = value_of(record_of((result, None)))
    assert (back.removed, worst) == (result.removed, None)
    for name in ("model", "circuit", "scenarios"):
        assert torch.equal(getattr(back, name), getattr(result, name))


def test_a_second_time_nothing_is_computed_and_the_same_comes_back(context, given, monkeypatch):
    again = context.again(context.study.store.folder)
    for name in ("completeness", "greedy_part"):
        monkeypatch.setattr(
            f"circuitdiff.study.sections.completeness.{name}", lambda *_, **__: pytest.fail("computed again")
        )
    assert again.run(SECTION.run(again.study, OPTIONS))["given"][context.study.base] == given


def test_groups_in_another_order_are_other_work(context, given, tmp_path):
    """Random parts are drawn head by head, in the groups' order."""
    turned = Circuit(dict(reversed(GIVEN.groups.items())))
    again = tiny_context(tmp_path, turned, plans={"main": PLANS["other"]}).again(context.study.store.folder)
    results = again.run(SECTION.run(again.study, OPTIONS))["given"][again.study.base]
    assert [row.group for row in results.groups] == ["reader", "fetcher"]
    by_name = {row.group: row for row in results.groups}
    for row in given.groups:
        assert by_name[row.group].model.value == pytest.approx(row.model.value, abs=1e-6)


def test_an_unknown_setting_is_refused(tmp_path):
    with pytest.raises(InputError, match="random_prats"):
        parse_study(tiny_study(tmp_path, completeness={"random_prats": 3}), "test")
