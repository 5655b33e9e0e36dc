"""One circuit under several ablations: each from its own evaluation, with ratios by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.errors import InputError
from circuitdiff.evaluation import Evaluation, evaluate_circuits, evaluate_model, mean_activations
from circuitdiff.methods.ablations import ABLATIONS, Ablated, ablation_scores, compare_ablations
from circuitdiff.stats.intervals import mean_interval
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import subject

CIRCUIT = Circuit({"fetcher": Group("last", (Head(3, 1), Head(2, 5)))})


def test_each_ablation_is_evaluated_with_its_own_constants():
    pairs, model = fake_pairs(), subject("llama").model
    means = {by: mean_activations(model, pairs, by=by) for by in ("slot", "kind")}
    pairs = pairs.select(torch.tensor([1, 3]))
    found = compare_ablations(model, CIRCUIT, pairs, means)
    constants = {"mean_by_slot": means["slot"], "mean_by_kind": means["kind"], "resample": "resample", "zero": "zero"}
    assert tuple(found) == ABLATIONS == tuple(constants)
    whole = evaluate_model(model, pairs)
    for name, one in found.items():
        both = evaluate_circuits(model, [CIRCUIT, Circuit({})], pairs, constants[name])
        for actual, expected in zip((one.circuit, one.ablated), both, strict=True):
            torch.testing.assert_close(actual.log_probs, expected.log_probs, rtol=0, atol=1e-10)
        torch.testing.assert_close(one.model.log_probs, whole.log_probs, rtol=0, atol=1e-10)
    values = [one.circuit.log_probs for one in found.values()]
    assert min(float((a - b).abs().max()) for i, a in enumerate(values) for b in values[:i]) > 1e-4


def evaluation(values: list[float]) -> Evaluation:
    """Logit differences as given, probabilities a tenth of them, hits where they are above 4."""
    v = torch.tensor(values, dtype=torch.float64)
    return Evaluation(v > 4, torch.zeros(len(v), dtype=torch.long), v, (v / 10).log(), torch.arange(len(v)))


FOUND = Ablated(
    circuit=evaluation([4.0, 6.0, 5.0, 5.0]),
    model=evaluation([8.0, 9.0, 7.0, 8.0]),
    ablated=evaluation([2.0, 1.0, 2.0, 3.0]),
)


@pytest.mark.parametrize(("quantity", "unit"), [("logit_difference", 1.0), ("probability", 0.1)])
def test_scores_stand_side_by_side_as_a_ratio_and_normalised(quantity, unit):
    scores = ablation_scores(FOUND, quantity)
    assert (scores.circuit.value, scores.model.value) == (pytest.approx(5 * unit), pytest.approx(8 * unit))
    assert scores.ablated.value == pytest.approx(2 * unit)
    assert scores.ratio.value == pytest.approx(5 / 8)
    assert scores.normalised.value == pytest.approx(3 / 6)
    expected = mean_interval(np.array([4.0, 6.0, 5.0, 5.0]) * unit, np.arange(4))
    np.testing.assert_allclose(scores.circuit, [float(bound) for bound in expected])
    assert scores.ratio.low < 5 / 8 < scores.ratio.high


def test_accuracy_is_the_share_of_hits():
    scores = ablation_scores(FOUND, "hits")
    assert (scores.circuit.value, scores.model.value, scores.ablated.value) == (0.75, 1.0, 0.0)
    assert scores.model.low < 1.0, "Wilson's interval at 1"
    prompts = torch.arange(40)
    rows = (each.select(prompts % 4) for each in (FOUND.circuit, FOUND.model, FOUND.ablated))
    often = Ablated(*(replace(each, scenarios=prompts) for each in rows))
    scores = ablation_scores(often, "hits")
    assert scores.normalised.value == scores.ratio.value == 0.75
    assert (scores.normalised.low, scores.normalised.high) == pytest.approx((scores.ratio.low, scores.ratio.high))


def test_four_hits_are_too_few_to_divide_by():
    assert "the denominator is 1, which is not surely above 0" in str(ablation_scores(FOUND, "hits").ratio.undefined)


def test_a_model_at_zero_has_no_ratio_and_says_why():
    nothing = evaluation([1.0, 2.0, 1.0, 2.0])
    scores = ablation_scores(Ablated(FOUND.circuit, nothing, nothing), "hits")
    assert np.isnan(scores.ratio.value)
    assert "not surely above 0" in str(scores.ratio.undefined)


def test_a_missing_mean_and_an_empty_group_are_refused():
    pairs, model = fake_pairs(), subject("llama").model
    means = mean_activations(model, pairs)
    with pytest.raises(InputError, match="'kind' is missing, add it"):
        compare_ablations(model, CIRCUIT, pairs, {"slot": means})
    with pytest.raises(InputError, match="group 'g' has no heads"):
        compare_ablations(model, Circuit({"g": Group("last", ())}), pairs, {"slot": means, "kind": means})
