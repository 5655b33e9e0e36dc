"""Recipes: from a YAML file to an adapter or a model that loads."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file

import circuitdiff.finetune.recipes
from circuitdiff.errors import InputError
from circuitdiff.finetune.examples import read_examples
from circuitdiff.finetune.loop import (
    accuracy,
    hits,
)
from circuitdiff.finetune.recipes import is_made, made_by, read_recipe, run_recipe
from circuitdiff.models.sources import read_source
from helpers.tiny_decoders import WORDS, save_decoder, tiny_decoder
from helpers.training import Killed, jsonl

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


def test_a_recipes_base_is_relative_to_it(recipe, tmp_path):
    assert read_recipe(recipe(base="./base")).base.source == str(tmp_path / "base")


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
        ({"optimiser": "sgd"}, r"recipe\.yaml: there is no key 'optimiser' here"),
        ({"training": RECIPE["training"] | {"lr": 1}}, r"training: there is no key 'lr' here"),
        ({"training": RECIPE["training"] | {"batch": 0}}, r"training\.batch: .*got 0"),
        ({"method": "full"}, r"method lora needs a `lora` section, and method full takes none"),
        (
            {"data": {"jsonl": "data.jsonl", "task": "entity_tracking", "n_prompts": 4}},
            r"give one of task, generator and jsonl",
        ),
        ({"data": {"task": "entity_tracking"}}, r"a task or generator needs n_prompts"),
        ({"data": {"task": "no_such_task", "n_prompts": 4}}, r"unknown task 'no_such_task'"),
        (
            {"training": RECIPE["training"] | {"target_accuracy": 0.9, "evaluate_every": None}},
            r"training with a target_accuracy needs evaluate_every",
        ),
        ({"held_out": 25}, r"held_out is 25, but there are only 25 examples"),
        ({"lora": RECIPE["lora"] | {"targets": ["c_attn"]}}, r"no linear layer 'c_attn'"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_one_line(recipe, tmp_path, change, message):
    with pytest.raises(InputError, match=message) as raised:
        run_recipe(recipe(**change), tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (f"{WORDS[1]} {WORDS[2]}", r"^fine-tuning on a task compares the next token only, and 8 of 8 answers"),
        ([WORDS[1], WORDS[2]], r"task .*rows\.jsonl: prompts have several right answers, and training teaches one"),
    ],
)
def test_a_task_of_which_training_would_teach_a_part_is_refused(recipe, tmp_path, answer, message):
    texts = [f"{WORDS[i]} {WORDS[i + 1]}" for i in range(9)]
    rows = [
        {"prompt": a, "answer": answer, "foils": WORDS[9], "counterfactual": b, "split": "train"}
        for a, b in pairwise(texts)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=message):
        run_recipe(recipe(data={"task": str(path), "n_prompts": 8}), tmp_path / "out")


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


def test_two_who_need_the_same_recipe_make_it_once(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, runs, run = recipe(), [], circuitdiff.finetune.recipes.run_recipe

    def counted(*arguments: object) -> object:
        runs.append(1)
        return run(*arguments)

    monkeypatch.setattr(circuitdiff.finetune.recipes, "run_recipe", counted)
    both = [Thread(target=made_by, args=(path,)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(120)
    assert runs == [1]
    assert is_made(path)


def test_what_a_recipe_made_is_made_again_when_its_base_is_another(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = recipe()
    made_by(path)
    first = (tmp_path / "runs/tiny/adapter/adapter_model.safetensors").read_bytes()
    assert is_made(path)
    save_decoder(tmp_path / "base", tiny_decoder(seed=5))
    assert not is_made(path)
    made_by(path)
    assert (tmp_path / "runs/tiny/adapter/adapter_model.safetensors").read_bytes() != first


def test_what_a_recipe_made_is_made_again_when_a_file_of_its_task_is_another(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "rows.jsonl"
    pairs = [
        {"prompt": a, "answer": b, "foils": WORDS[9], "counterfactual": b, "split": "train"}
        for a, b in pairwise(WORDS[:9])
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    path = recipe(data={"task": str(rows), "n_prompts": 8}, held_out=2)
    made_by(path)
    assert is_made(path)
    rows.write_text("".join(json.dumps(row) + "\n" for row in reversed(pairs)))
    assert not is_made(path)


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
    with pytest.raises(InputError, match=r"circuit\.json has no group 'fetchers'; choose one of readers"):
        run_recipe(recipe(lora=lora | {"heads": {"circuit": "circuit.json", "group": "fetchers"}}), tmp_path / "other")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "studies" / "recipes").glob("*.yaml")), ids=str)
def test_the_shipped_recipes_are_read(path):
    assert read_recipe(path).name == path.stem
