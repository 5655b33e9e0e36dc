"""Adapters are merged as by hand, whatever memory is shared, or refused in one line."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers as tf
from peft import IA3Config, LNTuningConfig, LoraConfig, OFTConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file

from circuitdiff.errors import InputError
from circuitdiff.models import load_model, sources
from circuitdiff.models.checks import CheckError
from circuitdiff.models.fingerprint import weight_digests
from circuitdiff.models.sources import read_source, with_first_adapters
from helpers.tiny_decoders import change_json, change_weights, save_decoder, save_random_adapter, tiny_decoder

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return save_random_adapter(tmp_path_factory.mktemp("adapter"))


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS).logits


@torch.no_grad()
def with_delta_by_hand(adapter, alpha=6, rank=2):
    """The tiny decoder with `alpha / rank * B A` added to each weight that the adapter names."""
    model, tensors = tiny_decoder(), load_file(adapter / "adapter_model.safetensors")
    for key, a in tensors.items():
        if key.endswith("lora_A.weight"):
            name = key.removeprefix("base_model.model.").replace("lora_A.", "")
            model.get_parameter(name).add_(alpha / rank * tensors[key.replace("lora_A", "lora_B")] @ a)
    return model


def test_an_adapter_is_merged_as_by_hand(folder, adapter):
    source = read_source(folder, [adapter])
    torch.testing.assert_close(logits(source.model), logits(with_delta_by_hand(adapter)), rtol=1e-5, atol=1e-5)
    assert type(source.model) is tf.LlamaForCausalLM
    assert not any(p.requires_grad for p in source.model.parameters())
    assert source.name == f"{folder.name}+{adapter.name}"


def test_the_measured_numbers_are_kept(folder, adapter):
    checks = {check.name: check for check in read_source(folder, [adapter]).checks}
    assert list(checks) == [
        "adapter tensors without a place",
        "merged equals unmerged",
        "the adapter changes the logits",
    ]
    assert all(check.passed for check in checks.values())
    assert 0 <= checks["merged equals unmerged"].value <= checks["merged equals unmerged"].tolerance == 1e-4
    plain, adapted = logits(tiny_decoder()), logits(with_delta_by_hand(adapter))
    assert checks["the adapter changes the logits"].value > 0.01
    assert float((plain - adapted).abs().max()) > 0.01


def test_adapters_merge_one_after_the_other(folder, adapter, tmp_path):
    other = save_random_adapter(tmp_path / "other", seed=2, targets=("q_proj", "v_proj"))
    source = read_source(folder, [adapter, other])
    by_hand, second = with_delta_by_hand(adapter), with_delta_by_hand(other)
    for parameter, twice, plain in zip(
        by_hand.parameters(), second.parameters(), tiny_decoder().parameters(), strict=True
    ):
        parameter.data += twice.data - plain.data
    torch.testing.assert_close(logits(source.model), logits(by_hand), rtol=1e-5, atol=1e-5)
    assert [record["name"] for record in source.provenance["adapters"]] == [adapter.name, "other"]
    assert len(source.checks) == 6


def test_a_model_with_one_adapter_more_is_made_from_the_one_in_memory(folder, adapter, tmp_path, monkeypatch):
    other = save_random_adapter(tmp_path / "other", seed=2, targets=("q_proj", "v_proj"))
    plain, one = load_model(folder), load_model(folder, [adapter])
    anew = load_model(folder, [adapter, other])
    monkeypatch.setattr(sources, "read_checkpoint", lambda *_: pytest.fail("read again"))
    grown = load_model(folder, [adapter, other], like=[plain, one])
    for key in ("fingerprint", "adapters", "kind", "path", "source"):
        assert grown.provenance[key] == anew.provenance[key]
    assert weight_digests(one.module) == one.weights
    assert [check["name"] for check in grown.provenance["checks"]].count("adapter tensors without a place") == 1


def test_what_the_adapters_leave_alone_is_in_memory_once(folder, adapter, tmp_path):
    other = save_random_adapter(tmp_path / "other", seed=2, targets=("q_proj", "v_proj"))
    one = load_model(folder, [adapter])
    grown = load_model(folder, [adapter, other], like=[one])
    theirs = {name: parameter.data_ptr() for name, parameter in one.module.named_parameters()}
    own = {name for name, parameter in grown.module.named_parameters() if parameter.data_ptr() != theirs[name]}
    assert own == {name for name in theirs if ".q_proj." in name or ".v_proj." in name}


@pytest.mark.parametrize("wanted", ["another order", "fewer", "another dtype", "another folder"])
def test_only_the_first_adapters_of_the_same_weights_in_the_same_dtype_are_taken_from_memory(
    folder, adapter, tmp_path, wanted
):
    other = save_random_adapter(tmp_path / "other", seed=2, targets=("q_proj", "v_proj"))
    both = load_model(folder, [adapter, other])
    source, adapters, dtype = {
        "another order": (folder, [other, adapter], "float32"),
        "fewer": (folder, [adapter], "float32"),
        "another dtype": (folder, [adapter, other], "float64"),
        "another folder": (save_decoder(tmp_path / "copy"), [adapter, other], "float32"),
    }[wanted]
    assert with_first_adapters([both], str(source), adapters, (dtype, "cpu")) is None
    assert with_first_adapters([both], str(folder), [adapter, other], ("float32", "cpu")) is both


def test_an_adapter_that_changes_nothing_is_refused(folder, tmp_path):
    save_random_adapter(tmp_path / "zero", scale=0)
    with pytest.raises(CheckError, match="the adapter changes the logits"):
        read_source(folder, [tmp_path / "zero"])


def _rename(tensors):
    return {key.replace("q_proj", "query"): value for key, value in tensors.items()}


def _drop_one(tensors):
    return {key: value for key, value in tensors.items() if "layers.2.mlp.up_proj.lora_B" not in key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename, r"has no place for .*query.*and 3 more"),
        (_drop_one, r"finds in the file no .*layers\.2\.mlp\.up_proj"),
    ],
)
def test_an_adapter_whose_keys_do_not_land_is_refused(folder, tmp_path, change, message):
    broken = save_random_adapter(tmp_path / "broken")
    change_weights(broken, change)
    with pytest.raises(InputError, match=message):
        read_source(folder, [broken])


def test_an_adapter_of_a_base_of_another_shape_is_refused(folder, tmp_path):
    other = save_random_adapter(tmp_path / "other", tiny_decoder(hidden_size=21))
    with pytest.raises(InputError, match=r"another shape at .*\[2, 24\], not \[2, 21\]"):
        read_source(folder, [other])


def test_an_adapter_of_a_deeper_base_is_refused(folder, tmp_path):
    deeper = save_random_adapter(tmp_path / "deeper", tiny_decoder(num_hidden_layers=4))
    with pytest.raises(InputError, match=r"has no place for .*layers\.3\."):
        read_source(folder, [deeper])


def test_an_adapter_whose_targets_the_model_lacks_is_refused(folder, adapter, tmp_path):
    broken = save_random_adapter(tmp_path / "broken")
    change_json(broken / "adapter_config.json", target_modules=["c_attn"])
    with pytest.raises(InputError, match=r"does not fit this model.*c_attn"):
        read_source(folder, [broken])


def test_a_truncated_adapter_is_refused(folder, tmp_path):
    broken = save_random_adapter(tmp_path / "broken")
    path = broken / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"cannot read the adapter"):
        read_source(folder, [broken])


def test_what_is_not_an_adapter_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"not a PEFT adapter: it has no adapter_config\.json"):
        read_source(folder, [tmp_path])
    with pytest.raises(InputError, match="no adapter 'nowhere': it is not a folder"):
        read_source(folder, ["nowhere"])


# Memory that is shared


def save_tuned(folder, base, seed=3, **options):
    """An adapter of any kind on `base`, each of its own numbers moved, saved as PEFT does; the unmerged logits."""
    tuner = options.pop("tuner", LoraConfig)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice on what is trained here
        torch.manual_seed(seed)
        adapted = get_peft_model(base, tuner(**options))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn_like(parameter)
        adapted.save_pretrained(folder)
        return logits(adapted.eval())


KINDS = {
    "every bias": {"bias": "all", "target_modules": ["v_proj"]},
    "biases of the targets": {"bias": "lora_only", "target_modules": ["v_proj"]},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    "single tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [2, 7]},
    "embeddings": {"target_modules": ["embed_tokens", "o_proj"]},
    "the head": {"target_modules": ["lm_head"]},
    "a parameter that is no module": {"target_modules": [], "target_parameters": ["q_proj.weight"]},
    "principal components": {"target_modules": ["up_proj"], "init_lora_weights": "pissa"},
    "magnitudes": {"target_modules": ["down_proj"], "use_dora": True},
    "scales": {"tuner": IA3Config, "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "norms": {"tuner": LNTuningConfig, "target_modules": ["input_layernorm"]},
    "rotations": {"tuner": OFTConfig, "target_modules": ["q_proj"], "r": 2, "oft_block_size": 0},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_variant_is_as_peft_has_it_and_leaves_its_base_in_memory_alone(tmp_path, kind, tied):
    def base():
        return tiny_decoder(attention_bias=True, tie_word_embeddings=tied)

    unmerged = save_tuned(tmp_path / "adapter", base(), **KINDS[kind])
    in_memory = load_model(save_decoder(tmp_path / "base", base()))
    before = {name: value.clone() for name, value in in_memory.module.state_dict().items()}
    variant = load_model(tmp_path / "base", [tmp_path / "adapter"], like=[in_memory])
    assert all(torch.equal(value, before[name]) for name, value in in_memory.module.state_dict().items())
    torch.testing.assert_close(logits(variant.module), unmerged, rtol=1e-4, atol=1e-5)
    assert float((logits(in_memory.module) - logits(variant.module)).abs().max()) > 1e-3


def test_a_model_whose_weights_were_changed_in_memory_is_found_out_by_the_next_load(folder, adapter):
    base = load_model(folder, name="base")
    base.module.model.layers[1].mlp.up_proj.weight.data[3, 4] += 1e-3
    with pytest.raises(CheckError, match=r"base is no longer what was loaded: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(folder, [adapter], like=[base])


# Settings that PEFT would leave out, and adapters that cannot be merged


@pytest.fixture
def broken(tmp_path):
    return save_random_adapter(tmp_path / "broken")


def test_keys_that_are_not_known_but_ask_for_nothing_are_let_through(folder, broken):
    change_json(broken / "adapter_config.json", enable_lora=None, merge_weights=False, newer=[], other="")
    assert read_source(folder, [broken]).checks[0].passed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_new_kind_of_lora": True}, r"knows no 'use_new_kind_of_lora' of LORA and would leave it out"),
        ({"lora_apha": 64}, r"knows no 'lora_apha' .*did you mean 'lora_alpha'"),
        ({"peft_type": ["LORA"]}, r"peft_type is \['LORA'\]; this version of PEFT knows .*LORA"),
        ({"rank_pattern": [[]]}, r"rank_pattern is \[\[\]\]; expected a mapping"),
        ({"alpha_pattern": 3.7}, r"alpha_pattern is 3\.7; expected a mapping"),
        ({"peft_type": "NEWER"}, r"peft_type is 'NEWER'; this version of PEFT knows .*LORA"),
        ({"layer_replication": [[0, 3], [1, 3]]}, "layer_replication repeats layers"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens acts only after certain tokens"),
        ({"target_modules": "(([a-z._0-9]+)+)+X"}, "takes too long"),
        ({"target_modules": "(q_proj"}, "is no regular expression"),
        ({"r": 1073741824}, "another shape|does not fit"),
        ({"megatron_config": 1}, "does not fit this model"),
        ({"bias": "no"}, "does not fit this model"),
        ({"lora_bias": True}, "finds in the file no .*lora_B.bias"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused_by_name(folder, broken, change, message):
    change_json(broken / "adapter_config.json", **change)
    with pytest.raises(InputError, match=message) as refusal:
        read_source(folder, [broken])
    assert "\n" not in str(refusal.value)


def test_a_bias_that_the_base_has_no_place_for_is_refused(folder, tmp_path):
    save_tuned(tmp_path / "adapter", tiny_decoder(), target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(InputError, match=r"cannot be merged into this model: .*bias"):
        read_source(folder, [tmp_path / "adapter"])


def test_prompt_tuning_is_named_as_what_it_is(folder, tmp_path):
    virtual = get_peft_model(tiny_decoder(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    virtual.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="PROMPT_TUNING adds tokens or activations of its own"):
        read_source(folder, [tmp_path / "adapter"])


def test_an_adapter_of_an_extended_base_loads_on_that_base_and_says_so_on_another(folder, tmp_path):
    def extended():
        model = tiny_decoder()
        model.resize_token_embeddings(44, mean_resizing=False)
        model.model.embed_tokens.weight.data[41:] = 0.5
        model.lm_head.weight.data[41:] = -0.5
        return model

    unmerged = save_tuned(tmp_path / "adapter", extended(), target_modules=["embed_tokens", "lm_head", "q_proj"])
    assert any("base_layer" in key for key in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    source = read_source(save_decoder(tmp_path / "extended", extended()), [tmp_path / "adapter"])
    torch.testing.assert_close(logits(source.model), unmerged, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"another shape at .*vocabulary extended before training"):
        read_source(folder, [tmp_path / "adapter"])


def test_frozen_embeddings_beside_an_adapter_do_not_round_the_bases_own(folder, tmp_path):
    save_tuned(tmp_path / "adapter", tiny_decoder(), target_modules=["embed_tokens"])
    rounded = {"base_model.model.model.embed_tokens.base_layer.weight"}
    change_weights(tmp_path / "adapter", lambda w: {k: v.half() if k in rounded else v for k, v in w.items()})
    expected = with_embedding_delta_by_hand(tmp_path / "adapter")
    source = read_source(folder, [tmp_path / "adapter"])
    torch.testing.assert_close(source.model.model.embed_tokens.weight, expected, rtol=0, atol=1e-7)


def with_embedding_delta_by_hand(adapter, scale=1.0):
    tensors = load_file(adapter / "adapter_model.safetensors")
    (a,) = (value for key, value in tensors.items() if "lora_embedding_A" in key)
    (b,) = (value for key, value in tensors.items() if "lora_embedding_B" in key)
    return tiny_decoder().model.embed_tokens.weight.data + scale * (b @ a).T


def test_a_pickled_adapter_is_refused_and_not_run(folder, broken, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (broken / "adapter_model.safetensors").unlink()
    torch.save(Bomb(), broken / "adapter_model.bin")
    with pytest.raises(InputError, match="cannot read the adapter"):
        read_source(folder, [broken])
    assert not (tmp_path / "ran").exists()
