"""Minimality as a section of a study on a tiny model."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.errors import InputError
from circuitdiff.evaluation import all_heads, evaluate_circuit, evaluate_model, mean_activations
from circuitdiff.methods.minimality import PUBLISHED, minimality
from circuitdiff.prompts import Pairs
from circuitdiff.study.estimates import circuit_from
from circuitdiff.study.preflight import outlined
from circuitdiff.study.prompts import PromptsOf, PromptSource
from circuitdiff.study.records import record_of, value_of
from circuitdiff.study.registry import parse_study
from circuitdiff.study.sections.minimality import SECTION, MinimalityOptions, PrunedCircuit
from helpers.tiny_context import PLANS, TinyContext, tiny_context, tiny_study

GIVEN = Circuit(
    {
        "fetcher": Group("last", (Head(2, 1), Head(1, 3), Head(2, 3))),
        "reader": Group("previous_query_label", (Head(0, 2),)),
    }
)
OPTIONS = MinimalityOptions(prompts=8, fraction=0.5)
FURTHER = PromptsOf("evaluation", first=8, beyond=True)


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> TinyContext:
    empty = {"name": "transmitter", "at": "last", "via": "q", "receivers_from": "fetcher", "select": {"minimum": 1e9}}
    main = {"stages": [PLANS["main"]["stages"][0], empty]}
    return tiny_context(tmp_path_factory.mktemp("study"), GIVEN, plans={"main": main, "other": PLANS["other"]})


@pytest.fixture(scope="module")
def results(context) -> dict[str, PrunedCircuit]:
    return context.run(SECTION.run(context.study, OPTIONS))


def test_further_prompts_ask_nothing_that_the_evaluation_prompts_do(context):
    loaded = context.loaded()
    pairs, fresh = loaded.pairs(PromptsOf("evaluation")), loaded.pairs(FURTHER)
    assert len(fresh) == 8
    assert not set(fresh.scenarios.tolist()) & set(pairs.scenarios.tolist())
    asked = {tuple(row) for row in pairs.clean.tolist()}
    assert not asked & {tuple(row) for row in fresh.clean.tolist()}


def test_costs_are_the_librarys(context, results):
    loaded, given = context.loaded(), results["given"]
    means = mean_activations(loaded.model, loaded.pairs(PromptsOf("means")))
    result = minimality(loaded.model, GIVEN, loaded.pairs(FURTHER), means, OPTIONS.rule)
    assert list(given.groups) == ["fetcher", "reader"]
    for name, rows in given.groups.items():
        for row, cost in zip(rows, result.groups[name].costs, strict=True):
            assert Head(*row.head) == cost.head
            assert [Head(*head) for head in row.removed_with] == list(cost.removed_with)
            assert [row.cost, row.low, row.high] == pytest.approx(list(cost.cost), abs=1e-6)
            assert row.cost_in_hits.value == pytest.approx(cost.cost_in_hits.value)
            assert row.needed_p == pytest.approx(cost.needed_p, abs=1e-4)
            assert row.not_needed_p == pytest.approx(cost.not_needed_p, abs=1e-4)
            assert row.outcome == cost.outcome
    every = [row.outcome for rows in given.groups.values() for row in rows]
    assert asdict(given.n_heads) == {outcome: every.count(outcome) for outcome in ("needed", "not_needed", "open")}
    assert circuit_from(given.kept) == result.pruned
    assert (given.n_prompts.choosing, given.n_prompts.testing, given.n_prompts.fresh) == (4, 4, 9)
    assert (given.model, given.rule) == (context.study.base, OPTIONS.rule)


def test_main_and_given_circuits_are_pruned_without_groups_that_have_no_heads(context, results):
    assert list(results) == [context.study.base, "given"], "not the circuit of the other plan"
    assert list(results[context.study.base].groups) == ["fetcher"], "the transmitter has no heads"


def test_a_record_comes_back_as_it_was(context):
    loaded = context.loaded()
    result = minimality(loaded.model, GIVEN, loaded.pairs(FURTHER), "zero", OPTIONS.rule)
    back = value_of(record_of(result))
    assert back.pruned == result.pruned
    assert [group.costs for group in back.groups.values()] == [group.costs for group in result.groups.values()]
    for name, group in result.groups.items():
        assert back.groups[name].table.heads == group.table.heads
        assert torch.equal(back.groups[name].table.scores, group.table.scores)
        assert torch.equal(back.groups[name].per_prompt, group.per_prompt)
    assert (back.rule, back.n_choosing) == (result.rule, result.n_choosing)
    assert torch.equal(back.scenarios, result.scenarios)


def answered_now_and_then(context: TinyContext, circuit: Circuit, monkeypatch: pytest.MonkeyPatch) -> Pairs:
    """Evaluation prompts from now on ask for what the model or the circuit answers anyway."""
    loaded = context.loaded()
    pairs = loaded.pairs(PromptsOf("evaluation"))
    means = mean_activations(loaded.model, loaded.pairs(PromptsOf("means")))
    both = [evaluate_model(loaded.model, pairs), evaluate_circuit(loaded.model, circuit, pairs, means)]
    answers = torch.where(torch.arange(len(pairs)) % 2 == 0, *(one.predictions for one in both))
    sampled = PromptSource._sampled

    def changed(source: PromptSource, of: PromptsOf) -> Pairs:
        return replace(pairs, answers=answers) if of == PromptsOf("evaluation") else sampled(source, of)

    monkeypatch.setattr(PromptSource, "_sampled", changed)
    return replace(pairs, answers=answers)


def test_faithfulness_before_and_after_pruning_is_that_of_the_evaluation_prompts(tmp_path: Path, monkeypatch):
    context = tiny_context(tmp_path, circuit := whole(), plans={"main": PLANS["other"]})
    pairs = answered_now_and_then(context, circuit, monkeypatch)
    fresh, strict = (
        context.again(tmp_path / "again"),
        MinimalityOptions(prompts=8, threshold=0.9, decision="ratio"),
    )  # nothing costs that
    pruned = fresh.run(SECTION.run(fresh.study, strict))["given"]
    loaded = fresh.loaded()
    means = mean_activations(loaded.model, loaded.pairs(PromptsOf("means")))
    hits = int(evaluate_model(loaded.model, pairs).hits.sum())
    of_circuit = {}
    for key, each in (("before", circuit), ("pruned", circuit_from(pruned.kept))):
        of_circuit[key] = int(evaluate_circuit(loaded.model, each, pairs, means).hits.sum())
        assert getattr(pruned, f"faithfulness_{key}").value == pytest.approx(of_circuit[key] / hits)
    assert of_circuit["before"] != of_circuit["pruned"]
    assert (pruned.n_heads.needed, pruned.n_heads.open) == (len(circuit_from(pruned.kept)), 0)


def whole() -> Circuit:
    return all_heads(3, 4, ["last", "query_label"])


def test_a_second_time_nothing_is_computed_and_the_same_comes_back(context, results, monkeypatch):
    again = context.again(context.study.store.folder)
    for name in ("study.sections.minimality.minimality", "study.common_units.evaluate_circuits"):
        monkeypatch.setattr(f"circuitdiff.{name}", lambda *_, **__: pytest.fail("computed again"))
    assert again.run(SECTION.run(again.study, OPTIONS)) == results


def test_the_published_rule_is_reached_by_settings_alone(tmp_path):
    published = {
        "score": "hits",
        "held_out": False,
        "decision": "ratio",
        "threshold": 0.01,
        "joint_removal_of_same_index": False,
    }
    study = parse_study(tiny_study(tmp_path, minimality=published), "test")
    assert study.minimality.rule == PUBLISHED


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"treshold": 0.1}, "threshold"),
        ({"prompts": 7}, "at least 8"),
        ({"fraction": 0.0}, "greater than 0"),
        ({"error_rate": 1.0}, "less than 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, setting, message):
    with pytest.raises(InputError, match=message):
        parse_study(tiny_study(tmp_path, minimality=setting), "test")


def test_prompts_of_too_few_scenarios_to_be_halved_are_refused(context):
    settings = context.study.settings
    prompts = settings.prompts.model_copy(update={"queries_per_scenario": 3})
    study = outlined(settings.model_copy(update={"prompts": prompts}))
    with pytest.raises(InputError, match=r"minimality\.prompts is 9, with 3 prompts a scenario: 3 scenarios, of at"):
        SECTION.check(study, MinimalityOptions(prompts=9))
    SECTION.check(study, MinimalityOptions(prompts=10))
    SECTION.check(study, MinimalityOptions(prompts=9, held_out=False))
