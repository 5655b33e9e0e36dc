"""What a study will cost, before it starts: work, memory and minutes on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from circuitdiff.engine import Model
from circuitdiff.engine.attention import attend, handled_by
from circuitdiff.engine.memory import rows_at_once
from circuitdiff.engine.replay import cut, embed, run_layer
from circuitdiff.prompts import Pairs
from circuitdiff.settings import StudySettings

_PROBE_ROWS = 512


class Part(NamedTuple):
    """What one part of a study takes on any machine."""

    what: str
    forwards: float  # whole forward passes that the plain method would run
    flop: float  # what we run


@dataclass(frozen=True)
class Cost:
    """What one part of a study takes on this machine."""

    what: str
    forwards: int
    flop: float
    minutes: float


@dataclass(frozen=True)
class Estimate:
    """What the study will do on this machine, and the memory it takes at most."""

    parts: tuple[Cost, ...]
    memory_gb: float


class Work:
    """FLOP of the window executor's runs of one model on a task's prompts."""

    def __init__(self, model: Model, sample: Pairs) -> None:
        self.model, self.sample = model, sample
        self.length = float(sample.lengths.double().mean())
        config = model.module.config.get_text_config()
        self._layer = 2.0 * sum(p.numel() for p in model.layers[0].parameters())  # per token
        self._head = 2.0 * config.vocab_size * config.hidden_size  # per token

    @property
    def roles(self) -> list[str]:
        """Those that every prompt has."""
        return [role for role, at in self.sample.positions.items() if bool((at >= 0).all())]

    def passes(self, n: float) -> float:
        """Of whole prompts."""
        return self.runs(n, self.length)

    def runs(self, n: float, tokens: float, layers: float = 1.0) -> float:
        """Of so many tokens of each prompt, through a share of the layers."""
        return n * (tokens * layers * self.model.n_layers * self._layer + self._head)

    def width(self, role: str) -> float:
        """How many tokens of a prompt a role can change."""
        return float((self.sample.lengths - self.sample.positions[role]).double().mean())


def estimate(
    parts: Iterable[Part], settings: StudySettings, work: Work, workers: int = 1, kept_gb: float = 0.0
) -> Estimate:
    """The cost of these parts on this machine, shared out to so many processes.

    `kept_gb`: what another section may keep of the clean runs of prompts of its own.
    """
    speed = workers * _flop_per_second(work.model, work.sample)
    costs = tuple(Cost(part.what, round(part.forwards), part.flop, part.flop / speed / 60) for part in parts)
    kept = max(min(settings.memory_gb, _clean_runs_gb(settings, work)), kept_gb)
    return Estimate(costs, workers * (_memory_gb(settings, work.model, work.sample) + kept))


def _clean_runs_gb(settings: StudySettings, work: Work) -> float:
    """All that could be kept of clean runs on the study's prompts."""
    model, config, wanted = work.model, work.model.module.config.get_text_config(), settings.prompts
    per_token = model.n_layers * (2 * config.hidden_size + (model.n_heads + 2 * model.n_kv_heads) * model.d_head)
    per_prompt = model.dtype.itemsize * (work.length * per_token + config.vocab_size)
    return (wanted.discovery + wanted.replication + wanted.evaluation + wanted.means) * per_prompt / 2**30


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
            begin = _now(resid.device)
            run_layer(model.layers[0], hidden, row | allowed)
            seconds.append(_now(resid.device) - begin)
    return flop / min(seconds[1:])


def _now(device: torch.device) -> float:
    """Seconds, when the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _memory_gb(settings: StudySettings, model: Model, sample: Pairs) -> float:
    """Weights, means, a batch of rows at work, its logits, and what Python and torch take; all but kept clean runs.

    With variants two models are in memory at once; what adapters leave alone they share, which is not counted.
    """
    size = model.dtype.itemsize
    weights = sum(p.numel() for p in model.module.parameters()) * size * (2 if settings.variants else 1)
    slots = len(sample.clean_prompts.slot_names) * model.n_layers * model.n_heads * model.d_head * 8 * 3
    config = model.module.config.get_text_config()
    d_mlp = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    rows = rows_at_once(model, settings.memory_gb) * size * (6 * config.hidden_size + 3 * d_mlp)
    logits = 512 * config.vocab_size * 4 * 2
    return (weights + slots + 2 * rows + logits) / 2**30 + 0.6
