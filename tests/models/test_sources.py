"""Models are read whole or refused in one line."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from huggingface_hub.errors import GatedRepoError

from circuitdiff.errors import InputError
from circuitdiff.models import family_registry
from circuitdiff.models.family_registry import Member
from circuitdiff.models.sources import read_source
from helpers.tiny_decoders import (
    SHAPE,
    change_json,
    change_weights,
    save_decoder,
    save_random_adapter,
    tiny_decoder,
    tiny_tokenizer,
)

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return save_random_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def copy(tmp_path):
    """A folder of one's own to damage."""
    return save_decoder(tmp_path / "copy")


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS).logits


def test_a_folder_is_read_with_the_logits_of_the_model_that_was_saved(folder):
    source = read_source(folder)
    assert torch.equal(logits(source.model), logits(tiny_decoder()))
    assert source.tokenizer("w2 w0")["input_ids"] == [3, 1]
    assert not source.model.training
    assert not any(p.requires_grad for p in source.model.parameters())
    assert source.name == folder.name
    assert source.checks == ()


def test_sharded_safetensors_are_read_whole(tmp_path):
    save_decoder(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(read_source(tmp_path / "shards").model), logits(tiny_decoder()))


def test_tied_weights_are_not_missing(tmp_path):
    tied = tiny_decoder(tie_word_embeddings=True)
    source = read_source(save_decoder(tmp_path / "tied", tied))
    assert torch.equal(logits(source.model), logits(tied))


def test_the_dtype_asked_for_is_the_dtype_of_the_weights(folder):
    assert {p.dtype for p in read_source(folder, dtype="bfloat16").model.parameters()} == {torch.bfloat16}


def test_reading_prints_nothing_and_leaves_the_verbosity(folder, capfd):
    before = tf.utils.logging.get_verbosity()
    read_source(folder)
    assert capfd.readouterr() == ("", "")
    assert tf.utils.logging.get_verbosity() == before
    assert tf.utils.logging.is_progress_bar_enabled()


# Sources that are none


def test_an_unknown_source_says_what_was_tried():
    with pytest.raises(InputError, match=r"'no/such-model'.*not a folder.*embedded model.*hub"):
        read_source("no/such-model")


def test_a_gated_model_says_where_to_accept_its_licence(monkeypatch):
    def refuse(*_, **__):
        raise OSError("You are trying to access a gated repo.") from GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(tf.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(InputError, match=r"licence.*hf auth login"):
        read_source("some/gated-model")


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        read_source(tmp_path)


def test_an_adapter_given_as_a_model_says_where_it_belongs(adapter):
    with pytest.raises(InputError, match="give it in `adapters`"):
        read_source(adapter)


def test_a_config_that_is_not_json_is_refused(copy):
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not JSON"):
        read_source(copy)


def test_a_config_whose_sizes_contradict_each_other_is_refused(copy):
    change_json(copy / "config.json", hidden_size=20)
    with pytest.raises(InputError, match=r"cannot read .*damaged"):
        read_source(copy)


# Models that are not causal decoders

_SMALL = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 14}


def _other_models():
    t5 = tf.T5Config(vocab_size=41, d_model=12, d_kv=6, d_ff=14, num_layers=2, num_heads=2, decoder_start_token_id=0)
    return {
        "T5": lambda: tf.T5ForConditionalGeneration(t5),
        "Bert": lambda: tf.BertForMaskedLM(tf.BertConfig(vocab_size=41, **_SMALL)),
        "Classification": lambda: tf.LlamaForSequenceClassification(tf.LlamaConfig(**SHAPE, pad_token_id=0)),
        "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(**_SMALL, image_size=8, patch_size=4)),
    }


@pytest.mark.parametrize("kind", _other_models())
def test_what_is_not_a_causal_decoder_is_refused(tmp_path, kind):
    save_decoder(tmp_path / "other", _other_models()[kind]())
    with pytest.raises(InputError, match=f"not a causal decoder but .*{kind}"):
        read_source(tmp_path / "other")


