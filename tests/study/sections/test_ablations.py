"""Ablations as a section of a study on a tiny model."""

from __future__ import annotations

import pytest

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.errors import InputError
from circuitdiff.evaluation import evaluate_circuit, evaluate_model
from circuitdiff.methods.ablations import Ablated, ablation_scores
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.registry import parse_study
from circuitdiff.study.sections.ablations import SECTION, AblationsOptions, UnderAblation
from helpers.tiny_context import PLANS, TinyContext, tiny_context, tiny_study

FETCHER = Group("last", (Head(2, 1), Head(1, 3), Head(2, 3)))
GIVEN = Circuit({"fetcher": FETCHER, "reader": Group("previous_query_label", (Head(0, 2),))})


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> TinyContext:
    return tiny_context(tmp_path_factory.mktemp("study"), GIVEN, plans={"main": PLANS["other"]})


@pytest.fixture(scope="module")
def results(context) -> dict[str, dict[str, UnderAblation]]:
    """By circuit and ablation, in the base."""
    found = context.run(SECTION.run(context.study, AblationsOptions()))
    return {name: models[context.study.base] for name, models in found.items()}


def test_heads_are_kept_at_every_segment_too_where_one_segment_alone_would_mark_it(context, results):
    assert list(results["given"]) == [
        "mean_by_slot",
        "mean_by_kind",
        "mean_by_kind_every_segment",
        "resample",
        "zero",
        "zero_every_segment",
    ]
    assert list(results[context.study.base]) == ["mean_by_slot", "mean_by_kind", "resample", "zero"], "at last alone"
    loaded = context.loaded()
    heads = {"fetcher": FETCHER}
    for i in range(3):
        heads[f"reader {i}"] = Group(f"segment_{i}.label", GIVEN.groups["reader"].heads)
    by_hand = evaluate_circuit(loaded.model, Circuit(heads), loaded.pairs(PromptsOf("evaluation")), "zero")
    probability = results["given"]["zero_every_segment"].probability.circuit.value
    assert probability == pytest.approx(float(by_hand.probabilities.mean()), abs=1e-6)


def test_each_quantity_of_each_ablation_is_the_librarys(context, results):
    loaded = context.loaded()
    pairs = loaded.pairs(PromptsOf("evaluation"))
    for ablation in ("resample", "zero"):
        circuit, nothing = (evaluate_circuit(loaded.model, each, pairs, ablation) for each in (GIVEN, Circuit({})))
        ablated = Ablated(circuit, evaluate_model(loaded.model, pairs), nothing)
        for field, quantity in (("accuracy", "hits"), ("probability",) * 2, ("logit_difference",) * 2):
            scores, given = ablation_scores(ablated, quantity), getattr(results["given"][ablation], field)
            for key in ("circuit", "model", "ablated"):
                assert getattr(given, key).value == pytest.approx(getattr(scores, key).value, abs=1e-5)
            assert given.ratio.note == scores.ratio.undefined
    assert results["given"]["zero"].n_prompts == 9


def test_of_the_first_prompts_the_models_answers_are_those_to_them(context):
    options = AblationsOptions(ablations=("zero",), prompts=4)
    zero = context.run(SECTION.run(context.study, options))["given"][context.study.base]["zero"]
    loaded = context.loaded()
    answers = evaluate_model(loaded.model, loaded.pairs(PromptsOf("evaluation", first=4)))
    assert zero.n_prompts == 4
    assert zero.logit_difference.model.value == pytest.approx(float(answers.logit_differences.mean()), abs=1e-5)


def test_resampling_is_left_out_with_a_warning_where_a_counterfactual_lacks_a_slot(context, monkeypatch):
    def lacking(pairs, replacement):
        raise InputError("the counterfactual of prompt 0 lacks slot 'x'")

    monkeypatch.setattr("circuitdiff.study.sections.ablations.check_replacement", lacking)
    again = context.again(context.study.store.folder)
    results = again.run(SECTION.run(again.study, AblationsOptions(ablations=("resample", "zero"))))
    assert list(results["given"][again.study.base]) == ["zero", "zero_every_segment"]
    assert (
        "circuit given was not evaluated with resampled activations: the counterfactual of prompt 0 lacks slot 'x'"
        in again.study.warnings
    )


@pytest.mark.parametrize("setting", [{"ablations": []}, {"ablations": ["noise"]}, {"promts": 3}])
def test_settings_that_cannot_be_are_refused(tmp_path, setting):
    with pytest.raises(InputError, match="ablations"):
        parse_study(tiny_study(tmp_path, ablations=setting), "test")
