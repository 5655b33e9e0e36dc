"""Resample and zero ablation, and the model without heads, against loops over prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine import Batch
from circuitdiff.engine.replay import run_clean
from circuitdiff.errors import InputError
from circuitdiff.evaluation import (
    Evaluation,
    Shared,
    evaluate_circuit,
    evaluate_circuits,
    evaluate_model,
    evaluate_without,
    mean_activations,
)
from circuitdiff.prompts import Pairs
from helpers.fake_pairs import SLOTS, fake_pairs
from helpers.reference import Act
from helpers.tiny_models import D_HEAD, N_HEADS, N_LAYERS, subject

ROLES = ("last", "previous_query_label")
CIRCUIT = Circuit(
    {
        "fetcher": Group("last", (Head(3, 1), Head(2, 5), Head(1, 1))),
        "reader": Group("previous_query_label", (Head(0, 2), Head(1, 4))),
    }
)
WITHOUT = [
    Circuit({"fetcher": Group("last", (Head(3, 1),))}),
    Circuit({}),
    CIRCUIT,
    Circuit({"reader": Group("previous_query_label", (Head(1, 4),)), "late": Group("last", (Head(1, 4), Head(0, 0)))}),
]


def resampled_by_hand(pairs: Pairs, prompt: int) -> Tensor:
    """[layer, 1, pos, head, d_head]: the j-th token of a slot takes z of the j-th there, or of the last one."""
    own, other = (p.slots[prompt].tolist() for p in (pairs.clean_prompts, pairs.counterfactual_prompts))
    length = int(pairs.counterfactual_lengths[prompt])
    seen = subject("llama").reference.clean(pairs.counterfactual[prompt : prompt + 1, :length]).seen
    z = torch.zeros(N_LAYERS, 1, int(pairs.lengths[prompt]), N_HEADS, D_HEAD, dtype=torch.float64)
    for at in range(z.shape[2]):
        places = [i for i in range(length) if other[i] == own[at]]
        nth = own[:at].count(own[at])
        for layer in range(N_LAYERS):
            z[layer, 0, at] = seen[layer, "z"][0, places[min(nth, len(places) - 1)]]
    return z


def alone_by_hand(pairs: Pairs, prompt: int, constants: Tensor) -> Tensor:
    length = int(pairs.lengths[prompt])
    positions = [int(pairs.positions["previous_query_label"][prompt]), length - 1]
    kept = torch.zeros(1, N_LAYERS, 2, N_HEADS, dtype=torch.bool)
    for place, role in enumerate(["previous_query_label", "last"]):
        for head in CIRCUIT.heads_at(role):
            kept[0, head.layer, place, head.index] = True
    tokens = pairs.clean[prompt : prompt + 1, :length]
    return subject("llama").reference.ablated(tokens, positions, kept, constants)[0, 0]


def without_by_hand(pairs: Pairs, prompt: int, removed: Circuit, constants: Tensor) -> Tensor:
    """`constants`: [layer, 1, pos, head, d_head]."""
    length = int(pairs.lengths[prompt])
    gone = {(h.layer, int(pairs.positions[role][prompt]), h.index) for role in ROLES for h in removed.heads_at(role)}

    def rule(layer: int, _: int, at: int, head: int, own: Tensor) -> Tensor:
        return constants[layer, 0, at, head] if (layer, at, head) in gone else own

    return subject("llama").reference.logits(pairs.clean[prompt : prompt + 1, :length], Act(z_rule=rule))[0]


def assert_answers(actual: Evaluation, pairs: Pairs, prompt: int, logits: Tensor) -> None:
    answer = pairs.answers[prompt]
    log_prob, best = logits.log_softmax(-1)[answer], logits[pairs.foils[prompt]].max()
    assert float(actual.log_probs[prompt]) == pytest.approx(float(log_prob), abs=1e-10)
    assert float(actual.logit_differences[prompt]) == pytest.approx(float(logits[answer] - best), abs=1e-10)
    assert actual.predictions[prompt] == logits.argmax()


def shorter_counterfactuals() -> Pairs:
    """The counterfactual of each prompt is another one's: other lengths, and slots of other sizes."""
    pairs = fake_pairs()
    pairs.clean_prompts.slots[2, 7] = SLOTS.index("query_label")  # a second token of this slot, before the first
    order = torch.tensor([3, 1, 0, 2, 4])
    same_segment = replace(pairs.counterfactual_prompts.select(order))
    slots = same_segment.slots
    for label in ("segment_0.label", "segment_1.label"):  # every prompt has both
        for i in range(len(slots)):
            if not (slots[i] == SLOTS.index(label)).any():
                slots[i, 1] = SLOTS.index(label)
    return replace(pairs, counterfactual_prompts=same_segment)


@pytest.mark.parametrize("executor", ["window", "full"])
def test_resample_ablation_takes_each_counterfactuals_own_z_at_the_same_slot(executor):
    pairs = shorter_counterfactuals()
    actual = evaluate_circuit(subject("llama").model, CIRCUIT, pairs, "resample", executor)
    for i in range(len(pairs)):
        assert_answers(actual, pairs, i, alone_by_hand(pairs, i, resampled_by_hand(pairs, i)))


@pytest.mark.parametrize("executor", ["window", "full"])
def test_zero_ablation_puts_zeros_everywhere_but_in_the_circuit(executor):
    pairs = fake_pairs()
    actual = evaluate_circuit(subject("llama").model, CIRCUIT, pairs, "zero", executor)
    nothing = torch.zeros(N_LAYERS, 1, pairs.clean.shape[1], N_HEADS, D_HEAD, dtype=torch.float64)
    for i in range(len(pairs)):
        assert_answers(actual, pairs, i, alone_by_hand(pairs, i, nothing))


