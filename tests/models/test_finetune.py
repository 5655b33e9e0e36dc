"""Fine-tuning: the loss sits at the answer, runs repeat and continue, and what is measured is what is stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from circuitdiff.errors import InputError
from circuitdiff.models.examples import Examples, read_examples
from circuitdiff.models.finetune import (
    Training,
    accuracy,
    answer_logits,
    batch_at,
    finetune,
    hits,
    learning_rate_at,
)
from circuitdiff.models.lora import Lora, add_lora
from circuitdiff.models.saving import save_adapter, writing
from circuitdiff.models.sources import read_source
from circuitdiff.recipes import made_by, read_recipe, run_recipe
from tiny_decoders import WORDS, save_decoder, tiny_decoder, tiny_tokenizer

LORA = Lora(rank=4, alpha=8, targets=("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
TRAINING = Training(steps=12, batch=5, learning_rate=0.02, warmup=2, seed=3, checkpoint_every=4)


def examples(n=20, seed=0):
    """Prompts of three lengths; the answer is the token after the first one in the vocabulary."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 7, (n,), generator=g)
    tokens = torch.randint(1, 12, (n, 6), generator=g)
    answers = tokens[:, 0] + 1
    tokens[torch.arange(6) >= lengths[:, None]] = 0
    return Examples(tokens, lengths, answers[:, None])


def lora_model(seed=3):
    return add_lora(tiny_decoder(), LORA, seed)


def trained_values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same_values(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# The loss and its place


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
        ({"rank": 0}, r"at least 1; got 0"),
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
    assert outcome.steps_done < 80
    assert [point.accuracy >= 0.5 for point in outcome.curve] == [False] * (len(outcome.curve) - 1) + [True]


def test_the_same_settings_give_the_same_weights_and_another_seed_others():
    data, models = examples(), [lora_model() for _ in range(3)]
    torch.rand(5)  # the global generator plays no part
    for model, seed in zip(models, (3, 3, 4), strict=True):
        finetune(model, data, data, replace(TRAINING, seed=seed))
    first, second, other = map(trained_values, models)
    assert_same_values(first, second)
    assert any(not torch.equal(first[name], other[name]) for name in first)


class Killed(BaseException):
    """Like a signal: nothing catches it."""


@pytest.mark.parametrize("killed_at", [5, 8, 11])
def test_a_killed_run_continues_to_the_same_weights(tmp_path, killed_at):
    data, whole, state = examples(), lora_model(), tmp_path / "state.safetensors"
    expected = finetune(whole, data, data, replace(TRAINING, evaluate_every=3))

    def kill(progress):
        if progress.step == killed_at:
            raise Killed

    with pytest.raises(Killed):
        finetune(lora_model(), data, data, replace(TRAINING, evaluate_every=3), state=state, progress=kill)
    steps, continued = [], lora_model()
    outcome = finetune(
        continued,
        data,
        data,
        replace(TRAINING, evaluate_every=3),
        state=state,
        progress=lambda p: steps.append(p.step),
    )
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


# What is stored is what was measured


@pytest.mark.parametrize("stored_as", ["float16", "bfloat16"])
def test_the_stored_adapter_gives_the_logits_that_were_measured(tmp_path, stored_as):
    model, data = lora_model(), examples()
    finetune(model, data, data, replace(TRAINING, stored_as=stored_as))
    measured = answer_logits(model, data).detach()
    save_adapter(model, tmp_path / "adapter", "tiny", stored_as)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, stored_as)}
    read = read_source(save_decoder(tmp_path / "base"), [tmp_path / "adapter"])
    torch.testing.assert_close(answer_logits(read.model, data), measured, rtol=1e-5, atol=1e-5)
    for name, value in trained_values(model).items():
        assert torch.equal(stored[name.replace(".default", "")].float(), value)


def test_the_same_adapter_is_stored_as_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_adapter(lora_model(), tmp_path / name, "tiny", "float16")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(LORA.targets)  # a set in peft: its order changes from run to run


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def fill():
        with writing(target) as partial:
            partial.write_text("half of the ne")
            Path("/dev/full").write_text("x")  # the kernel's own "no space left on device"

    with pytest.raises(InputError, match=r"cannot write .*file: .*No space left on device; free some space.*continues"):
        fill()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# JSONL


