"""A study of tiny models whose sections can be asked one by one, with the models at hand to compare with."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from circuitdiff.cache.store import Store
from circuitdiff.circuit import Circuit
from circuitdiff.study.context import StudyContext
from circuitdiff.study.host import Host, LoadedModel
from circuitdiff.study.registry import SECTIONS, parse_study
from circuitdiff.study.settings import CommonSettings
from circuitdiff.study.workers import ThisProcess, Workers
from helpers.tiny_folder import save_tiny_model

T = TypeVar("T")
PLANS = {
    "main": {
        "stages": [
            {"name": "fetcher", "at": "last", "select": {"top": 3}},
            {"name": "transmitter", "at": "last", "via": "q", "receivers_from": "fetcher", "select": {"top": 2}},
        ]
    },
    "other": {"stages": [{"name": "fetcher", "at": "last", "select": {"top": 2}}]},
}


def tiny_study(base: Path, **changes: Any) -> dict[str, Any]:
    """Settings as YAML has them."""
    return {
        "name": "tiny",
        "base": str(base),
        "task": {"name": "entity_tracking", "options": {"n_boxes": 3}},
        "prompts": {"discovery": 6, "replication": 6, "evaluation": 9, "means": 12},
        "plans": PLANS,
    } | changes


def without_sections(*kept: str) -> dict[str, bool]:
    """Settings that leave out all sections but these and discovery."""
    kept = (*kept, "discovery")
    return {each.name: False for each in SECTIONS if each.options is not None and each.name not in kept}


@torch.no_grad()
def save_tuned(base: Path, folder: Path) -> Path:
    """The base with other values of layer 1 and another last MLP."""
    tuned = AutoModelForCausalLM.from_pretrained(base)
    tuned.model.layers[1].self_attn.v_proj.weight.mul_(-1.5)
    tuned.model.layers[2].mlp.up_proj.weight.mul_(1.5)
    tuned.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class TinyContext:
    """A study context, and the host in this process that carries its units out."""

    study: StudyContext
    host: Host

    @classmethod
    def of(cls, settings: dict[str, Any], folder: Path) -> TinyContext:
        return cls._in(folder, parse_study(settings, "tiny"))

    @classmethod
    def _in(cls, folder: Path, settings: CommonSettings) -> TinyContext:
        worker = ThisProcess(settings, "cpu", lambda *_: None)
        return cls(
            StudyContext(settings, Store.open(folder), Workers([worker], settings.base.name), lambda *_: None),
            worker._host,
        )

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What a section comes to; an earlier failure of the same context can leave it waiting for good."""
        return asyncio.run(asyncio.wait_for(work, 60))

    def loaded(self, model: str | None = None) -> LoadedModel:
        """A model of the study, the base by default."""
        name = model or self.study.base
        return self.host.loaded(name, self.study.settings.models)

    def again(self, folder: Path) -> TinyContext:
        """A new context of the same study, in another folder or the same."""
        return self._in(folder, self.study.settings)


def tiny_context(folder: Path, circuit: Circuit | None = None, *, tuned: bool = False, **changes: Any) -> TinyContext:
    """A study of a base, with a `circuit` that goes by "given" and with a variant "tuned" if they are asked for."""
    base = save_tiny_model(folder / "base")
    if tuned:
        changes |= {"variants": {"tuned": str(save_tuned(base, folder / "tuned"))}}
    if circuit is not None:
        circuit.to_json(folder / "given.json")
        changes |= {"circuits": {"given": str(folder / "given.json")}}
    return TinyContext.of(tiny_study(base, **changes), folder / "run")
