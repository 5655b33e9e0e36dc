"""Curves of rankings as a section of a study on a tiny model, against circuits that are built and run one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from circuitdiff.circuit import Circuit, Head
from circuitdiff.evaluation import evaluate_circuit, evaluate_model
from circuitdiff.methods.attribution_patching import attribution
from circuitdiff.stats.curves import curve_areas
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.sections.curves import SECTION, CurvesOptions, circuit, path_scores, ranked
from circuitdiff.study.sections.discovery import discovered
from helpers.tiny_context import TinyContext, tiny_study
from helpers.tiny_folder import save_tiny_model

OPTIONS = CurvesOptions(prompts=7, ablated=("slot", "resample"), shares=(0.05, 0.4), steps=3)


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> TinyContext:
    folder = tmp_path_factory.mktemp("study")
    base, tuned = (save_tiny_model(folder / name, seed) for seed, name in enumerate(("base", "tuned")))
    return TinyContext.of(tiny_study(base, variants={"tuned": str(tuned)}, discover_in=[]), folder / "run")


@pytest.fixture(scope="module")
def results(context):
    return context.run(SECTION.run(context.study, OPTIONS))


def test_every_ranking_has_a_curve_under_each_ablation_in_the_searched_models(results):
    assert list(results) == ["base"]
    found = results["base"]
    kinds = [(each.ranking, each.ablated) for each in found.curves]
    rankings = ["path", "attribution", "integrated", "random"]
    assert kinds == [(ranking, by) for by in ("slot", "resample") for ranking in rankings]
    n = len(found.roles) * 3 * 4
    assert {tuple(point.n_heads for point in each.points) for each in found.curves} == {
        (max(1, round(0.05 * n)), round(0.4 * n), n)
    }
    assert len({each.points[-1].faithfulness for each in found.curves if each.ablated == "slot"}) == 1, "all heads"


def test_a_point_is_the_circuit_of_the_first_heads_alone(context, results, monkeypatch):
    """In so small a model hardly a curve is defined: what its points are made of is compared, prompt by prompt."""
    seen = []

    def areas(circuits, ablated, model, shares, scenarios):
        seen.append((circuits, ablated, model))
        return curve_areas(circuits, ablated, model, shares, scenarios)

    monkeypatch.setattr("circuitdiff.study.sections.curves.curve_areas", areas)
    found = context.run(SECTION.run(context.study, OPTIONS))["base"]
    loaded = context.loaded("base")
    pairs, asked = loaded.pairs(PromptsOf("evaluation", first=7)), loaded.pairs(PromptsOf("discovery"))
    places = [(role, Head(i, j)) for role in found.roles for i in range(3) for j in range(4)]
    for (circuits, ablated, model), curve in zip(seen, found.curves, strict=True):
        if curve.ablated != "resample" or curve.ranking not in ("attribution", "integrated"):
            continue
        steps = 3 if curve.ranking == "integrated" else 1
        table = attribution(loaded.model, asked, found.roles, steps=steps).scores
        first = sorted(places, key=lambda place: float(table[place[0]][place[1].layer, place[1].index]))
        kept = [Circuit({}), *(circuit(first[: point.n_heads]) for point in curve.points)]
        alone = [evaluate_circuit(loaded.model, each, pairs, "resample").logit_differences.numpy() for each in kept]
        np.testing.assert_allclose([ablated, *circuits[0]], alone, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(model, evaluate_model(loaded.model, pairs).logit_differences.numpy(), rtol=1e-6)


def test_paths_are_ranked_by_the_most_negative_effect_of_a_role(context):
    found = context.run(discovered(context.study, "base"))
    table = path_scores(found)
    for role, each in table.items():
        stages = [result.found.effects for result in found.stages if result.stage.at == role]
        torch.testing.assert_close(each, torch.stack(stages).nan_to_num().amin(0))
    places = [("a", Head(0, 0)), ("b", Head(0, 1)), ("a", Head(1, 0))]
    scores = {"a": torch.tensor([[0.5, 0.0], [-0.2, 0.0]]), "b": torch.tensor([[0.0, -1.0], [0.0, 0.0]])}
    assert ranked(places, scores) == [("b", Head(0, 1)), ("a", Head(1, 0)), ("a", Head(0, 0))]
    assert circuit(places).heads_at("a") == {Head(0, 0), Head(1, 0)}
