"""A config that is nearly right runs as another model: it is refused, and what is left to defaults is said."""

from __future__ import annotations

import json
import pickle
import re

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from circuitdiff.errors import InputError
from circuitdiff.models.fingerprint import origin_of
from circuitdiff.models.sources import read_source
from helpers.tiny_decoders import save_decoder


@pytest.fixture
def copy(tmp_path):
    return save_decoder(tmp_path / "copy")


def rewrite(folder, file="config.json", drop=(), **changes):
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if key not in drop}))


@pytest.mark.parametrize(
    ("drop", "added", "message"),
    [
        ("rms_norm_eps", {"rms_norm_ep": 1e-3}, r"has 'rms_norm_ep', .* no 'rms_norm_eps', which would be 1e-06"),
        ("hidden_act", {"hiden_act": "relu"}, "no 'hidden_act', which would be 'silu'"),
        ("rope_parameters", {"rope_parameter": {"rope_theta": 5.0}}, "no 'rope_parameters'"),
        ("", {"rope_parameters": {"rope_thetta": 5.0}}, "no 'rope_theta', which would be its default"),
        ("rope_parameters", {"rope_theeta": 5e5}, "has 'rope_theeta', .* no 'rope_theta'"),
        ("rope_parameters", {"rope_scalling": {"rope_type": "linear", "factor": 2.0}}, "no 'rope_scaling'"),
        ("num_key_value_heads", {"num_key_value_head": 1}, "no 'num_key_value_heads'"),
    ],
)
def test_a_key_that_is_nearly_one_of_the_architectures_is_refused(copy, drop, added, message):
    rewrite(copy, drop=[drop], **added)
    with pytest.raises(InputError, match=message):
        read_source(copy)


def test_what_is_left_to_defaults_is_known_and_other_keys_are_let_through(copy):
    assert read_source(copy).provenance["left_to_defaults"] == {}
    rewrite(copy, drop=["rms_norm_eps", "hidden_act"], unsloth_fixed=True, _name="x", rope_parameterisation=1)
    assert read_source(copy).provenance["left_to_defaults"] == {"rms_norm_eps": 1e-06, "hidden_act": "silu"}


def test_older_and_other_names_of_the_same_setting_are_no_defaults(copy, tmp_path):
    rewrite(copy, drop=["rope_parameters"], rope_theta=123.0)
    source = read_source(copy)
    assert source.provenance["left_to_defaults"] == {}
    assert source.model.config.rope_parameters["rope_theta"] == 123.0
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=41, n_embd=24, n_layer=2, n_head=3, n_positions=40))
    save_decoder(tmp_path / "gpt2", gpt2)
    rewrite(tmp_path / "gpt2", drop=["n_embd", "n_layer"], hidden_size=24, num_hidden_layers=2)
    assert read_source(tmp_path / "gpt2").provenance["left_to_defaults"] == {}


@pytest.mark.parametrize("sizes", [{"num_hidden_layers": 1_000_000}, {"vocab_size": 2**33}, {"hidden_size": 3 * 2**22}])
def test_a_config_larger_than_its_weights_is_refused_before_memory_is_asked_for(copy, sizes):
    rewrite(copy, **sizes)
    with pytest.raises(InputError, match=r"cannot read .*more than the weights beside it hold"):
        read_source(copy)


def test_quantisation_is_named_as_what_it_is(copy):
    rewrite(copy, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(InputError, match=r"quantised \(bitsandbytes, 4 bits\).*delete quantization_config"):
        read_source(copy)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "null"),
        ("config.json", '{"model_type": "llama", "architectures": [[]]}'),
        ("config.json", '{"model_type": "llama", "dtype": "{"}'),
        ("config.json", '{"model_type": "llama", "num_attention_heads": 0}'),
        ("config.json", "[" * 100_000),
        ("tokenizer.json", '{"post_processor": {}}'),
        ("tokenizer.json", '{"version": "1.0", "mod'),
        ("model.safetensors", b"\xff" * 64),
    ],
)
def test_any_exception_of_the_libraries_is_one_line(copy, file, content):
    (copy / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=re.escape(str(copy))) as refusal:
        read_source(copy)
    assert "\n" not in str(refusal.value)


def test_pickled_weights_are_refused_and_not_run(copy, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()) + bytes(4096))
    with pytest.raises(InputError, match="cannot read"):
        read_source(copy)
    torch.save(Bomb(), copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot read"):
        read_source(copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["models/my/base", "./bse", "/data/t_ful", "~/x/y", "some\\base", "no.gguf"])
def test_a_mistyped_path_is_no_hub_id(place):
    with pytest.raises(InputError, match=r"there is no|no such file") as refusal:
        read_source(place)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("hub_id", ["-inf", "x.", "a--b", "org/-x", "a b"])
def test_what_no_hub_id_can_be_is_one_line(hub_id):
    assert origin_of(hub_id) is None
    with pytest.raises(InputError, match="no model"):
        read_source(hub_id)
