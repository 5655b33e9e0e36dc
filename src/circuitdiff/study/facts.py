"""What the process that leads a study knows of a model, whose weights may be in another process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from circuitdiff.engine import Model
from circuitdiff.engine.attention import attend, handled_by
from circuitdiff.engine.fits import rows_at_once
from circuitdiff.engine.replay import cut, embed, run_layer
from circuitdiff.models.checks import Check
from circuitdiff.prompts import Pairs
from circuitdiff.study.estimates import result_of
from circuitdiff.study.host import LoadedModel
from circuitdiff.study.prompts import PromptsOf

_PROBE_ROWS = 512
_TIMES = 4  # that the probe is run; the first warms up


@dataclass(frozen=True)
class Speed:
    """What a model's runs cost on the machine of the worker that loaded it. FLOP are of one token."""

    flop_of_layer: float
    flop_of_head: float
    flop_per_second: float
    weights_gb: float
    run_gb: float  # of a batch at work, beside what is kept
    kept_gb_per_token: float  # of a kept clean run
    logits_gb: float  # of one prompt's
    load_seconds: float = 0.0  # with the checks at load


@dataclass(frozen=True)
class ModelFacts:
    """A loaded model without its weights."""

    name: str
    fingerprint: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    dtype: torch.dtype
    config: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase
    checks: tuple[Check, ...]


def facts_of(subject: LoadedModel) -> ModelFacts:
    model = subject.model
    return result_of(
        ModelFacts,
        model,
        fingerprint=model.provenance["fingerprint"],
        config=model.module.config.get_text_config().to_dict(),
        checks=tuple(Check(**check) for check in model.provenance["checks"]),
    )


def speed_of(subject: LoadedModel) -> Speed:
    """Measured on one layer and a few hundred rows; the rest follows from the model's sizes."""
    model, size = subject.model, subject.model.dtype.itemsize
    config = model.module.config.get_text_config()
    layer = sum(p.numel() for p in model.layers[0].parameters())
    d_mlp = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    rows = rows_at_once(model, subject.memory_gb) * size * (6 * config.hidden_size + 3 * d_mlp)
    per_token = model.n_layers * (2 * config.hidden_size + (model.n_heads + 2 * model.n_kv_heads) * model.d_head)
    return Speed(
        flop_of_layer=2.0 * layer,
        flop_of_head=2.0 * config.vocab_size * config.hidden_size,
        flop_per_second=_flop_per_second(model, subject.pairs(PromptsOf("evaluation"))),
        weights_gb=sum(p.numel() for p in model.module.parameters()) * size / 2**30,
        run_gb=(2 * rows + 512 * config.vocab_size * 4 * 2) / 2**30,
        kept_gb_per_token=per_token * size / 2**30,
        logits_gb=config.vocab_size * size / 2**30,
        load_seconds=subject.load_seconds,
    )


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
        for _ in range(_TIMES):
            begin = _now(resid.device)
            run_layer(model.layers[0], hidden, row | allowed)
            seconds.append(_now(resid.device) - begin)
    return flop / min(seconds[1:])


def _now(device: torch.device) -> float:
    """Seconds, when the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