def jsonl(path, pairs):
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in pairs))
    return path


def test_examples_are_read_from_jsonl(tmp_path):
    path = jsonl(tmp_path / "data.jsonl", [("w0 w1", " w2"), ("w3 w4 w5", " w6"), ("w7", " w8")])
    data = read_examples(path, tiny_tokenizer(), 2)
    assert data.lengths.tolist() == [2, 3]
    assert data.tokens.tolist() == [[1, 2, 0], [4, 5, 6]]
    assert data.answers.tolist() == [[3], [7]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"prompt": "w0", "answer": " w1 w2"}',
            r"line 2: .*splits the answer ' w1 w2' into.*'w1', 'w2'",
        ),
        ('{"prompt": "w0", "answer": "5"}', r"line 2: .*does not keep the answer '5' apart from its prompt"),
        ('{"prompt": "w0"}', r'line 2: expected \{"prompt"'),
        ('{"prompt": "w0", "answer": 5}', r"line 2: expected"),
        ("w0 w1", r"line 2: expected"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, message):
    path = jsonl(tmp_path / "data.jsonl", [("w0", " w1")])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=message):
        read_examples(path, tiny_tokenizer())


def test_too_few_examples_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds 1 examples; expected 3"):
        read_examples(jsonl(tmp_path / "data.jsonl", [("w0", " w1")]), tiny_tokenizer(), 3)
    with pytest.raises(InputError, match="cannot read examples"):
        read_examples(tmp_path / "none.jsonl", tiny_tokenizer())


# Recipes