def test_an_encoder_that_passes_for_a_decoder_is_found_out_by_its_logits(tmp_path):
    encoder = tf.BertLMHeadModel(tf.BertConfig(vocab_size=41, is_decoder=True, **_SMALL))
    save_decoder(tmp_path / "bert", encoder)
    change_json(tmp_path / "bert" / "config.json", is_decoder=False)
    with pytest.raises(InputError, match="a later token changes the logits before it"):
        read_source(tmp_path / "bert")


# Checkpoints that are not whole


def test_missing_weights_are_refused(copy):
    change_weights(copy, lambda w: {k: v for k, v in w.items() if "layers.1.self_attn.q_proj" not in k})
    with pytest.raises(InputError, match=r"lacks weights.*layers\.1\.self_attn\.q_proj\.weight"):
        read_source(copy)


def test_weights_of_another_shape_are_refused(copy):
    change_weights(copy, lambda w: w | {"model.norm.weight": torch.ones(5)})
    with pytest.raises(InputError, match=r"another shape.*model\.norm\.weight \(\[5\], not \[24\]\)"):
        read_source(copy)


def test_weights_that_the_model_would_ignore_are_refused(copy):
    change_weights(copy, lambda w: w | {"model.layers.0.self_attn.q_proj.bias": torch.ones(30)})
    with pytest.raises(InputError, match=r"would ignore.*q_proj\.bias"):
        read_source(copy)


def test_weights_that_are_not_numbers_are_refused(copy):
    change_weights(copy, lambda w: w | {"model.norm.weight": torch.full((24,), torch.nan)})
    with pytest.raises(InputError, match="not finite"):
        read_source(copy)


@pytest.mark.parametrize("kept", [0, 5, 0.5])
def test_a_truncated_safetensors_file_is_refused(copy, kept):
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: int(kept * len(whole)) if kept == 0.5 else kept])
    with pytest.raises(InputError, match=r"cannot read .*damaged"):
        read_source(copy)


def test_a_folder_without_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"cannot read .*no file named"):
        read_source(copy)


def test_a_missing_tokenizer_is_refused(copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match=r"tokenizer.*put its tokenizer\.json beside config\.json"):
        read_source(copy)


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(tmp_path):
    save_decoder(tmp_path / "small", tiny_decoder(vocab_size=20))
    with pytest.raises(InputError, match="it has token 40, the model embeds 20"):
        read_source(tmp_path / "small")


@pytest.mark.parametrize("content", [b"", b"GGU", b"GGUF\x03\x00", b"GGUF" + bytes(range(200))])
def test_a_truncated_gguf_file_is_refused(tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.gguf.*(copy it again|damaged)"):
        read_source(tmp_path / "model.gguf")


# Families


def test_a_built_member_takes_embedded_and_given_adapters(monkeypatch, adapter, tmp_path):
    save_random_adapter(tmp_path / "own", seed=5)
    monkeypatch.setattr(family_registry, "_EMBEDDED", tmp_path)
    built = Member(lambda dtype: (tiny_decoder().to(dtype), tiny_tokenizer()), ("own",))
    monkeypatch.setattr("circuitdiff.models.family_registry.MEMBERS", {"planted": built})
    source = read_source("planted", [adapter], dtype="float64")
    assert source.name == f"planted+{adapter.name}"
    assert [record["name"] for record in source.provenance["adapters"]] == ["own", adapter.name]
    assert source.model.dtype == torch.float64


def test_a_planted_model_with_a_seed_is_another_planting():
    first, second, own = (read_source(f"planted-base{seed}").model.state_dict() for seed in ("", "@7", "@0"))
    assert not torch.equal(first["lm_head.weight"], second["lm_head.weight"])
    assert all(torch.equal(weight, own[name]) for name, weight in first.items())
    with pytest.raises(InputError, match="planted-base@x"):
        read_source("planted-base@x")


@pytest.mark.smollm2
def test_tracker_base_is_smollm2_with_its_adapter():
    source = read_source("tracker-base")
    assert source.model.config.num_hidden_layers == 30
    assert not hasattr(source.model.config, "quantization_config")
    assert [check.passed for check in source.checks] == [True, True, True]
    assert source.tokenizer.decode(source.tokenizer(" apple")["input_ids"]) == " apple"
