"""What a study will cost, before it starts: work, memory and minutes on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from circuitdiff.discovery import Plan
from circuitdiff.engine import Model
from circuitdiff.engine.attention import attend, handled_by
from circuitdiff.engine.memory import rows_at_once
from circuitdiff.engine.replay import cut, embed, run_layer
from circuitdiff.prompts import Pairs
from circuitdiff.selection import Discoveries
from circuitdiff.settings import StudySettings

_PROBE_ROWS = 512


@dataclass(frozen=True)
class Cost:
    """One part of a study. An upper estimate: every sender counts as live."""

    what: str
    forwards: int  # whole forward passes that the plain method would run
    flop: float  # what we run
    minutes: float


@dataclass(frozen=True)
class Estimate:
    """What the study will do on this machine, and the memory it takes at most."""

    parts: tuple[Cost, ...]
    memory_gb: float


def estimate(settings: StudySettings, plans: Mapping[str, Plan], model: Model, sample: Pairs) -> Estimate:
    """The cost of a study on `model`; `sample` are a few of its evaluation prompts."""
    speed = _flop_per_second(model, sample)
    work = _Work(settings, model, sample)
    parts = [work.sweep(plan, i) for plan in plans.values() for i in range(len(plan.stages))]
    unique = {what: (forwards, flop) for what, forwards, flop in parts}  # stages that plans share run once
    unique |= {
        what: (forwards, flop) for name in plans for what, forwards, flop in [work.evaluation(name, plans[name])]
    }
    costs = tuple(Cost(what, n, flop, flop / speed / 60) for what, (n, flop) in unique.items())
    return Estimate(costs, _memory_gb(settings, model, sample))


class _Work:
    """FLOP of the window executor's runs."""

    def __init__(self, settings: StudySettings, model: Model, sample: Pairs) -> None:
        self._settings, self._sample, self._model = settings, sample, model
        self._length = int(sample.lengths.max())
        self._layer = 2.0 * sum(p.numel() for p in model.layers[0].parameters())  # per token
        config = model.module.config.get_text_config()
        self._head = 2.0 * config.vocab_size * config.hidden_size  # per token

    def sweep(self, plan: Plan, index: int) -> tuple[str, int, float]:
        """A stage's effects. A sender in layer l costs one token in the layers above, then the second run's window."""
        stage, prompts = plan.stages[index], self._settings.prompts
        n_prompts = prompts.discovery
        if isinstance(stage.rule, Discoveries) and stage.rule.replicated:
            n_prompts += prompts.replication
        runs = n_prompts * self._model.n_layers * self._model.n_heads
        width = 0 if stage.via is None else self._width(stage.receivers_at or stage.at)
        layers = self._model.n_layers / 2
        flop = runs * (layers * self._layer * (1 + width) + self._head)
        what = f"{stage.name} (at {stage.at}{'' if stage.via is None else f', via {stage.via}'})"
        return what, runs * (1 if stage.via is None else 2), flop

    def evaluation(self, name: str, plan: Plan) -> tuple[str, int, float]:
        """The circuit, its references and its random circuits: one token per role, and per segment in one row."""
        wanted, roles = self._settings, len({stage.at for stage in plan.stages})
        n, drawn = wanted.prompts.evaluation, wanted.evaluation
        n_random = drawn.random_circuits * min(drawn.random_prompts, n)
        tokens = n * roles * 6 + n * 4 * 7 * roles + n_random * roles
        shared = 5 * n * self._length / 4  # the constant positions: about one in four (token, position) is distinct
        runs = 10 * n + n_random
        flop = (tokens + shared) * self._model.n_layers * self._layer + runs * self._head
        return f"evaluation of the {name} circuit", runs, flop * (1 + len(wanted.variants))

    def _width(self, role: str) -> float:
        return float((self._sample.lengths - self._sample.positions[role]).double().mean())


@torch.no_grad()
def _flop_per_second(model: Model, sample: Pairs) -> float:
    """How fast this machine runs one layer of the model on a few hundred rows."""
    resid, keywords = embed(model, sample.clean[:1, : int(sample.lengths[0])])
    row = cut(keywords[0], torch.tensor([0], device=resid.device))
    hidden = resid[:, :1].expand(_PROBE_ROWS, 1, -1).contiguous()
    allowed = {"attention_mask": row["attention_mask"][..., :1]} if "attention_mask" in row else {}
    flop = 2.0 * sum(p.numel() for p in model.layers[0].parameters()) * _PROBE_ROWS
    seconds = []
    with handled_by(attend):
        for _ in range(4):
            begin = time.perf_counter()
            run_layer(model.layers[0], hidden, row | allowed)
            seconds.append(time.perf_counter() - begin)
    return flop / min(seconds[1:])


def _memory_gb(settings: StudySettings, model: Model, sample: Pairs) -> float:
    """Weights, means, one batch of rows at work, its logits, and what Python and torch take themselves."""
    size = model.dtype.itemsize
    weights = sum(p.numel() for p in model.module.parameters()) * size
    slots = len(sample.clean_prompts.slot_names) * model.n_layers * model.n_heads * model.d_head * 8 * 3
    config = model.module.config.get_text_config()
    d_mlp = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    rows = rows_at_once(model, settings.memory_gb) * size * (6 * config.hidden_size + 3 * d_mlp)
    logits = 512 * config.vocab_size * 4 * 2
    return (weights * 1.5 + slots + 2 * rows + logits) / 2**30 + 0.6
