"""Fine-tuning by recipe: a YAML file in; an adapter or a model, and what was measured, out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from scipy.stats import binomtest
from torch import nn
from transformers import PreTrainedTokenizerBase

from circuitdiff.cache.locks import locked
from circuitdiff.circuit import Circuit, Head
from circuitdiff.config.reading import read_json, read_yaml
from circuitdiff.config.settings import Count, FolderName, ModelSettings, Seed, Settings
from circuitdiff.config.validation import validated
from circuitdiff.errors import InputError, choices
from circuitdiff.finetune.data import generate
from circuitdiff.finetune.examples import Examples, encode_examples, read_examples
from circuitdiff.finetune.loop import Outcome, Training, finetune, hits
from circuitdiff.finetune.lora import Lora, add_lora, silence
from circuitdiff.finetune.saving import save_adapter, save_model, writing
from circuitdiff.models.family_registry import sha256_of
from circuitdiff.models.fingerprint import origin_of
from circuitdiff.models.sources import Source, read_source
from circuitdiff.tasks import get_task

_PATIENCE = 60.0  # seconds between two looks whether another process is done


class CircuitHeads(Settings):
    """The heads of a circuit file (relative to the recipe): of all groups, or of one."""

    circuit: Path
    group: str | None = None


Heads = tuple[tuple[int, int], ...] | CircuitHeads


@dataclass(frozen=True)
class RecipeLora(Lora):
    """Its heads are [layer, index], or those of a circuit file."""

    heads: Heads | None = None  # pyright: ignore[reportIncompatibleVariableOverride]


class DataSettings(Settings):
    """Prompts of a built-in task, built-in training data, or a JSONL file of `{"prompt": ..., "answer": ...}`.

    The file's path is relative to the recipe.
    """

    task: str | None = None
    generator: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    split: str = "train"
    seed: Seed = 0
    n_prompts: Count | None = None  # of a JSONL file: its first so many lines, or all
    jsonl: Path | None = None
    answers: Literal["one_token", "text"] = "one_token"  # of a JSONL file

    @model_validator(mode="after")
    def _one_kind(self) -> DataSettings:
        if sum(kind is not None for kind in (self.task, self.generator, self.jsonl)) != 1:
            raise ValueError("give one of task, generator and jsonl")
        if self.jsonl is None and self.n_prompts is None:
            raise ValueError("a task or generator needs n_prompts")
        return self


class Recipe(Settings):
    """Everything a fine-tuned model depends on."""

    name: FolderName
    base: ModelSettings
    method: Literal["lora", "full"] = "lora"
    lora: RecipeLora | None = None
    ablated: Heads | None = None  # heads taken out of the base, for good: the result is then a whole model
    training: Training
    data: DataSettings
    held_out: DataSettings | Count  # a number: so many of the data's last, kept out of training
    test: DataSettings | None = None  # only measured, once, at the end
    device: str = "cpu"

    @model_validator(mode="after")
    def _method_fits(self) -> Recipe:
        if self.base.recipe is not None:
            raise ValueError("a recipe starts from a source: run the other recipe first, and name what it made")
        if self.ablated is not None and self.lora is None:
            raise ValueError("ablated heads stay out only under method lora")
        if (self.method == "lora") != (self.lora is not None):
            raise ValueError("method lora needs a `lora` section, and method full takes none")
        if self.training.target_accuracy is not None and self.training.evaluate_every is None:
            raise ValueError(
                "training with a target_accuracy needs evaluate_every, after how many steps it is looked at"
            )
        return self


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file; paths in it are relative to it.

    Raises: InputError naming the key that is unknown, missing or out of range.
    """
    folder = Path(path).parent
    recipe = validated(Recipe, read_yaml(path), str(path), folder=folder)
    return recipe.model_copy(update={"base": recipe.base.seen_from(folder)})


