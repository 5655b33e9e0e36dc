"""Minimality, completeness and ablations as sections of a study on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from circuitdiff.sections.ablations import ablations_section
from circuitdiff.sections.circuit_settings import AblationsSettings, CompletenessSettings, MinimalitySettings
from circuitdiff.sections.completeness import completeness_section
from circuitdiff.sections.further_prompts import further_prompts
from circuitdiff.sections.minimality import minimality_section
from circuitdiff.settings import read_settings
from circuitdiff.stages import Stages
from circuitdiff.workbench import Subject, Workbench
from pydantic import ValidationError

from circuitdiff.cache.store import Store, to_json
from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.errors import InputError
from circuitdiff.evaluation import all_heads, evaluate_circuit, evaluate_model, mean_activations
from circuitdiff.methods.ablations import Ablated, ablation_scores
from circuitdiff.methods.completeness import completeness, random_parts
from circuitdiff.methods.minimality import PUBLISHED, minimality
from helpers.tiny_folder import save_tiny_model, study_yaml

FOUND = Circuit(
    {
        "fetcher": Group("last", (Head(2, 1), Head(1, 3), Head(2, 3))),
        "reader": Group("previous_query_label", (Head(0, 2),)),
        "nothing": Group("query_label", ()),
    }
)
TESTED = Circuit({name: FOUND.groups[name] for name in ("fetcher", "reader")})
MINIMALITY = MinimalitySettings(prompts=8, fraction=0.5)
COMPLETENESS = CompletenessSettings(prompts=6, random_parts=4, greedy_steps=2, greedy_candidates=2, greedy_prompts=4)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Workbench:
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yaml").write_text(study_yaml(save_tiny_model(folder / "model")))
    return Workbench(read_settings(folder / "tiny.yaml"), Store.open(folder / "run"), lambda *_: None)


def stored(sections: dict) -> dict:
    """As results.json has it: strict JSON, nan as null."""
    return json.loads(to_json(sections))


def test_further_prompts_ask_nothing_that_the_evaluation_prompts_do(bench):
    subject = bench.subject(bench.base)
    pairs, fresh = subject.splits.evaluation, further_prompts(bench, subject, 8)
    assert len(fresh) == 8
    assert not set(fresh.scenarios.tolist()) & set(pairs.scenarios.tolist())
    asked = {tuple(row) for row in pairs.clean.tolist()}
    assert not asked & {tuple(row) for row in fresh.clean.tolist()}


def test_the_minimality_section_holds_the_librarys_numbers(bench):
    subject = bench.subject(bench.base)
    entry = stored(minimality_section(bench, bench.base, "mine", FOUND, MINIMALITY))["minimality"]["mine"]
    means = mean_activations(subject.model, subject.splits.means)
    result = minimality(subject.model, TESTED, further_prompts(bench, subject, 8), means, MINIMALITY.rule())
    assert list(entry["groups"]) == ["fetcher", "reader"]
    for name, rows in entry["groups"].items():
        for row, cost in zip(rows, result.groups[name].costs, strict=True):
            assert Head(*row["head"]) == cost.head
            assert [Head(*head) for head in row["removed_with"]] == list(cost.removed_with)
            assert [row["cost"], row["low"], row["high"]] == pytest.approx(list(cost.cost), abs=1e-6)
            assert row["cost_in_hits"]["value"] == pytest.approx(cost.cost_in_hits.value)
            assert row["adjusted_p"] == pytest.approx(cost.adjusted_p, abs=1e-4)
            assert row["kept"] == cost.kept
    assert Circuit.from_dict(entry["kept"]) == result.pruned
    assert entry["n_prompts"] == {"choosing": 4, "testing": 4, "fresh": 9}
    assert entry["model"] == bench.base


def where_some_answers_are_right(bench: Workbench, folder: Path, circuit: Circuit) -> Workbench:
    """The same study in another folder, asking for what the model or the circuit says anyway."""
    subject, other = bench.subject(bench.base), Workbench(bench.settings, Store.open(folder), bench.monitor)
    pairs, means = subject.splits.evaluation, mean_activations(subject.model, subject.splits.means)
    said = [evaluate_model(subject.model, pairs), evaluate_circuit(subject.model, circuit, pairs, means)]
    answers = torch.where(torch.arange(len(pairs)) % 2 == 0, *(one.predictions for one in said))
    splits = replace(subject.splits, evaluation=replace(pairs, answers=answers))
    stages = Stages(bench.settings, other.store, bench.monitor, subject.model, subject.stages.means_prompts)
    other._loaded[bench.base] = Subject(subject.model, splits, stages)
    return other


def test_faithfulness_before_and_after_pruning_is_that_of_the_evaluation_prompts(bench, tmp_path):
    large = all_heads(bench.subject(bench.base).model, ["last", "query_label"])
    bench = where_some_answers_are_right(bench, tmp_path, large)
    subject, strict = bench.subject(bench.base), MinimalitySettings(prompts=8, threshold=0.9)  # no head costs as much
    entry = stored(minimality_section(bench, bench.base, "mine", large, strict))["minimality"]["mine"]
    means, pairs = mean_activations(subject.model, subject.splits.means), subject.splits.evaluation
    hits = int(evaluate_model(subject.model, pairs).hits.sum())
    own = {}
    for key, circuit in (("before", large), ("pruned", Circuit.from_dict(entry["kept"]))):
        own[key] = int(evaluate_circuit(subject.model, circuit, pairs, means).hits.sum())
        assert entry[f"faithfulness_{key}"]["value"] == pytest.approx(own[key] / hits)
        assert entry["n_heads"][key] == len(circuit)
    assert own["before"] != own["pruned"]


def test_the_completeness_section_holds_the_librarys_numbers(bench):
    subject = bench.subject(bench.base)
    entry = stored(completeness_section(bench, bench.base, "mine", FOUND, COMPLETENESS))
    entry = entry["completeness"]["mine"][bench.base]
    parts = random_parts(TESTED, 4, torch.Generator().manual_seed(bench.settings.seed))
    pairs = subject.splits.evaluation.select(torch.arange(6))
    means = mean_activations(subject.model, subject.splits.means)
    worst = Circuit.from_dict(entry["greedy"]["removed"])
    found = completeness(subject.model, TESTED, [*parts, TESTED, Circuit({}), worst], pairs, means)
    rows = [*entry["random"], entry["everything_removed"], entry["nothing_removed"], entry["greedy"]]
    for i, row in enumerate(rows):
        assert row["model"]["value"] == pytest.approx(float(found.model[i].mean()), abs=1e-6)
        assert row["circuit"]["value"] == pytest.approx(float(found.circuit[i].mean()), abs=1e-6)
        assert row["difference"]["value"] == pytest.approx(row["model"]["value"] - row["circuit"]["value"], abs=1e-9)
        assert row["n_removed"] == len(found.removed[i])
    assert [row["group"] for row in entry["groups"]] == ["fetcher", "reader"]
    assert entry["nothing_removed"]["model"]["value"] == pytest.approx(
        float(evaluate_model(subject.model, pairs).log_probs.exp().mean()), abs=1e-6
    )
    assert len(entry["greedy"]["search"]) == 2
    assert (entry["n_prompts"], entry["quantity"]) == (6, "probability")


def test_the_ablations_section_holds_each_quantity_of_each_ablation(bench):
    subject = bench.subject(bench.base)
    entry = stored(ablations_section(bench, bench.base, "mine", FOUND, AblationsSettings()))
    entry = entry["ablations"]["mine"][bench.base]
    assert list(entry) == [
        "mean_by_slot",
        "mean_by_kind",
        "mean_by_kind_every_segment",
        "resample",
        "zero",
        "zero_every_segment",
    ]
    pairs = subject.splits.evaluation
    everywhere = [f"segment_{i}.label" for i in range(3)]
    heads = {"fetcher": FOUND.groups["fetcher"]}
    heads |= {f"reader {role}": Group(role, FOUND.groups["reader"].heads) for role in everywhere}
    by_hand = evaluate_circuit(subject.model, Circuit(heads), pairs, "zero")
    assert entry["zero_every_segment"]["probability"]["circuit"]["value"] == pytest.approx(
        float(by_hand.probabilities.mean()), abs=1e-6
    )
    only_last = Circuit({"fetcher": FOUND.groups["fetcher"]})
    alone = ablations_section(bench, bench.base, "last", only_last, AblationsSettings())["ablations"]["last"]
    assert list(alone[bench.base]) == ["mean_by_slot", "mean_by_kind", "resample", "zero"]
    for name in ("resample", "zero"):
        rows = [evaluate_circuit(subject.model, circuit, pairs, name) for circuit in (TESTED, Circuit({}))]
        scores = ablation_scores(Ablated(rows[0], evaluate_model(subject.model, pairs), rows[1]), "logit_difference")
        found = entry[name]["logit_difference"]
        for key in ("circuit", "model", "ablated"):
            assert found[key]["value"] == pytest.approx(getattr(scores, key).value, abs=1e-5)
    assert {"n_prompts", "accuracy", "probability", "logit_difference"} == set(entry["zero"])


def test_a_second_time_nothing_is_computed_and_the_same_comes_back(bench, monkeypatch):
    def run() -> list[dict]:
        return [
            stored(minimality_section(bench, bench.base, "mine", FOUND, MINIMALITY)),
            stored(completeness_section(bench, bench.base, "mine", FOUND, COMPLETENESS)),
            stored(ablations_section(bench, bench.base, "mine", FOUND, AblationsSettings())),
        ]

    first = run()
    for name in (
        "sections.minimality.minimality",
        "sections.completeness.completeness",
        "sections.completeness.greedy_part",
        "stages.evaluate_circuits",
    ):
        monkeypatch.setattr(f"circuitdiff.{name}", lambda *_, **__: pytest.fail("computed again"))
    assert run() == first


def test_resampling_is_left_out_and_said_where_a_counterfactual_lacks_a_slot(bench, monkeypatch):
    def lacking(pairs, replacement):
        raise InputError("the counterfactual of prompt 0 lacks slot 'x'")

    monkeypatch.setattr("circuitdiff.sections.ablations.check_replacement", lacking)
    settings = AblationsSettings(ablations=("resample", "zero"))
    entry = ablations_section(bench, bench.base, "mine", FOUND, settings)["ablations"]["mine"][bench.base]
    assert list(entry) == ["zero", "zero_every_segment"]
    assert any("not evaluated with resampled activations: the counter" in text for text in bench.results["warnings"])


def test_the_published_rule_is_reached_by_settings_alone():
    settings = MinimalitySettings(
        score="hits", held_out=False, decision="ratio", threshold=0.01, joint_removal_of_same_index=False
    )
    assert settings.rule() == PUBLISHED


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        MinimalitySettings.model_validate({"treshold": 0.1})