RECIPE = {
    "name": "tiny",
    "base": "base",
    "method": "lora",
    "lora": {"rank": 2, "alpha": 4, "targets": ["q_proj", "down_proj"]},
    "training": {"steps": 6, "batch": 4, "learning_rate": 0.01, "warmup": 1, "checkpoint_every": 2},
    "data": {"jsonl": "data.jsonl"},
    "held_out": 5,
}


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe with changes, beside its base and its data."""
    base = save_decoder(tmp_path / "base")
    jsonl(tmp_path / "data.jsonl", [(f"{WORDS[i]} {WORDS[i + 1]}", f" {WORDS[i + 2]}") for i in range(25)])

    def write(**changes):
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(RECIPE | {"base": str(base)} | changes))
        return path

    return write


def test_a_recipe_makes_an_adapter_that_loads_and_scores_as_its_summary_says(recipe, tmp_path):
    path = recipe(test={"jsonl": "data.jsonl", "n_prompts": 10})
    heard = []
    summary = run_recipe(path, tmp_path / "out", lambda *told: heard.append(told))
    read = read_source(tmp_path / "base", [tmp_path / "out" / "adapter"])
    data = read_examples(tmp_path / "data.jsonl", read.tokenizer)
    held_out = data.select(torch.arange(20, 25))
    assert summary["held_out_accuracy"] == accuracy(read.model, held_out)
    assert summary["test"]["n_hits"] == int(hits(read.model, data.select(torch.arange(10))).sum())
    low, high = summary["test"]["wilson_95"]
    assert low <= summary["test"]["accuracy"] <= high
    assert heard[-1] == ("fine-tune tiny", 6, 6)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["recipe"]["name"] == "tiny"
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["adapter", "summary.json"]


def test_the_same_recipe_makes_the_same_files(recipe, tmp_path):
    first, second = (run_recipe(recipe(), tmp_path / out)["files"] for out in "ab")
    assert first == second


def test_full_fine_tuning_stores_a_model_of_its_own(recipe, tmp_path):
    summary = run_recipe(recipe(method="full", lora=None), tmp_path / "out")
    read = read_source(tmp_path / "out" / "model")
    data = read_examples(tmp_path / "data.jsonl", read.tokenizer).select(torch.arange(20, 25))
    assert summary["held_out_accuracy"] == accuracy(read.model, data)
    assert summary["n_trained"] == sum(p.numel() for p in tiny_decoder().parameters())
    assert {t.dtype for t in load_file(tmp_path / "out/model/model.safetensors").values()} == {torch.float16}


def test_a_killed_recipe_goes_on_where_it_was(recipe, tmp_path):
    def kill(_, done, __):
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        run_recipe(recipe(), tmp_path / "out", kill)
    heard = []
    summary = run_recipe(recipe(), tmp_path / "out", lambda *told: heard.append(told[1]))
    assert heard == [0, 5, 6, 6]
    assert summary["files"] == run_recipe(recipe(), tmp_path / "again")["files"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimiser": "sgd"}, r"recipe\.yaml: optimiser: Extra inputs are not permitted"),
        ({"training": RECIPE["training"] | {"lr": 1}}, r"training\.lr: Extra inputs"),
        ({"training": RECIPE["training"] | {"batch": 0}}, r"training\.batch: .*got '0'"),
        ({"method": "full"}, r"method lora needs a `lora` section, and method full takes none"),
        (
            {"data": {"jsonl": "data.jsonl", "task": "entity_tracking", "n_prompts": 4}},
            r"give one of task, generator and jsonl",
        ),
        ({"data": {"task": "entity_tracking"}}, r"a task or generator needs n_prompts"),
        ({"data": {"task": "no_such_task", "n_prompts": 4}}, r"unknown task 'no_such_task'"),
        ({"held_out": 25}, r"held_out is 25, but there are only 25 examples"),
        ({"lora": RECIPE["lora"] | {"targets": ["c_attn"]}}, r"no linear layer 'c_attn'"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_one_line(recipe, tmp_path, change, message):
    with pytest.raises(InputError, match=message) as raised:
        run_recipe(recipe(**change), tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_what_a_recipe_made_is_made_once_and_again_when_the_recipe_changes(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, told = recipe(), []
    source, adapters = made_by(path, lambda *_: told.append(1))
    assert (source, adapters) == (str(tmp_path / "base"), (str(Path("runs/tiny/adapter")),))
    read_source(source, adapters)
    before = len(told)
    assert made_by(path, lambda *_: told.append(1)) == (source, adapters)
    assert len(told) == before > 0
    first = (tmp_path / "runs/tiny/adapter/adapter_model.safetensors").read_bytes()
    made_by(recipe(training=RECIPE["training"] | {"seed": 7}))
    assert (tmp_path / "runs/tiny/adapter/adapter_model.safetensors").read_bytes() != first


def test_ablated_heads_are_out_of_the_model_that_the_recipe_makes(recipe, tmp_path):
    run_recipe(recipe(ablated=[[1, 2]], lora=RECIPE["lora"] | {"targets": ["o_proj", "up_proj"]}), tmp_path / "out")
    weights = load_file(tmp_path / "out/model/model.safetensors")
    columns = weights["model.layers.1.self_attn.o_proj.weight"].unflatten(1, (3, 10))
    assert (columns[:, 2] == 0).all()
    assert (columns[:, 1] != 0).any()


def test_a_circuit_file_names_the_heads_that_may_change(recipe, tmp_path):
    (tmp_path / "circuit.json").write_text(json.dumps({"groups": {"readers": {"at": "last", "heads": [[2, 0]]}}}))
    lora = RECIPE["lora"] | {"targets": ["q_proj"], "heads": {"circuit": "circuit.json", "group": "readers"}}
    run_recipe(recipe(lora=lora), tmp_path / "out")
    stored = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    (rows,) = (tensor for name, tensor in stored.items() if "lora_B" in name)
    assert (rows.unflatten(0, (3, 10)) != 0).any(dim=(1, 2)).tolist() == [True, False, False]
    with pytest.raises(InputError, match=r"circuit\.json has no group 'fetchers'; it has readers"):
        run_recipe(recipe(lora=lora | {"heads": {"circuit": "circuit.json", "group": "fetchers"}}), tmp_path / "other")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "studies" / "recipes").glob("*.yaml")), ids=str)
def test_the_shipped_recipes_are_read(path):
    assert read_recipe(path).name == path.stem
