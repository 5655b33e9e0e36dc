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
from circuitdiff.tasks import entity_tracking, get_task, read_triples
from circuitdiff.tasks.template import TemplateTask
from circuitdiff.vocabulary import LABELS, OBJECTS, TRAIN_OBJECTS
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
    tasks = (_template, _wordings, _rows, _cells, _columns)
    makers = (_study, _circuit, _triples, *tasks, _examples, _recipe, _tables, _diff, _report)
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


def _task(
    path: Path, tokenizer: Any, read: Callable[[bytes], Any] | None, used: Path | None = None, **kind: bool
) -> Input:
    """A file of a task, which is `used` through another one or itself."""

    def use() -> None:
        task = get_task(str(used or path))
        for i, counterfactual in enumerate(task.counterfactuals):
            pairs = task.sample(tokenizer, 6, i, split="mask", counterfactual=counterfactual)
            task.describe(pairs, 0, tokenizer)
        for role in task.roles:
            assert {task.wrong_segment(role), *task.every_segment(role)} <= {*task.roles}
        if isinstance(task, TemplateTask):
            task.triples(tokenizer, list(task.form.desiderata), 3, 0)

    return Input(path, use, read, **kind)


def _template(folder: Path, tokenizer: Any) -> Input:
    text = f"""\
name: moved
about: what is in the box
options: {{n: 4}}
capital: true
categories:
  things: {{words: {" ".join(OBJECTS[:26])}, train: {" ".join(TRAIN_OBJECTS[:26])}}}
  labels: {{words: [{", ".join(LABELS[:16])}], one_token: true}}
items: {{count: n, fields: {{thing: things, label: labels}}}}
list: {{text: "the {{thing}} is in Box {{label}}", between: ", "}}
changes:
  count: 2
  key: label
  holds: thing
  put: " The {{thing}} is in Box {{label}}."
  move: " The {{thing}} in Box {{label}} is in Box {{to.label}}."
text: "{{list}}.{{changes}} {{box:Box}} {{asked.label}} contains the"
answer: " {{held.thing}}"
question: [box, last]
roles: {{first: asked.thing, after_first: asked.after_thing, wrong: other.thing, mention: answer.last}}
counterfactuals:
  unrelated: {{redraw: [thing, label], ask: other, given: elsewhere}}
  asked: {{ask: other}}
plans: {{main: {{stages: [{{name: fetcher, at: last, select: {{top: 2}}}}]}}}}
"""
    return _task(_written(folder, "moved.yaml", text), tokenizer, yaml.safe_load)


def _wordings(folder: Path, tokenizer: Any) -> Input:
    pairs = ", ".join(f"{{one: {one}, two: {two}}}" for one, two in zip(OBJECTS[:12], OBJECTS[12:24], strict=True))
    text = f"""\
name: worded
categories: {{pairs: {{words: [{pairs}]}}, labels: {{words: {{file: labels.txt}}}}}}
items: {{count: 4, fields: {{label: labels, thing: pairs}}}}
list: {{text: "Box {{label}} contains the {{thing.two}}"}}
draws: {{what: pairs}}
wordings:
  - {{name: one, text: "{{list}}. The {{what.one}} is in Box {{asked.label}}, the"}}
  - name: two
    text: "A {{what.two}}, {{list}}. {{here:Box}} {{where=asked.label}} contains the"
    answer: " {{asked.thing.two}}"
    foils: {{any_of: pairs.two, but: asked.thing, text: " {{}}"}}
answer: " {{asked.thing.one}}"
foils: {{any_of: pairs.one, but: what}}
roles: {{right: asked.thing}}
counterfactuals: {{others: {{redraw: [what]}}, reworded: {{wording: {{one: two, two: one}}}}, swapped: {{swap: thing}}}}
desiderata:
  which: {{about: which one, wants: given, main: true, asked: "the {{thing.one}} is in Box {{label}}"}}
  where:
    wants: next_position
    sources: next_unrelated
    between: ", A, "
    text: "{{list}}. Box {{asked.label}} is the"
"""
    folder.mkdir(exist_ok=True)
    (folder / "labels.txt").write_text(" ".join(LABELS))
    return _task(_written(folder, "worded.yaml", text), tokenizer, yaml.safe_load)


def _table_rows() -> list[dict[str, Any]]:
    rows = []
    for i, (one, two) in enumerate(pairwise(OBJECTS[:21])):
        start = f"The {one} is in Box {LABELS[i]}, the {two} is in Box {LABELS[i + 1]}. Box"
        prompt, other = (f"{start} {label} contains the" for label in LABELS[i : i + 2])
        answers = {"prompt": prompt, "answer": one, "counterfactual": other, "counterfactual_answer": two}
        rows.append(answers | {"split": "mask", "scenario": str(i // 2), "queried": i})
    return rows


def _rows(folder: Path, tokenizer: Any) -> Input:
    rows = [
        row | {"roles": {"thing": row["answer"], "box": [len(row["prompt"]) - 18, len(row["prompt"]) - 15]}}
        for row in _table_rows()
    ]
    rows = [row | {"answer": [row["answer"]], "foils": [row["counterfactual_answer"]]} for row in rows]
    path = _written(folder, "rows.jsonl", "\n".join(map(json.dumps, rows)))
    return _task(path, tokenizer, _jsonl, lines=True)


def _cells(folder: Path, tokenizer: Any) -> Input:
    rows = _table_rows()
    lines = [",".join(rows[0]), *(",".join(f'"{cell}"' for cell in row.values()) for row in rows)]
    return _task(_written(folder, "cells.csv", "\n".join(lines)), tokenizer, None)


def _columns(folder: Path, tokenizer: Any) -> Input:
    rows = [{"text": row.pop("prompt"), "word": row["answer"], **row} for row in _table_rows()]
    _written(folder, "rows.jsonl", "\n".join(map(json.dumps, rows)))
    form = {
        "table": "rows.jsonl",
        "name": "mine",
        "about": "boxes",
        "columns": {"prompt": "text"},
        "roles": {"thing": ["word", "word"], "same": "counterfactual_answer"},
        "question": ["last"],
        "space": True,
        "plans": {"main": {"stages": [{"name": "fetcher", "at": "last", "select": {"top": 2}}]}},
    }
    return _task(_written(folder, "mine.yaml", yaml.safe_dump(form)), tokenizer, yaml.safe_load)


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