def run_recipe(
    path: str | Path, out: str | Path | None = None, monitor: Callable[[str, int, int], None] = lambda *_: None
) -> dict[str, Any]:
    """Trains by the recipe at `path`, writes `adapter/` or `model/` and `summary.json` into `out`, returns the summary.

    `out` is `runs/` and the recipe's name unless given; `monitor` is told what is done, and how much of it. A run that
    was killed continues from its last checkpoint in `out`. All accuracies are those of the weights as stored, in 16
    bits, over the whole vocabulary.

    Raises: InputError if the recipe, its data or its base cannot be used, or the disk is full; nothing is lost then.
    """
    path, begin = Path(path), time.monotonic()
    recipe = read_recipe(path)
    out, title = Path(out or Path("runs") / recipe.name), f"fine-tune {recipe.name}"
    monitor(title, 0, recipe.training.steps)
    inputs = _inputs(recipe, path.parent)
    start = recipe.base
    base = read_source(start.source, start.adapters, device=recipe.device, tokenizer=start.tokenizer)
    data, held_out, test = _all_examples(recipe, base.tokenizer, path.parent)
    model = _trainable(recipe, base, path.parent)
    outcome = finetune(
        model,
        data,
        held_out,
        recipe.training,
        identity=recipe.model_dump_json(exclude={"training", "test"}),
        state=out / "checkpoint.safetensors",
        progress=lambda step: monitor(title, step, recipe.training.steps),
    )
    monitor(title, recipe.training.steps, recipe.training.steps)  # also when it stopped early
    summary = _summary(recipe, base, model, outcome, None if test is None else hits(model, test))
    summary["inputs"], summary["files"] = inputs, _save(recipe, base, model, out)
    summary["seconds"] = time.monotonic() - begin  # of this process: less than the whole if the run was continued
    with writing(out / "summary.json") as partial:
        partial.write_text(json.dumps(summary, indent=1) + "\n")
    (out / "checkpoint.safetensors").unlink(missing_ok=True)
    return summary


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Waits until no other process makes the same; in this block none does."""
    while True:
        with locked(out.parent / "locks", [out.name], _PATIENCE) as ours:
            if ours:
                yield
                return


def made_by(
    path: str | Path, monitor: Callable[[str, int, int], None] = lambda *_: None
) -> tuple[str, tuple[str, ...]]:
    """Source and adapters of what the recipe at `path` makes, made first unless `runs/` holds it from the same recipe.

    Raises: InputError as `run_recipe`.
    """
    recipe = read_recipe(path)
    out = Path("runs") / recipe.name
    with _alone(out):
        if not is_made(path):
            run_recipe(path, out, monitor)
    if (out / "model").is_dir():
        return str(out / "model"), ()
    return recipe.base.source, (*recipe.base.adapters, str(out / "adapter"))


def is_made(path: str | Path) -> bool:
    """Whether `runs/` holds, whole, what this very recipe makes of the files and the base that it names.

    Raises: InputError if the recipe cannot be read.
    """
    recipe = read_recipe(path)
    out = Path("runs") / recipe.name
    try:
        summary = read_json(out / "summary.json")
    except InputError:
        return False  # there is none, or it is damaged
    files = summary.get("files")
    return (
        isinstance(files, dict)
        and all((out / file).is_file() and sha256_of(out / file) == sha for file, sha in files.items())
        and summary.get("recipe") == recipe.model_dump(mode="json")
        and summary.get("inputs") == _inputs(recipe, Path(path).parent)
    )


def _inputs(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The content of the files that a recipe names, and which files its base comes from."""
    sets = [each for each in (recipe.data, recipe.held_out, recipe.test) if isinstance(each, DataSettings)]
    heads = [recipe.ablated, recipe.lora.heads if recipe.lora else None]
    named = [each.jsonl for each in sets if each.jsonl]
    named += [each.circuit for each in heads if isinstance(each, CircuitHeads)]
    files = {str(file): sha256_of(folder / file) for file in named if (folder / file).is_file()}
    tasks = [get_task(each.task, **each.options) for each in sets if each.task]
    files |= {f"{task.name}: {file.name}": sha256_of(file) for task in tasks for file in task.files}
    origin = origin_of(recipe.base.source, recipe.base.adapters)
    return {"files": files, "base": origin and [list(each) if isinstance(each, tuple) else each for each in origin]}


