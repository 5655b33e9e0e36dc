"""Fine-tuning: the loss sits at the answer, runs repeat and continue."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from circuitdiff.errors import InputError
from circuitdiff.finetune.loop import (
    Training,
    accuracy,
    answer_logits,
    batch_at,
    finetune,
    hits,
    learning_rate_at,
)
from circuitdiff.finetune.lora import add_lora
from helpers.tiny_decoders import tiny_decoder
from helpers.training import LORA, TRAINING, Killed, assert_same_values, examples, lora_model, trained_values


@torch.no_grad()
def test_answer_logits_are_those_of_each_prompt_alone_at_its_last_token():
    model, data = tiny_decoder(), examples()
    together = answer_logits(model, data)
    for i, length in enumerate(data.lengths):
        alone = model(input_ids=data.tokens[i : i + 1, :length]).logits[0, -1]
        torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_hits_are_counted_over_the_whole_vocabulary():
    model, data = tiny_decoder(), examples()
    best = answer_logits(model, data).argmax(-1)
    right = replace(data, answers=torch.where(torch.arange(len(data)) < 7, best, (best + 1) % 41)[:, None])
    assert hits(model, right).tolist() == [1] * 7 + [0] * 13
    assert accuracy(model, right) == 7 / 20


def test_a_step_of_full_fine_tuning_is_adamw_on_the_loss_at_the_answers():
    """One step by hand: with fresh moments AdamW moves every weight by the learning rate against its gradient."""
    model, by_hand = tiny_decoder().double(), tiny_decoder().double()
    data = examples(5)
    training = Training(steps=1, batch=5, learning_rate=1e-3, warmup=0, seed=0, stored_as="bfloat16")
    order = batch_at(1, 5, training)
    loss = 0
    for i in order.tolist():
        logits = by_hand(input_ids=data.tokens[i : i + 1, : data.lengths[i]]).logits[0, -1]
        loss = loss - logits.log_softmax(-1)[data.answers[i]] / 5
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in by_hand.parameters()]).norm()
    outcome = finetune(model, data, data, training)
    assert outcome.losses[0] == pytest.approx(loss.item(), rel=1e-6)
    for trained, p in zip(model.parameters(), by_hand.parameters(), strict=True):
        gradient = p.grad * min(1, 1 / (float(norm) + 1e-6))
        expected = p.detach() - 1e-3 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(trained.detach(), expected.to(torch.bfloat16).double(), rtol=1e-2, atol=1e-5)


def test_the_learning_rate_rises_then_falls_to_zero():
    training = Training(steps=10, batch=1, learning_rate=0.8, warmup=3, seed=0)
    rates = [learning_rate_at(step, training) for step in range(1, 12)]
    sevenths = [0.8 * k / 7 for k in range(7, -1, -1)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, *sevenths])


def test_an_epoch_uses_each_example_at_most_once_and_the_next_is_reshuffled():
    training = replace(TRAINING, batch=3)
    epochs = [torch.cat([batch_at(4 * epoch + i, 13, training) for i in range(1, 5)]) for epoch in range(2)]
    assert all(len(set(epoch.tolist())) == 12 for epoch in epochs)
    assert not torch.equal(*epochs)


# LoRA


def test_lora_changes_its_targets_in_its_layers_and_nothing_else():
    model = add_lora(tiny_decoder(), replace(LORA, targets=("o_proj", "down_proj"), layers=(0, 2)), seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = examples()
    finetune(model, data, data, replace(TRAINING, steps=3))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split("layers.")[1][0] for name in changed} == {"0", "2"}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in changed} == {"o_proj", "down_proj"}
    assert all("lora_" in name for name in changed)


def test_lora_begins_as_the_model_itself():
    data = examples()
    torch.testing.assert_close(answer_logits(lora_model(), data), answer_logits(tiny_decoder(), data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ("q_proj", "c_attn")}, r"no linear layer 'c_attn'; targets can be .*down_proj.*v_proj"),
        ({"layers": (0, 3)}, r"no layer 3; its layers are 0 to 2"),
    ],
)
def test_a_lora_that_the_model_cannot_take_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        add_lora(tiny_decoder(), replace(LORA, **change), seed=0)


def test_a_lora_begins_from_its_seed_alone():
    first = trained_values(lora_model())
    torch.rand(5)
    assert_same_values(trained_values(lora_model()), first)
    other = trained_values(lora_model(seed=4))
    assert any(not torch.equal(other[name], first[name]) for name in first)


def test_adding_a_lora_leaves_the_global_generator_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    lora_model()
    assert torch.equal(torch.rand(3), expected)


# Whole runs


def test_training_learns_the_task():
    model, data, unseen = tiny_decoder(), examples(200), examples(100, seed=1)
    assert accuracy(model, unseen) < 0.3
    training = Training(steps=80, batch=20, learning_rate=0.01, warmup=5, seed=0, evaluate_every=20)
    outcome = finetune(model, data, unseen, training)
    assert outcome.accuracy > 0.8
    assert [point.step for point in outcome.curve] == [20, 40, 60, 80]
    assert outcome.curve[0].accuracy <= outcome.curve[-1].accuracy


def test_training_stops_at_the_target_accuracy():
    training = Training(steps=80, batch=20, learning_rate=0.01, warmup=5, seed=0, evaluate_every=5, target_accuracy=0.5)
    outcome = finetune(tiny_decoder(), examples(200), examples(100, seed=1), training)
    assert len(outcome.losses) < 80
    assert [point.accuracy >= 0.5 for point in outcome.curve] == [False] * (len(outcome.curve) - 1) + [True]


def test_the_same_settings_give_the_same_weights_and_another_seed_others():
    data, models = examples(), [lora_model() for _ in range(3)]
    torch.rand(5)  # the global generator plays no part
    for model, seed in zip(models, (3, 3, 4), strict=True):
        finetune(model, data, data, replace(TRAINING, seed=seed))
    first, second, other = map(trained_values, models)
    assert_same_values(first, second)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("killed_at", [5, 8, 11])
def test_a_killed_run_continues_to_the_same_weights(tmp_path, killed_at):
    data, whole, state = examples(), lora_model(), tmp_path / "state.safetensors"
    expected = finetune(whole, data, data, replace(TRAINING, evaluate_every=3))

    def kill(step):
        if step == killed_at:
            raise Killed

    with pytest.raises(Killed):
        finetune(lora_model(), data, data, replace(TRAINING, evaluate_every=3), state=state, progress=kill)
    steps, continued = [], lora_model()
    training = replace(TRAINING, evaluate_every=3)
    outcome = finetune(continued, data, data, training, state=state, progress=steps.append)
    assert steps[0] == killed_at // 4 * 4 + 1
    assert outcome == expected
    assert_same_values(trained_values(continued), trained_values(whole))


@pytest.mark.parametrize("what", ["training", "identity", "examples"])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, what):
    data, state = examples(), tmp_path / "state.safetensors"
    finetune(lora_model(), data, data, TRAINING, state=state)
    training = replace(TRAINING, learning_rate=0.01) if what == "training" else TRAINING
    with pytest.raises(InputError, match=r"of a run with other settings; delete it"):
        finetune(
            lora_model(),
            examples(seed=9) if what == "examples" else data,
            data,
            training,
            identity="other" if what == "identity" else "",
            state=state,
        )


def test_a_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match=r"cannot read the checkpoint .*delete it"):
        finetune(lora_model(), examples(), examples(), TRAINING, state=tmp_path / "state.safetensors")


@pytest.mark.parametrize(
    ("change", "message"), [({"batch": 21}, "the 20 examples; got 21"), ({"warmup": 12}, "got 12 of 12 steps")]
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        finetune(lora_model(), examples(), examples(), replace(TRAINING, **change))


def test_a_loss_that_is_not_finite_stops_the_run():
    model = tiny_decoder()
    nn.init.constant_(model.lm_head.weight, torch.inf)
    with pytest.raises(InputError, match=r"the loss is (nan|inf): choose a smaller learning rate"):
        finetune(model, examples(), examples(), TRAINING)
