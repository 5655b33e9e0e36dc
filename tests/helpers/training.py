"""What the tests of fine-tuning share: tiny examples, settings, a kill."""

from __future__ import annotations

import json

import torch

from circuitdiff.finetune.examples import Examples
from circuitdiff.finetune.loop import (
    Training,
)
from circuitdiff.finetune.lora import Lora, add_lora
from helpers.tiny_decoders import tiny_decoder

LORA = Lora(rank=4, alpha=8, targets=("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
TRAINING = Training(steps=12, batch=5, learning_rate=0.02, warmup=2, seed=3, checkpoint_every=4)


def examples(n=20, seed=0):
    """Prompts of three lengths; the answer is the token after the first one in the vocabulary."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 7, (n,), generator=g)
    tokens = torch.randint(1, 12, (n, 6), generator=g)
    answers = tokens[:, 0] + 1
    tokens[torch.arange(6) >= lengths[:, None]] = 0
    return Examples(tokens, lengths, answers[:, None])


def lora_model(seed=3):
    return add_lora(tiny_decoder(), LORA, seed)


def trained_values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same_values(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


class Killed(BaseException):
    """Like a signal: nothing catches it."""


def jsonl(path, pairs):
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in pairs))
    return path