def _trainable(recipe: Recipe, base: Source, folder: Path) -> nn.Module:
    ablated = _heads(recipe.ablated, folder)
    silence(base.model, ablated)
    if recipe.lora is None:
        return base.model.requires_grad_(True)
    heads = None if recipe.lora.heads is None else _heads(recipe.lora.heads, folder)
    return add_lora(base.model, Lora(**{**vars(recipe.lora), "heads": heads}), recipe.training.seed, ablated)


def _heads(wanted: Heads | None, folder: Path) -> tuple[Head, ...]:
    """Raises: InputError if the circuit file cannot be read or has no such group."""
    if not isinstance(wanted, CircuitHeads):
        return tuple(Head(layer, index) for layer, index in wanted or ())
    groups = Circuit.from_json(folder / wanted.circuit).groups
    if wanted.group is not None and wanted.group not in groups:
        raise InputError(f"{wanted.circuit} has no group {wanted.group!r}{choices(wanted.group, groups)}")
    chosen = groups.values() if wanted.group is None else [groups[wanted.group]]
    return tuple(dict.fromkeys(head for group in chosen for head in group.heads))


def _all_examples(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> tuple[Examples, Examples, Examples | None]:
    """For training, held out, and for the test."""
    data = _examples(recipe.data, tokenizer, folder)
    test = None if recipe.test is None else _examples(recipe.test, tokenizer, folder)
    if isinstance(recipe.held_out, DataSettings):
        return data, _examples(recipe.held_out, tokenizer, folder), test
    n = recipe.held_out
    if n >= len(data):
        raise InputError(f"held_out is {n}, but there are only {len(data)} examples: keep some to train on")
    training, held_out = torch.arange(len(data)).split([len(data) - n, n])
    return data.select(training), data.select(held_out), test


def _examples(data: DataSettings, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Examples:
    if data.jsonl is not None:
        return read_examples(folder / data.jsonl, tokenizer, data.n_prompts, whole_answers=data.answers == "text")
    n = data.n_prompts or 1  # which the settings hold for a generator or a task
    if data.generator is not None:
        return encode_examples(generate(data.generator, tokenizer, n, data.seed, **data.options), tokenizer)
    task = get_task(str(data.task), **data.options)
    pairs = task.sample(tokenizer, n_prompts=n, seed=data.seed, split=data.split)
    pairs.check_one_token("fine-tuning on a task")
    if pairs.right is not None:
        raise InputError(
            f"task {data.task}: prompts have several right answers, and training teaches one; give a `jsonl`"
        )
    return Examples(pairs.clean, pairs.lengths, pairs.answers[:, None])


def _summary(
    recipe: Recipe, base: Source, model: nn.Module, outcome: Outcome, test_hits: torch.Tensor | None
) -> dict[str, Any]:
    libraries = ("circuitdiff", "torch", "transformers", "peft")
    summary = {
        "recipe": recipe.model_dump(mode="json"),
        "base": base.provenance,
        "n_trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "steps_done": len(outcome.losses),
        "losses": outcome.losses,
        "curve": [point._asdict() for point in outcome.curve],
        "held_out_accuracy": outcome.accuracy,
        "versions": {library: version(library) for library in libraries},
    }
    if test_hits is not None:
        n_hits, n = int(test_hits.sum()), len(test_hits)
        interval = binomtest(n_hits, n).proportion_ci(method="wilson")
        wilson = [float(interval.low), float(interval.high)]
        summary["test"] = {"n_prompts": n, "n_hits": n_hits, "accuracy": n_hits / n, "wilson_95": wilson}
    return summary


def _save(recipe: Recipe, base: Source, model: Any, out: Path) -> dict[str, str]:
    """Writes the result; the SHA-256 of each weights file."""
    whole = recipe.lora is None or recipe.ablated is not None
    folder = out / ("model" if whole else "adapter")
    if not whole:
        save_adapter(model, folder, recipe.base.source, recipe.training.stored_as)
    else:
        merged = model if recipe.lora is None else model.merge_and_unload()
        save_model(merged, base.tokenizer, folder, recipe.training.stored_as)
    return {str(file.relative_to(out)): sha256_of(file) for file in sorted(folder.glob("*.safetensors"))}
