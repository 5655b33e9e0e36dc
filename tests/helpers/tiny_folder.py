"""A tiny random model saved with a tokenizer that knows the entity-tracking task's words."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from circuitdiff.study.registry import read_study
from circuitdiff.study.settings import CommonSettings
from circuitdiff.vocabulary import LABELS, OBJECTS, TRAIN_OBJECTS
from helpers.tiny_models import randomise
from helpers.tiny_tokenizers import FRAME, word_level

N_LAYERS, N_HEADS = 3, 4
FURTHER = (
    "minimality",
    "completeness",
    "ablations",
    "functions",
    "cross_model",
    "graft",
    "knockout",
    "attention",
    "curves",
    "locate",
)
CIRCUIT_ONLY = dict.fromkeys(FURTHER, "false")  # of a whole study: discovery, faithfulness, overlap


def save_tiny_model(folder: Path, seed: int = 0, **changes: int) -> Path:
    tokenizer = word_level([*FRAME, *LABELS, *OBJECTS, *TRAIN_OBJECTS])
    shape = {
        "hidden_size": 28,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "intermediate_size": 20,
        "vocab_size": len(tokenizer),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    config = LlamaConfig(**shape | changes)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    randomise(model, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def study_yaml(model: Path, **changes: object) -> str:
    lines = {
        "name": "tiny",
        "base": str(model),
        "task": "{name: entity_tracking, options: {n_boxes: 3}}",
        "prompts": "{discovery: 6, replication: 6, evaluation: 9, means: 12}",
        "plans": """
  main:
    stages:
      - {name: fetcher, at: last, select: {top: 3}}
      - {name: transmitter, at: last, via: q, receivers_from: fetcher, select: {top: 2}}
  other:
    stages:
      - {name: fetcher, at: last, select: {top: 2}}""",
        "faithfulness": "{random_circuits: 5}",
        "force": "true",  # random weights do no task
    } | changes
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def silent(*_: object) -> None:
    """No progress."""


def settings_of(folder: Path, model: Path, **changes: object) -> CommonSettings:
    path = folder / "tiny.yaml"
    path.write_text(study_yaml(model, **CIRCUIT_ONLY | changes))
    return read_study(path)