@pytest.mark.parametrize("executor", ["window", "full"])
@pytest.mark.parametrize("kind", ["mean", "resample", "zero"])
def test_the_model_without_heads_agrees_with_its_definition(executor, kind):
    pairs, model = shorter_counterfactuals(), subject("llama").model
    means = mean_activations(model, pairs)
    actual = evaluate_without(model, WITHOUT, pairs, means if kind == "mean" else kind, executor)
    for i in range(len(pairs)):
        slots = pairs.clean_prompts.slots[i, : pairs.lengths[i]]
        constants = {
            "mean": means.values[slots].transpose(0, 1)[:, None],
            "resample": resampled_by_hand(pairs, i),
            "zero": torch.zeros(N_LAYERS, 1, len(slots), N_HEADS, D_HEAD, dtype=torch.float64),
        }[kind]
        for removed, evaluation in zip(WITHOUT, actual, strict=True):
            assert_answers(evaluation, pairs, i, without_by_hand(pairs, i, removed, constants))


def test_the_model_without_nothing_is_the_model():
    pairs, model = fake_pairs(), subject("gemma2").model
    (actual,) = evaluate_without(model, [Circuit({})], pairs, "zero")
    torch.testing.assert_close(actual.log_probs, evaluate_model(model, pairs).log_probs, rtol=0, atol=1e-10)


def test_removals_run_in_parts_give_what_they_give_together(monkeypatch):
    pairs, model = fake_pairs(), subject("llama").model
    whole = evaluate_without(model, WITHOUT, pairs, "zero")
    monkeypatch.setattr("circuitdiff.evaluation.edited.rows_at_once", lambda *_: 1)
    for first, second in zip(whole, evaluate_without(model, WITHOUT, pairs, "zero"), strict=True):
        torch.testing.assert_close(first.log_probs, second.log_probs, rtol=0, atol=1e-10)


def test_a_clean_run_that_removals_build_on_takes_a_quarter_of_the_memory_at_most(monkeypatch):
    pairs, model = fake_pairs().select(torch.zeros(7, dtype=torch.long)), subject("llama").model
    whole = evaluate_without(model, WITHOUT, pairs, "zero")
    sizes: list[int] = []

    def batch(model, tokens, start):
        clean = run_clean(model, tokens)
        per_layer = (clean.resid_pre, clean.q, clean.k, clean.v, clean.z, clean.attention_output)
        sizes.append(sum(each.numel() * each.element_size() for layers in per_layer for each in layers))
        return Batch(model, tokens, start)

    batch(model, pairs.clean[:1, : int(pairs.lengths[0])], 0)
    one = sizes.pop()
    monkeypatch.setattr("circuitdiff.evaluation.edited.Batch", batch)
    monkeypatch.setattr("circuitdiff.evaluation.edited.rows_at_once", lambda *_: 2048)
    parts = evaluate_without(model, WITHOUT, pairs, "zero", memory_gb=4 * 5 * one / 2**30)
    assert sizes == [2 * one, 2 * one, 2 * one, one], "what works on a run counts about as much as what it leaves"
    for first, second in zip(whole, parts, strict=True):
        torch.testing.assert_close(first.log_probs, second.log_probs, rtol=0, atol=1e-10)


def test_calls_that_share_give_what_each_gives_alone():
    pairs, model, shared = fake_pairs(), subject("llama").model, Shared()
    both = {by: mean_activations(model, pairs, by=by) for by in ("slot", "kind")}
    pairs = pairs.select(torch.tensor([0, 3]))
    circuits = [CIRCUIT, Circuit({"moved": Group("query_label", (Head(2, 3),))})]
    for means in (both["slot"], both["kind"], "zero"):
        alone = evaluate_circuits(model, circuits, pairs, means)
        for circuit, expected in zip(
            circuits, alone, strict=True
        ):  # of other roles, and so with other constant columns
            (actual,) = evaluate_circuits(model, [circuit], pairs, means, shared=shared)
            torch.testing.assert_close(actual.log_probs, expected.log_probs, rtol=0, atol=1e-10)


def test_a_second_call_that_shares_runs_no_constant_token_again():
    pairs, model, shared = fake_pairs(), subject("llama").model, Shared()
    means, rows = mean_activations(model, pairs), []
    hook = model.layers[0].register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[:2].numel()))
    evaluate_circuits(model, [CIRCUIT], pairs, means, shared=shared)
    first, rows[:] = sum(rows), []
    evaluate_circuits(model, [CIRCUIT], pairs, means, shared=shared)
    hook.remove()
    bypassed = int(pairs.lengths.sum()) + len(pairs)  # every call embeds all tokens and unembeds the last ones
    assert sum(rows) - bypassed == 2 * len(pairs)  # one token at each of the circuit's two roles
    assert first > sum(rows)


def test_a_counterfactual_without_the_slot_cannot_be_resampled():
    pairs = fake_pairs()
    pairs.counterfactual_prompts.slots[3][pairs.counterfactual_prompts.slots[3] == SLOTS.index("end")] = 0
    with pytest.raises(InputError, match=r"counterfactual of prompt 3 lacks slot 'end'.*choose mean or zero"):
        evaluate_circuit(subject("llama").model, CIRCUIT, pairs, "resample")


def test_a_prompt_with_a_slot_that_the_means_lack_is_refused():
    pairs = fake_pairs()
    means = mean_activations(subject("llama").model, pairs)
    values = means.values.clone()
    values[SLOTS.index("segment_1.label")] = torch.nan
    for lacking in (replace(means, values=values), replace(means, values=means.values[:-1])):
        with pytest.raises(InputError, match=r"no mean for slot '(segment_1\.label|last)': take the means over more"):
            evaluate_circuit(subject("llama").model, CIRCUIT, pairs, lacking)
