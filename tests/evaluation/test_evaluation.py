"""Circuits on their own against loops over prompts, and means against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.errors import InputError
from circuitdiff.evaluation import (
    all_heads,
    evaluate_circuit,
    evaluate_circuits,
    evaluate_model,
    mean_activations,
    moved,
    random_circuit,
)
from circuitdiff.evaluation.shapes import roles_rotated
from circuitdiff.prompts import PromptSet
from helpers.fake_pairs import KINDS, SLOTS, fake_pairs
from helpers.tiny_models import D_HEAD, N_HEADS, N_LAYERS, subject

CIRCUIT = Circuit(
    {
        "fetcher": Group("last", (Head(3, 1), Head(2, 5))),
        "transmitter": Group("last", (Head(1, 1),)),
        "reader": Group("previous_query_label", (Head(0, 2), Head(1, 4))),
    }
)


def sums_by_hand(prompts: PromptSet) -> tuple[Tensor, Tensor]:
    total, count = torch.zeros(len(SLOTS), N_LAYERS, N_HEADS, D_HEAD, dtype=torch.float64), torch.zeros(len(SLOTS))
    for i, length in enumerate(prompts.lengths.tolist()):
        seen = subject("llama").reference.clean(prompts.tokens[i : i + 1, :length]).seen
        for at in range(length):
            slot = int(prompts.slots[i, at])
            count[slot] += 1
            for layer in range(N_LAYERS):
                total[slot, layer] += seen[layer, "z"][0, at]
    return total, count


def test_means_by_slot_are_those_over_the_counterfactual_prompts():
    pairs = fake_pairs()
    total, count = sums_by_hand(pairs.counterfactual_prompts)
    means = mean_activations(subject("llama").model, pairs, by="slot")
    torch.testing.assert_close(means.values, total / count[:, None, None, None], rtol=1e-10, atol=1e-10)


def test_means_by_kind_pool_the_segments():
    pairs = fake_pairs()
    total, count = sums_by_hand(pairs.counterfactual_prompts)
    means = mean_activations(subject("llama").model, pairs, by="kind")
    labels = [i for i, kind in enumerate(KINDS) if kind == "segment.label"]
    pooled = total[labels].sum(0) / count[labels].sum()
    for i in labels:
        torch.testing.assert_close(means.values[i], pooled, rtol=1e-10, atol=1e-10)
    last = SLOTS.index("last")
    torch.testing.assert_close(means.values[last], total[last] / count[last], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("executor", ["window", "full"])
@pytest.mark.parametrize("by", ["slot", "kind"])
def test_a_circuit_alone_agrees_with_its_definition(executor, by):
    pairs, chosen = fake_pairs(), subject("llama")
    means = mean_activations(chosen.model, pairs, by)
    actual = evaluate_circuit(chosen.model, CIRCUIT, pairs, means, executor)
    for i, length in enumerate(pairs.lengths.tolist()):
        constants = means.values[pairs.clean_prompts.slots[i, :length]].transpose(0, 1)[:, None]
        positions = [int(pairs.positions["previous_query_label"][i]), length - 1]
        kept = torch.zeros(1, N_LAYERS, 2, N_HEADS, dtype=torch.bool)
        for place, role in enumerate(["previous_query_label", "last"]):
            for head in CIRCUIT.heads_at(role):
                kept[0, head.layer, place, head.index] = True
        logits = chosen.reference.ablated(pairs.clean[i : i + 1, :length], positions, kept, constants)[0, 0]
        others = logits[pairs.foils[i]].max()
        assert actual.predictions[i] == logits.argmax()
        assert actual.hits[i] == (logits.argmax() == pairs.answers[i])
        assert float(actual.logit_differences[i]) == pytest.approx(float(logits[pairs.answers[i]] - others), abs=1e-10)
        log_prob = logits.log_softmax(-1)[pairs.answers[i]]
        assert float(actual.log_probs[i]) == pytest.approx(float(log_prob), abs=1e-10)


def test_circuits_evaluated_together_give_what_they_give_alone():
    pairs, model = fake_pairs(), subject("gemma2").model
    means = mean_activations(model, pairs)
    whole = [all_heads(model.n_layers, model.n_heads, [role]) for role in ("query_label", "last")]
    circuits = [CIRCUIT, Circuit({}), *whole]
    together = evaluate_circuits(model, circuits, pairs, means)
    for circuit, evaluation in zip(circuits, together, strict=True):
        alone = evaluate_circuit(model, circuit, pairs, means)
        torch.testing.assert_close(evaluation.log_probs, alone.log_probs, rtol=0, atol=1e-10)


def test_the_model_is_evaluated_prompt_by_prompt_as_it_is():
    pairs, chosen = fake_pairs(), subject("llama")
    evaluation = evaluate_model(chosen.model, pairs)
    for i, length in enumerate(pairs.lengths.tolist()):
        logits = chosen.reference.logits(pairs.clean[i : i + 1, :length])[0]
        assert evaluation.predictions[i] == logits.argmax()
        expected = logits.log_softmax(-1)[pairs.answers[i]]
        assert float(evaluation.log_probs[i]) == pytest.approx(float(expected), abs=1e-10)


def test_random_circuits_match_number_role_and_layer_range_without_repeats():
    g = torch.Generator().manual_seed(0)
    drawn = [random_circuit(CIRCUIT, N_LAYERS, N_HEADS, g) for _ in range(50)]
    for circuit in drawn:
        assert circuit.roles == CIRCUIT.roles
        for role in CIRCUIT.roles:
            heads, own = circuit.heads_at(role), CIRCUIT.heads_at(role)
            assert len(heads) == len(own)
            assert not heads & own
            layers = [head.layer for head in own]
            assert all(min(layers) <= head.layer <= max(layers) for head in heads)
    assert len({str(circuit.to_dict()) for circuit in drawn}) > 40
    assert {head.layer for circuit in drawn for head in circuit.heads_at("last")} == {1, 2, 3}


def test_roles_are_rotated_among_those_that_have_heads():
    three = {role: Group(role, (Head(i, 0),)) for i, role in enumerate(("a", "b", "c"))}
    rotated = roles_rotated(Circuit(three | {"nothing": Group("d", ())}))
    assert rotated.roles == ("b", "c", "a")
    assert [rotated.heads_at(role) for role in "abc"] == [{Head(2, 0)}, {Head(0, 0)}, {Head(1, 0)}]


def test_a_moved_circuit_has_each_group_at_every_new_role():
    roles = {"last": ["last"], "previous_query_label": ["segment_0.label", "segment_1.label"]}
    circuit = moved(CIRCUIT, lambda role: roles[role])
    assert circuit.heads_at("segment_1.label") == CIRCUIT.heads_at("previous_query_label")
    assert circuit.heads_at("last") == CIRCUIT.heads_at("last")
    assert circuit.heads_at("previous_query_label") == frozenset()


def test_a_circuit_of_another_model_is_refused():
    pairs, model = fake_pairs(), subject("llama").model
    means = mean_activations(model, pairs)
    for group, message in [
        (Group("last", (Head(4, 0),)), r"names head 4\.0, but the model has 4 layers"),
        (Group("first", (Head(0, 0),)), "role 'first', which the task lacks"),
        (Group("absent", (Head(0, 0),)), "no place in some prompts"),
    ]:
        with pytest.raises(InputError, match=message):
            evaluate_circuit(model, Circuit({"g": group}), pairs, means)


def test_a_slot_without_a_mean_is_refused():
    pairs = fake_pairs()
    slots = pairs.counterfactual_prompts.slots
    slots[slots == SLOTS.index("end")] = SLOTS.index("start")
    with pytest.raises(InputError, match="'end', so it has no mean; sample more"):
        mean_activations(subject("llama").model, pairs)


def test_means_are_found_by_the_names_of_slots_in_whatever_order_prompts_number_them():
    model, pairs = subject("llama").model, fake_pairs()
    order = torch.arange(len(SLOTS)).flip(0)

    def renumbered(prompts: PromptSet) -> PromptSet:
        slots = torch.where(prompts.slots < 0, -1, order.argsort()[prompts.slots.clamp(min=0)])
        names, kinds = ([each[i] for i in order.tolist()] for each in (prompts.slot_names, prompts.slot_kinds))
        return replace(prompts, slots=slots, slot_names=names, slot_kinds=kinds)

    other = replace(
        pairs,
        clean_prompts=renumbered(pairs.clean_prompts),
        counterfactual_prompts=renumbered(pairs.counterfactual_prompts),
    )
    means = mean_activations(model, pairs)
    expected = evaluate_circuit(model, CIRCUIT, pairs, means).log_probs
    torch.testing.assert_close(evaluate_circuit(model, CIRCUIT, other, means).log_probs, expected, rtol=0, atol=1e-12)
    assert other.fingerprint() != pairs.fingerprint()
