"""Every file that a user gives: a good one, and what the command line does with it until it computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import circuitdiff as cd
from circuitdiff import cli
from circuitdiff.circuit import Circuit
from circuitdiff.finetune.examples import read_examples
from circuitdiff.finetune.recipes import _all_examples, _heads, read_recipe
from circuitdiff.models.sources import read_outline
from circuitdiff.study import preflight
from circuitdiff.study.registry import read_study, results_bytes
from circuitdiff.study.runner import refuse
from circuitdiff.tasks import entity_tracking, read_triples
from circuitdiff.vocabulary import LABELS, OBJECTS
from helpers.invented_results import invented_results
from helpers.tiny_decoders import save_decoder, save_random_adapter
from helpers.tiny_folder import N_HEADS, N_LAYERS, save_tiny_model, study_yaml
from validation.conformance import STAGES, conformance


@dataclass(frozen=True)
class Input:
    """A good file's place and what is done with it; `read` gives its tree, if it has one."""

    path: Path
    use: Callable[[], object]
    read: Callable[[bytes], Any] | None = json.loads
    lines: bool = False  # a tree a line


def _jsonl(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.splitlines()]


def text_inputs(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Input]:
    """Files that users write, and our own results."""
    model = save_tiny_model(folder / "model")
    patch.setattr(preflight, "read_outline", cache(read_outline))  # the model's files stay good ones here
    tokenizer = preflight.read_outline(str(model)).tokenizer
    makers = (_study, _circuit, _triples, _examples, _recipe, _tables, _diff, _report)
    return {maker.__name__[1:]: maker(folder / maker.__name__, tokenizer) for maker in makers}


def _written(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def _study(folder: Path, tokenizer: Any) -> Input:
    model = folder.parent / "model"
    changes = {
        "variants": f"{{chat: {model}}}",
        "series": "{steps: {model: 0, chat: 5}}",
        "functions": "{desiderata: [position], sweep: {penalties: [0.1], seeds: 2}, train: 4, validation: 2, test: 4}",
        "cross_model": "{what: [z], null_donors: [chat]}",
        "graft": "{projections: [q, o], layers: [1]}",
        "knockout": "{roles: [last], layer_step: 1}",
    }
    path = _written(folder, "study.yaml", study_yaml(model, **changes))

    def use() -> None:
        refuse(read_study(path))

    return Input(path, use, yaml.safe_load)


def _circuit(folder: Path, tokenizer: Any) -> Input:
    groups = {"fetcher": {"at": "last", "heads": [[1, 0], [2, 3]]}, "reader": {"at": "query_label", "heads": [[0, 1]]}}
    path = _written(folder, "circuit.json", json.dumps({"groups": groups}, indent=1))
    roles = entity_tracking(n_boxes=3).roles
    return Input(path, lambda: Circuit.from_json(path).check_fits(N_LAYERS, N_HEADS, roles))


def _triples(folder: Path, tokenizer: Any) -> Input:
    (one, two, *_), (first, second, *_) = OBJECTS, LABELS
    base = f"The {one} is in Box {first}, the {two} is in Box {second}. Box {first} contains the"
    line = {
        "base": base,
        "source": base.replace(f"Box {first} contains", f"Box {second} contains"),
        "answer": f" {one}",
        "target": f" {two}",
        "base_roles": {"query_label": [len(base) - 15, len(base) - 13]},
        "source_roles": {"query_label": [len(base) - 15, len(base) - 13]},
    }
    lines = [line | {"scenario": 0}, line | {"scenario": 1, "queried": 0, "source_queried": 1}, line]
    path = _written(folder, "triples.jsonl", "\n".join(map(json.dumps, lines)))
    return Input(path, lambda: read_triples(path, tokenizer), _jsonl, lines=True)


def _examples(folder: Path, tokenizer: Any) -> Input:
    lines = [{"prompt": f"The {one} is in the", "answer": f" {two}"} for one, two in pairwise(OBJECTS[:4])]
    path = _written(folder, "examples.jsonl", "\n".join(map(json.dumps, lines)))
    return Input(path, lambda: read_examples(path, tokenizer), _jsonl, lines=True)


def _recipe(folder: Path, tokenizer: Any) -> Input:
    recipe = {
        "name": "tiny",
        "base": str(folder.parent / "model"),
        "method": "lora",
        "lora": {"rank": 2, "alpha": 4, "targets": ["q_proj"], "layers": [0, 1], "heads": [[0, 1], [2, 0]]},
        "training": {"steps": 6, "batch": 4, "learning_rate": 0.01, "warmup": 1, "checkpoint_every": 2},
        "data": {"task": "entity_tracking", "options": {"n_boxes": 3}, "n_prompts": 9, "seed": 1},
        "held_out": {"generator": "arithmetic", "n_prompts": 3},
        "test": {"jsonl": "../_examples/examples.jsonl", "answers": "text"},
    }
    path = _written(folder, "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))

    def use() -> None:
        recipe = read_recipe(path)
        _all_examples(recipe, tokenizer, folder)
        _heads(recipe.lora and recipe.lora.heads, folder)

    return Input(path, use, yaml.safe_load)


def _tables(folder: Path, tokenizer: Any) -> Input:
    pairs = [[0, 1], [2, 3]]
    rows = [{"head": head, "with": [[other, 0.25] for other in pairs]} for head in pairs]
    significance = [{"head": head, "before": 0.5, "after": 0.25} for head in pairs]
    tables = {
        "model": "llama",
        "parameters": {"receivers": dict.fromkeys(STAGES, 1), "candidates": dict.fromkeys(STAGES, 2), "theta": 0.01},
        "path_patching": {stage: [[0.1, -0.2, 0.3, 0.0]] * N_LAYERS for stage in STAGES},
        "minimality": {stage: {"pair_table": rows, "significance": significance} for stage in STAGES},
        "circuit": dict.fromkeys(STAGES, pairs),
        "dcm": {"object": {stage: {"mask": [1.0, 0.0], "selected": pairs[:1]} for stage in STAGES}},
    }
    path = _written(folder, "tables.json", json.dumps(tables))
    return Input(path, lambda: conformance(path))


def _results(folder: Path) -> Path:
    return _written(folder, "results.json", results_bytes(invented_results()).decode())


def _diff(folder: Path, tokenizer: Any) -> Input:
    path, other = _results(folder), _results(folder.with_name("other"))
    return Input(path, lambda: cli.diff(folder, other.parent))


def _report(folder: Path, tokenizer: Any) -> Input:
    return Input(_results(folder), lambda: cli.report(folder))


def model_inputs(folder: Path) -> dict[str, Input]:
    """Files of models and adapters: whatever one of them is, the others are good."""
    files = ("config.json", "tokenizer.json", "tokenizer_config.json")
    found = {}
    for name in files:
        model = save_decoder(folder / name.replace(".", "-"))
        found[name] = Input(model / name, lambda model=model: cd.load_model(model))
    base = save_decoder(folder / "base")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        adapter = save_random_adapter(folder / name.replace(".", "-"))
        read = json.loads if name.endswith("json") else None
        found[name] = Input(adapter / name, lambda adapter=adapter: cd.load_model(base, [adapter]), read)
    return found
