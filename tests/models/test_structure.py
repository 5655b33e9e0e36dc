"""Which architectures are taken, and that the others are refused in one line that says why."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers as tf
from transformers import AttentionInterface

from circuitdiff.engine import Batch, FullExecutor
from circuitdiff.engine.window import WindowExecutor
from circuitdiff.errors import InputError
from circuitdiff.models.structure import find_structure
from helpers.tiny_models import (
    ARCHITECTURES,
    D_HEAD,
    N_HEADS,
    N_KV_HEADS,
    N_LAYERS,
    Draw,
    as_model,
    assert_same,
    everything,
    random_tokens,
    randomise,
    subject,
)

WITHOUT_GROUPS = {"gpt2", "gpt_neox", "opt"}
SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 44,
    "vocab_size": 61,
    "max_position_embeddings": 71,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HYBRID = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
CONVOLUTION = ["conv", "full_attention", "conv", "full_attention"]


def tiny(config: tf.PreTrainedConfig) -> tf.PreTrainedModel:
    module = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    randomise(module)
    return module


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_output_projections_and_sizes_are_found(architecture):
    chosen = subject(architecture)
    found, twin = chosen.model, chosen.reference
    names = {module: name for name, module in found.module.named_modules()}
    twin_names = {module: name for name, module in twin.module.named_modules()}
    assert [names[p] for p in found.projections] == [twin_names[p] for p in twin.projections]
    assert len(found.layers) == len(found.attentions) == N_LAYERS
    kv = N_HEADS if architecture in WITHOUT_GROUPS else N_KV_HEADS
    assert (found.n_heads, found.n_kv_heads, found.d_head) == (N_HEADS, kv, D_HEAD)


REFUSED = {
    "falcon": (
        lambda: tf.FalconConfig(hidden_size=48, num_hidden_layers=4, num_attention_heads=6, vocab_size=61),
        "attention interface",
    ),
    "gptj": (
        lambda: tf.GPTJConfig(
            n_embd=60, n_layer=4, n_head=6, vocab_size=61, n_positions=71, rotary_dim=4, bos_token_id=1, eos_token_id=2
        ),
        "attention interface",
    ),
    "gated and linear attention (qwen3_next)": (
        lambda: tf.Qwen3NextConfig(**SIZES, head_dim=10, layer_types=HYBRID, num_experts=0),
        "hybrid",
    ),
    "gated attention (qwen3_next)": (
        lambda: tf.Qwen3NextConfig(**SIZES, head_dim=10, layer_types=["full_attention"] * 4, num_experts=0),
        "gated",
    ),
    "convolutions (lfm2)": (lambda: tf.Lfm2Config(**SIZES, layer_types=CONVOLUTION), "hybrid"),
    "a recurrence beside attention (falcon_h1)": (
        lambda: tf.FalconH1Config(
            **SIZES, mamba_d_ssm=48, mamba_n_heads=6, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8
        ),
        "mixes positions outside its attention",
    ),
    "differential attention (diffllama)": (lambda: tf.DiffLlamaConfig(**SIZES), "call attention 8 times"),
    "a norm on z (bitnet)": (lambda: tf.BitNetConfig(**SIZES), "output projection's input is not z"),
    "a mask of numbers (doge)": (lambda: tf.DogeConfig(**SIZES), "adds to the scores"),
    "shared keys and values (gemma3n)": (
        lambda: tf.Gemma3nTextConfig(
            **SIZES,
            head_dim=10,
            vocab_size_per_layer_input=61,
            hidden_size_per_layer_input=8,
            num_kv_shared_layers=2,
            layer_types=["full_attention"] * 4,
            laurel_rank=4,
            altup_num_inputs=2,
            activation_sparsity_pattern=[0.0] * 4,
        ),
        "layer 2 shares the keys or values of layer 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_cannot_edit_is_refused_in_one_line(name, caplog):
    make, why = REFUSED[name]
    module = tiny(make())
    with caplog.at_level(logging.ERROR, logger="transformers"), pytest.raises(InputError, match=why) as refusal:
        find_structure(module, "theirs")
    assert "\n" not in str(refusal.value)


def test_what_an_attention_is_told_that_nobody_knows_is_refused(monkeypatch):
    """Left out silently, it would change what the model says."""
    module, call = tiny(tf.LlamaConfig(**SIZES, head_dim=10)), AttentionInterface()["circuitdiff"]
    told = {"circuitdiff": lambda *args, **keywords: call(*args, **keywords, indices=torch.zeros(1))}
    monkeypatch.setattr(AttentionInterface, "get_interface", lambda _, name, other: told.get(name, other))
    with pytest.raises(
        InputError, match=r"LlamaAttention calls its attention with indices, which circuitdiff does not"
    ):
        find_structure(module, "theirs")


def test_a_mixture_of_experts_is_taken():
    config = tf.MixtralConfig(**SIZES, head_dim=10, num_local_experts=3)
    module = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float64, experts_implementation="eager").eval()
    randomise(module)
    tokens, draw = random_tokens(), Draw()
    batch = Batch(as_model("mixtral", module.requires_grad_(False)), tokens)
    edits = [draw.edit(1, "z", 9, [0, 3], [0, 1]), draw.edit(2, "v", 8, [4], [1], read_at=11)]
    with torch.no_grad():
        full, window = (e.run(batch, edits, 2, everything) for e in (FullExecutor(), WindowExecutor()))
    assert_same(window, full)
