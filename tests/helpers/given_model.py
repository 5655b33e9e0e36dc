"""A loaded model as units of work get it, with prompts that a test gives."""

from __future__ import annotations

import torch

from circuitdiff.engine import Model
from circuitdiff.prompts import Pairs
from circuitdiff.study.host import LoadedModel
from circuitdiff.study.kept import Kept
from circuitdiff.study.prompts import PromptsOf


class GivenModel(LoadedModel):
    """All splits are the given pairs."""

    def __init__(self, model: Model, pairs: Pairs) -> None:
        self.model, self._given = model, pairs
        self.executor, self.memory_gb = "window", 1.0
        self.progress = lambda *_: None
        self._name, self._kept = model.name, Kept(1.0)

    def pairs(self, of: PromptsOf) -> Pairs:
        n = len(self._given) if of.first is None else min(of.first, len(self._given))
        return self._given.select(torch.arange(n))
