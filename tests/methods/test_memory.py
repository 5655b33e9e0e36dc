"""`memory_gb` bounds what sweeps hold at once, and the estimates behind it are no lower than what is measured."""

from __future__ import annotations

import functools

import pytest
import torch
import transformers as tf

from circuitdiff.circuit import Head
from circuitdiff.engine.fits import held_by_clean_run, prompts_at_once
from circuitdiff.engine.kept_runs import PairRuns
from circuitdiff.engine.model import Model
from circuitdiff.engine.replay import run_clean
from circuitdiff.methods.path_patching import Path, group_path_effects, path_effects
from circuitdiff.prompts import Pairs, PromptSet
from helpers.peak_memory import PeakMemory
from helpers.tiny_models import as_model, random_tokens, subject

MEMORY_GB = 0.03
RESULTS = 2**20  # beside it: results, what heads carry in the counterfactual prompts, masks and positions
SENDERS = [Head(2, 1)]


@functools.cache
def model() -> Model:
    """With room for long prompts."""
    sizes = {"hidden_size": 40, "num_hidden_layers": 6, "num_attention_heads": 5, "num_key_value_heads": 5}
    config = tf.LlamaConfig(**sizes, intermediate_size=90, vocab_size=301, max_position_embeddings=320, pad_token_id=0)
    module = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval().requires_grad_(False)
    return as_model("long", module)


def prompts(n: int, length: int, seed: int) -> PromptSet:
    tokens = torch.randint(1, 301, (n, length), generator=torch.Generator().manual_seed(seed))
    lengths = torch.full((n,), length)
    positions = {"last": lengths - 1, "early": lengths - 20}
    return PromptSet(tokens, lengths, positions, torch.zeros_like(tokens), ["word"], ["word"])


@functools.cache
def pairs(n: int, length: int) -> Pairs:
    numbers = torch.arange(n)
    foils = torch.stack([numbers % 7 + 20, numbers % 5 + 40, numbers % 3 + 60], dim=1)
    return Pairs(prompts(n, length, 1), prompts(n, length, 2), numbers % 9, foils, None, numbers, numbers % 4)


MANY, LONG = (96, 53), (6, 300)
SWEEPS = {
    "one sender": lambda p: path_effects(model(), p, "last", senders=SENDERS, memory_gb=MEMORY_GB),
    "of the whole vocabulary": lambda p: path_effects(
        model(), p, "last", senders=SENDERS, metric="log_prob", memory_gb=MEMORY_GB
    ),
    "a window": lambda p: path_effects(
        model(), p, "early", [Head(4, 3)], "v", None, [Head(0, 1), *SENDERS], memory_gb=MEMORY_GB
    ),
    "a group": lambda p: group_path_effects(model(), p, SENDERS, Path("last"), memory_gb=MEMORY_GB),
    "kept runs": lambda p: path_effects(
        model(), p, "last", senders=SENDERS, memory_gb=MEMORY_GB, shared=PairRuns(model(), p, ["last"], MEMORY_GB)
    ),
}


@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize("shape", [MANY, LONG], ids=["many prompts", "long prompts"])
def test_a_sweep_holds_no_more_than_it_may(shape, sweep):
    some = pairs(*shape)
    with PeakMemory() as memory:
        SWEEPS[sweep](some)
    assert memory.peak < MEMORY_GB * 2**30 + RESULTS


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "gpt_neox", "opt", "olmo2"])
@pytest.mark.parametrize("clean", [True, False])
@torch.no_grad()
def test_a_run_holds_no_more_than_is_counted(architecture, clean):
    """Given the memory that was measured, no more prompts run together than ran."""
    chosen, tokens = subject(architecture).model, random_tokens(16, 60)
    with PeakMemory() as memory:
        _kept_alive = run_clean(chosen, tokens) if clean else chosen.forward(tokens)
    held = held_by_clean_run(chosen) if clean else 0
    assert prompts_at_once(chosen, 60, memory.peak / 2**30, held=held) <= 16


def test_the_peak_is_that_of_what_was_alive_together():
    with PeakMemory() as memory:
        first = torch.zeros(1000, dtype=torch.float64) + 1
        second = first * 2
        del first
        _view, _third = second[:10], second + second
        del second
    assert 8000 * 2 <= memory.peak < 8000 * 3 + 100
    assert memory.alive >= 8000
