"""What an MLP adds to the residual stream: found without a name, and replaced as the looped definition replaces it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from circuitdiff.engine import Edit, FullExecutor, Knockout, MlpEdit, ResidualEdit, Site, WindowExecutor
from circuitdiff.engine.edits import AnyEdit, SenderEdit
from circuitdiff.engine.mlp import mlps_of
from circuitdiff.engine.model import replaced_forward
from circuitdiff.engine.replay import run_layer
from circuitdiff.errors import InputError
from helpers.tiny_models import (
    ARCHITECTURES,
    LAST,
    LENGTH,
    N_LAYERS,
    N_PROMPTS,
    N_VARIANTS,
    Draw,
    as_model,
    as_subject,
    assert_same,
    batch_of,
    everything,
    random_tokens,
    randomise,
    subject,
)

EXECUTORS = (FullExecutor(), WindowExecutor())
SIZES = {
    "hidden_size": 60,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 44,
    "vocab_size": 61,
    "max_position_embeddings": 71,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def mlp(draw: Draw, layer: int, at: int, variants: list[int], d_model: int, *, shared: bool = False) -> MlpEdit:
    """A random vector, of each variant and prompt its own, or `shared`."""
    shape = (1, 1, d_model) if shared else (len(variants), N_PROMPTS, d_model)
    return MlpEdit(layer, at, torch.tensor(variants), 2 * draw.normal(*shape))


def one_by_one(draw: Draw, d_model: int) -> list[AnyEdit]:
    """Variants that begin at different layers and positions."""
    return [
        mlp(draw, 0, 7, [1], d_model),
        mlp(draw, 1, 12, [0, 3], d_model),
        mlp(draw, 3, 12, [2], d_model),
        mlp(draw, 2, 9, [4], d_model, shared=True),
    ]


def with_other_edits(draw: Draw, d_model: int) -> list[AnyEdit]:
    """Before, in and after the layer of other edits, twice in one variant, and twice at one place."""
    blocked = torch.zeros(1, 1, LENGTH, dtype=torch.bool)
    blocked[..., 9] = True
    return [
        mlp(draw, 1, 9, [0, 2], d_model),
        draw.edit(1, "z", 9, [0, 4], [2, 1]),
        draw.edit(1, "q", 12, [3], [0, 3]),
        Knockout(1, 12, torch.arange(6), torch.tensor([0, 1]), blocked),
        draw.edit(0, "v", 8, [1, 5], [3, 4], read_at=12),
        ResidualEdit(1, 9, torch.tensor([0]), draw.normal(1, N_PROMPTS, d_model)),
        Edit(2, "contribution", 9, torch.tensor([1]), torch.tensor([0, 4]), draw.normal(1, N_PROMPTS, 1, d_model)),
        mlp(draw, 2, 9, [3, 0], d_model),
        mlp(draw, 1, 9, [2, 4], d_model, shared=True),
    ]


CASES = [(a, s) for a in ARCHITECTURES for s in (one_by_one, with_other_edits)]


@pytest.mark.parametrize(("architecture", "scenario"), CASES, ids=[f"{a}-{s.__name__}" for a, s in CASES])
@torch.no_grad()
def test_both_executors_agree_with_the_looped_definition(architecture, scenario):
    chosen, tokens = subject(architecture), random_tokens()
    edits = scenario(Draw(), chosen.model.module.config.hidden_size)
    expected = chosen.reference.run(tokens, edits, N_VARIANTS)
    batch = batch_of(chosen, tokens)
    assert (expected - batch.clean.logits).abs().amax(dim=(1, 2)).min() > 1e-4, "the edits must show"
    for executor in EXECUTORS:
        assert_same(executor.run(batch, edits, N_VARIANTS, everything), expected)


def senders(draw: Draw, at: int, d_model: int) -> list[SenderEdit]:
    return [
        mlp(draw, 1, at, [0, 2], d_model),
        draw.edit(1, "z", at, [1, 4], [2, 1], shared=True),
        mlp(draw, 2, at, [1], d_model),
        mlp(draw, 0, at, [3, 2], d_model, shared=True),
        mlp(draw, 3, at, [4], d_model),
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_frozen_run_agrees_with_the_looped_definition(architecture):
    chosen, tokens = subject(architecture), random_tokens()
    edits = senders(Draw(), LAST, chosen.model.module.config.hidden_size)
    expected = chosen.reference.frozen(tokens, edits, N_VARIANTS, LAST)
    batch = batch_of(chosen, tokens, start=LAST)
    assert (expected - batch.clean.logits).abs().amax(dim=(1, 2)).min() > 1e-4, "the edits must show"
    for executor in EXECUTORS:
        assert_same(executor.frozen(batch, edits, N_VARIANTS, LAST, everything), expected)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_neox", "opt", "granite"])
@torch.no_grad()
def test_what_receivers_receive_from_mlps_agrees_with_the_looped_definition(architecture):
    chosen, tokens = subject(architecture), random_tokens()
    edits = senders(Draw(), 9, chosen.model.module.config.hidden_size)
    sites = [Site(2, "v", 9, torch.tensor([4, 1])), Site(1, "v", 9, torch.tensor([5, 0]))]
    expected = chosen.reference.path_patched(tokens, edits, N_VARIANTS, 9, sites, None)
    batch = batch_of(chosen, tokens, start=9)
    moved = (expected - batch.clean.logits).abs().amax(dim=(1, 2))
    assert moved[[0, 1, 2, 3]].min() > 1e-4
    assert moved[4] < 1e-10, "the MLP of the last layer reaches no receiver"
    for executor in EXECUTORS:
        received = executor.received(batch, edits, N_VARIANTS, 9, sites)
        assert_same(executor.run(batch, received, N_VARIANTS, everything), expected)


OTHERS = {
    "phi": lambda: tf.PhiConfig(**SIZES, partial_rotary_factor=0.4),
    "gpt_neox after attention": lambda: tf.GPTNeoXConfig(**SIZES, use_parallel_residual=False),
    "mixtral": lambda: tf.MixtralConfig(**SIZES, head_dim=10, num_key_value_heads=2, num_local_experts=3),
}


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_an_mlp_is_found_beside_attention_and_after_it_and_made_of_experts(name):
    how = {"experts_implementation": "eager"} if name == "mixtral" else {}
    module = tf.AutoModelForCausalLM.from_config(OTHERS[name](), dtype=torch.float64, **how).eval()
    randomise(module)
    chosen = as_subject(name.split()[0], module.requires_grad_(False))
    tokens, draw = random_tokens(), Draw()
    edits = one_by_one(draw, 60)
    expected = chosen.reference.run(tokens, edits, N_VARIANTS)
    for executor in EXECUTORS:
        assert_same(executor.run(batch_of(chosen, tokens), edits, N_VARIANTS, everything), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_without_its_mlp_a_layer_adds_what_its_attention_alone_decides(architecture):
    model = subject(architecture).model
    clean = batch_of(subject(architecture), random_tokens()).clean
    for layer, found in enumerate(mlps_of(model)):
        moved = clean.resid_pre[layer] + Draw(layer).normal(*clean.resid_pre[layer].shape)
        attended, keywords = clean.attention_output[layer], clean.keywords[layer]
        kept = []
        stop = found.module.register_forward_hook(lambda _, __, output, kept=kept: kept.append(output))
        with replaced_forward(model.attentions[layer], lambda *_, attended=attended, **__: (attended, None)):
            own, other = (run_layer(model.layers[layer], x, keywords) - x for x in (clean.resid_pre[layer], moved))
        stop.remove()
        without = [x - found.scale * w.reshape(x.shape) for x, w in zip((own, other), kept, strict=True)]
        assert (own - other).abs().max() > 1e-2
        assert_same(without[0], without[1])


def test_a_layer_that_normalises_the_sum_is_refused():
    sizes = {"hidden_size": 60, "word_embed_proj_dim": 28, "ffn_dim": 44, "vocab_size": 61, "pad_token_id": 0}
    config = tf.OPTConfig(**sizes, num_hidden_layers=4, num_attention_heads=6, do_layer_norm_before=False)
    module = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    randomise(module)
    chosen = as_model("theirs", module.requires_grad_(False))
    with pytest.raises(InputError, match=r"MLP of layer 0 of theirs .*a norm or a scale of the sum"):
        mlps_of(chosen)


class _Bent(LlamaDecoderLayer):
    """Its MLP's output is bent before it is added, by no module."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:  # pyright: ignore
        middle = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **kwargs)[0]
        return middle + torch.tanh(self.mlp(self.post_attention_layernorm(middle)))


def test_a_layer_that_bends_what_its_mlp_gives_out_is_refused():
    module = copy.deepcopy(subject("llama").model.module)
    module.model.layers[2].__class__ = _Bent
    chosen = as_model("theirs", module)
    with pytest.raises(InputError, match="MLP of layer 2 of theirs"):
        mlps_of(chosen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma2", "granite"])
def test_the_same_modules_are_found_in_other_precisions(architecture, dtype):
    model = subject(architecture).model
    names = {module: name for name, module in model.module.named_modules()}
    expected = [(names[found.module], found.scale) for found in mlps_of(model)]
    module = tf.AutoModelForCausalLM.from_config(model.module.config, dtype=dtype).eval().requires_grad_(False)
    randomise(module)
    other = as_model(architecture, module)
    names = {module: name for name, module in module.named_modules()}
    actual = [(names[found.module], found.scale) for found in mlps_of(other)]
    assert [name for name, _ in actual] == [name for name, _ in expected]
    scales = torch.tensor([[scale for _, scale in each] for each in (actual, expected)])
    torch.testing.assert_close(scales[0], scales[1], rtol=torch.finfo(dtype).eps, atol=0)
    assert len(actual) == N_LAYERS
