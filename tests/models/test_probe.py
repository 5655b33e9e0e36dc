"""Probes reach what a config names, and a model that fails on one is refused in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as tf
from torch import nn

from circuitdiff.engine.replay import run_layer
from circuitdiff.engine.window_attention import Window
from circuitdiff.errors import InputError
from circuitdiff.models import load_model
from circuitdiff.models.checks import CheckError, checks_at_load, refuse_failures, tolerance_for
from circuitdiff.models.probe import probe_tokens, windows
from circuitdiff.models.structure import find_structure
from helpers.tiny_decoders import D_VOCAB, SHAPE, save_decoder, tiny_decoder
from helpers.tiny_models import _COMMON, as_model, randomise

GPT2 = {"vocab_size": D_VOCAB, "n_embd": 24, "n_head": 3, "n_layer": 2, "bos_token_id": 1, "eos_token_id": 2}


def random_model(config: tf.PreTrainedConfig) -> tf.PreTrainedModel:
    module = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval().requires_grad_(False)
    randomise(module)
    return module


def llama4(**changes) -> tf.PreTrainedModel:
    shape = _COMMON | {"max_position_embeddings": 4096, "attention_chunk_size": 21, "intermediate_size_mlp": 44}
    experts = {"num_local_experts": 3, "num_experts_per_tok": 1}
    return random_model(tf.Llama4TextConfig(**shape, **experts, attn_scale=0.5, **changes))


def test_an_attention_that_counts_positions_off_its_inputs_shape_is_refused():
    with pytest.raises(CheckError, match="window executor vs full executor"):
        refuse_failures(checks_at_load(as_model("tempered", llama4(floor_scale=16))))


def test_a_window_too_long_to_be_left_is_named_by_the_check():
    checks = checks_at_load(as_model("tempered", llama4(floor_scale=8192)))
    refuse_failures(checks)
    assert checks[-1].detail == (
        "z, q, k, v edited, frozen, ablated at 13, 19, 26 of 27 random tokens; not crossed: floor_scale of 8192"
    )


def test_a_window_executor_that_sees_beyond_a_sliding_window_is_noticed(monkeypatch):
    def causal(call, n_variants, prefix, allowed):
        n_query, n_keys = allowed.shape
        return window_of(call, n_variants, prefix, torch.ones_like(allowed).tril(n_keys - n_query))

    window_of = Window.of
    model = as_model("sliding", random_model(tf.MistralConfig(**_COMMON, sliding_window=20)))
    refuse_failures(checks_at_load(model))
    monkeypatch.setattr(Window, "of", causal)
    with pytest.raises(CheckError, match="window executor vs full executor"):
        refuse_failures(checks_at_load(model))


def test_settings_are_windows_by_their_names_whatever_the_family():
    config = tf.Llama4TextConfig(**_COMMON, attention_chunk_size=9, floor_scale=17)
    assert windows(config) == {"attention_chunk_size": 9, "floor_scale": 17}
    assert windows(tf.Qwen2Config(use_sliding_window=False, max_window_layers=28)) == {}
    assert windows(tf.ModernBertDecoderConfig(local_attention=30))["local_attention"] == 30


@pytest.mark.parametrize(("sliding_window", "length"), [(None, 12), (5, 12), (20, 26), (256, 262), (257, 12)])
def test_a_probe_is_as_long_as_the_longest_window_that_it_can_leave_needs(sliding_window, length):
    config = tf.MistralConfig(**_COMMON | {"max_position_embeddings": 4096}, sliding_window=sliding_window)
    with torch.device("meta"):
        module = tf.AutoModelForCausalLM.from_config(config)
    module.set_input_embeddings(nn.Embedding(61, 42))
    assert probe_tokens(module).shape == (2, length)


def test_a_short_position_table_makes_the_probe_short(tmp_path):
    folder = save_decoder(tmp_path, tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2, n_positions=8)))
    assert load_model(folder).provenance["checks"][-1]["detail"].endswith("at 4, 5, 7 of 8 random tokens")


def test_a_position_table_too_short_to_check_edits_on_is_refused_in_one_line(tmp_path):
    folder = save_decoder(tmp_path, tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2, n_positions=3)))
    with pytest.raises(InputError, match="has 3 positions; circuitdiff needs 4"):
        load_model(folder)


def test_a_config_that_asks_for_nameless_outputs_changes_nothing(tmp_path):
    plain = load_model(save_decoder(tmp_path / "plain"))
    nameless = tiny_decoder()
    nameless.config.return_dict = False
    loaded = load_model(save_decoder(tmp_path / "nameless", nameless))
    assert loaded.provenance["fingerprint"] == plain.provenance["fingerprint"]


def test_experts_load_in_float64(tmp_path):
    module = tf.MixtralForCausalLM(tf.MixtralConfig(**SHAPE, num_local_experts=3))
    model = load_model(save_decoder(tmp_path, module), dtype="float64")
    assert model.forward(torch.tensor([[3, 4, 5]])).dtype == torch.float64


def test_the_tolerance_of_experts_in_float64_is_that_of_the_float32_that_weighs_them():
    assert tolerance_for(llama4()) == 1e-4
    assert tolerance_for(random_model(tf.LlamaConfig(**_COMMON))) == 1e-10


def test_values_narrower_than_queries_load_with_every_check_and_their_own_size(tmp_path):
    sizes = {"q_lora_rank": 12, "kv_lora_rank": 14, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8}
    shape = {name: size for name, size in _COMMON.items() if name not in ("head_dim", "num_key_value_heads")}
    experts = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}
    experts |= {"moe_intermediate_size": 24, "first_k_dense_replace": 2, "num_key_value_heads": 6}
    config = tf.DeepseekV3Config(**shape | {"vocab_size": D_VOCAB, "hidden_size": 40}, **sizes, **experts)
    model = load_model(save_decoder(tmp_path, random_model(config).float()))
    assert (model.n_heads, model.n_kv_heads, model.d_head, model.d_query) == (6, 6, 8, 10)


def test_an_attention_whose_model_takes_a_view_of_z_is_refused_for_what_it_does_with_it():
    shape = {name: size for name, size in _COMMON.items() if name not in ("num_attention_heads", "head_dim")}
    config = tf.JetMoeConfig(**shape, kv_channels=10, num_local_experts=3, num_experts_per_tok=2)
    with pytest.raises(InputError, match="output projection's input is not z"):
        find_structure(random_model(config), "viewing")


class Layer(nn.Module):
    """Gives out what `form` makes of its input."""

    def __init__(self, form: Callable[[torch.Tensor], object]):
        super().__init__()
        self.form = form

    def forward(self, hidden_states: torch.Tensor) -> object:
        return self.form(hidden_states)


@pytest.mark.parametrize(
    ("form", "came"),
    [(lambda x: {"hidden": x}, "a dict"), (lambda x: x[0], r"a \(3, 4\) tensor"), (lambda x: (), "a tuple")],
)
def test_a_layer_of_a_form_that_is_not_known_is_refused_in_one_line(form, came):
    with pytest.raises(InputError, match=f"Layer gives out {came}, not its residual stream"):
        run_layer(Layer(form), torch.zeros(2, 3, 4), {})


def test_whatever_a_model_raises_while_it_is_probed_names_the_model_in_one_line(tmp_path, monkeypatch):
    def forward(*_, **__):
        raise KeyError("no such\nlayer")

    folder = save_decoder(tmp_path)
    monkeypatch.setattr(tf.LlamaForCausalLM, "forward", forward)
    with pytest.raises(InputError, match=f"{tmp_path.name} cannot be used, it failed when running on random"):
        load_model(folder)


def test_a_model_that_is_interrupted_while_it_is_probed_is_not_refused(monkeypatch):
    def forward(*_, **__):
        raise KeyboardInterrupt

    module = random_model(tf.LlamaConfig(**_COMMON))
    monkeypatch.setattr(tf.LlamaForCausalLM, "forward", forward)
    with pytest.raises(KeyboardInterrupt):
        find_structure(module, "interrupted")
