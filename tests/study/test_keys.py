"""Records are found by content: what decides a key, and what does not."""

from __future__ import annotations

import asyncio
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import circuitdiff.study.sections
import circuitdiff.study.units
from circuitdiff.cache.code_digest import COMPUTES, digest_of_function
from circuitdiff.cache.store import Store
from circuitdiff.study import checks, common_units
from circuitdiff.study.common_units import EVALUATION, means_of, model_alone
from circuitdiff.study.context import StudyContext
from circuitdiff.study.registry import parse_study
from circuitdiff.study.units import Unit
from circuitdiff.study.workers import ThisProcess, Workers
from helpers.tiny_folder import save_tiny_model, silent

HANDED_OUT = ("study.host", "study.units", "study.prompts")  # what units are given; it computes nothing


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def key_of(folder: Path, model: Path, unit: Unit | None = None, **changes: Any) -> str:
    data = {"name": "s", "base": str(model), "task": {"name": "entity_tracking", "options": {"n_boxes": 3}}}
    settings = parse_study(data | {"prompts": {"evaluation": 9, "means": 12}} | changes, "test")
    store = Store.open(folder / "run")
    study = StudyContext(settings, store, Workers([ThisProcess(settings, "cpu", silent)], settings.base.name), silent)
    return asyncio.run(study.key(unit or answers_of(settings.base.name)))


def answers_of(name: str, title: str = "answers") -> Unit:
    return Unit(title, model_alone, (name,), {"prompts": EVALUATION})


def test_a_title_and_the_number_of_workers_or_variants_decide_nothing(model, tmp_path):
    before = key_of(tmp_path, model)
    assert key_of(tmp_path, model, answers_of(model.name, "another title")) == before
    assert key_of(tmp_path, model, variants={"v": str(model)}, faithfulness={"random_circuits": 3}) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"task": {"name": "entity_tracking", "options": {"n_boxes": 4}}},
        {"prompts": {"evaluation": 10, "means": 12}},
        {"executor": "full"},
        {"memory_gb": 0.5},
        {"dtype": "float64"},
    ],
)
def test_other_prompts_and_another_way_of_computing_make_other_keys(model, tmp_path, changes):
    assert key_of(tmp_path, model, **changes) != key_of(tmp_path, model)


def test_prompts_are_known_by_their_content_not_by_their_number(model, tmp_path, monkeypatch):
    before = key_of(tmp_path, model)
    from circuitdiff.study.prompts import PromptSource

    pairs = PromptSource.pairs

    def one_other_answer(self: PromptSource, of: Any) -> Any:
        found = pairs(self, of)
        return replace(found, answers=found.answers.roll(1), foils=found.foils + 1000)

    monkeypatch.setattr(PromptSource, "pairs", one_other_answer)
    assert key_of(tmp_path, model) != before


def test_one_changed_weight_makes_another_key(model, tmp_path):
    before = key_of(tmp_path, model)
    module = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        module.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    other = save_tiny_model(tmp_path / model.name)
    module.save_pretrained(other)
    assert key_of(tmp_path, other) != before


def test_a_changed_line_that_computes_makes_another_key(model, tmp_path, monkeypatch):
    before = key_of(tmp_path, model)
    monkeypatch.setattr(circuitdiff.study.units, "digest_of_computation", lambda: "another")
    assert key_of(tmp_path, model) != before


def test_what_a_unit_needs_is_part_of_its_key(model, tmp_path):
    needing = replace(answers_of(model.name), arguments={"prompts": EVALUATION, "means": means_of(model.name)})
    keys = {key_of(tmp_path, model, needing, prompts={"evaluation": 9, "means": n}) for n in (12, 15)}
    assert len(keys) == 2


FUNCTION = """
def double(x):
    \"\"\"Twice.\"\"\"
    return 2 * x  # not x + x
"""


@pytest.mark.parametrize(
    ("old", "new", "same"), [("Twice", "Two times", True), ("not x + x", "fast", True), ("2 * x", "3 * x", False)]
)
def test_a_unit_functions_own_lines_count_but_not_what_is_said_about_them(tmp_path, monkeypatch, old, new, same):
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for name, text in ((f"one_{len(new)}", FUNCTION), (f"other_{len(new)}", FUNCTION.replace(old, new))):
        (tmp_path / f"{name}.py").write_text(text)
        digests.append(digest_of_function(import_module(name).double))
    assert (digests[0] == digests[1]) == same


def unit_functions() -> Iterator[Callable[..., Any]]:
    """All functions of the house that take a loaded model first."""
    rooms = [
        import_module(f"circuitdiff.study.sections.{each.name}")
        for each in iter_modules(circuitdiff.study.sections.__path__)
    ]
    for room in (checks, common_units, *rooms):
        for function in vars(room).values():
            if inspect.isfunction(function) and function.__module__ == room.__name__:
                first = next(iter(inspect.signature(function).parameters.values()), None)
                if first is not None and first.annotation == "LoadedModel":
                    yield function


def globals_of(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from globals_of(constant)


def test_units_call_nothing_whose_lines_are_not_part_of_their_key():
    functions = list(unit_functions())
    assert len(functions) > 15
    for function in functions:
        plain = inspect.unwrap(function)
        for name in set(globals_of(plain.__code__)):
            used = plain.__globals__.get(name)
            room = getattr(used, "__module__", None)
            if not isinstance(room, str) or not room.startswith("circuitdiff."):
                continue
            parts = room.removeprefix("circuitdiff.").split(".")
            inside = [".".join(parts[: n + 1]) for n in range(len(parts))]
            assert set(inside) & {*COMPUTES, *HANDED_OUT}, (
                f"{plain.__module__}.{plain.__qualname__} calls {room}.{name}"
            )
