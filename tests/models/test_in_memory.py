"""A model of transformers that is in memory already is taken with its tokenizer, shared and left as it is."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from jaxtyping import config
from peft import LoraConfig, get_peft_model

import circuitdiff as cd
from circuitdiff.errors import InputError
from circuitdiff.models.sources import read_source
from helpers.tiny_decoders import save_decoder, save_random_adapter, tiny_decoder, tiny_tokenizer

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS).logits


def test_it_gives_the_same_numbers_as_the_folder_and_is_left_as_it_was(tmp_path):
    module = tiny_decoder().double().train()
    module.requires_grad_(True)
    expected, before = logits(tiny_decoder().double()), module.config.to_dict()
    model = cd.load_model(module, tokenizer=tiny_tokenizer())
    torch.testing.assert_close(model.module(input_ids=TOKENS).logits, expected, rtol=1e-12, atol=1e-12)
    assert (model.dtype, model.provenance["dtype"]) == (torch.float64, "float64")
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert (module.config.to_dict(), module.config._attn_implementation) == (before, "sdpa")
    theirs = {p.data_ptr() for p in module.parameters()}
    assert {p.data_ptr() for p in model.module.parameters()} == theirs
    folder = cd.load_model(save_decoder(tmp_path / "same", tiny_decoder().double()), dtype="float64")
    assert model.provenance["fingerprint"] == folder.provenance["fingerprint"]


def test_an_adapter_merged_into_it_changes_no_number_of_it(tmp_path):
    module, adapter = tiny_decoder(), save_random_adapter(tmp_path / "adapter")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    variant = cd.load_model(module, [adapter], tokenizer=tiny_tokenizer())
    by_file = read_source(save_decoder(tmp_path / "base"), [adapter])
    torch.testing.assert_close(logits(variant.module), logits(by_file.model), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def _hooked():
    module = tiny_decoder()
    module.model.layers[1].register_forward_hook(lambda *_: None)
    return module


def _integers():
    module = tiny_decoder()
    module.lm_head.weight = torch.nn.Parameter(torch.ones(41, 24, dtype=torch.int8), requires_grad=False)
    return module


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (tiny_decoder, {"tokenizer": None}, "comes without its tokenizer: give it as `tokenizer`"),
        (tiny_decoder, {"dtype": "float64"}, r"keeps its dtype, float32; got dtype 'float64'"),
        (_hooked, {}, r"has a hook at model\.layers\.1"),
        (_integers, {}, "is quantised"),
        (
            lambda: get_peft_model(tiny_decoder(), LoraConfig(target_modules=["q_proj"])).base_model.model,
            {},
            "adapters",
        ),
    ],
)
def test_what_would_change_it_unseen_is_refused(make, options, message):
    with pytest.raises(InputError, match=message):
        cd.load_model(make(), **({"tokenizer": tiny_tokenizer()} | options))


def test_what_is_no_model_of_transformers_says_what_to_give(monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as users run it
    adapted = get_peft_model(tiny_decoder(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InputError, match=r"got a PeftModel: .*merge_and_unload"):
        cd.load_model(adapted, tokenizer=tiny_tokenizer())


def test_a_checkpoint_without_a_tokenizer_takes_anothers(tmp_path):
    base, variant = save_decoder(tmp_path / "base"), tmp_path / "variant"
    tiny_decoder(seed=1).save_pretrained(variant)
    with pytest.raises(InputError, match=r"cannot read a tokenizer .*name another model's as `tokenizer`"):
        read_source(variant)
    for tokenizer in (base, str(base), tiny_tokenizer()):
        assert read_source(variant, tokenizer=tokenizer).tokenizer("w2 w0")["input_ids"] == [3, 1]


def test_code_of_a_models_folder_is_never_run_whatever_stdin_says(tmp_path):
    content = {
        "config.json": '{"model_type": "unheard", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.C"}}',
        "tokenizer_config.json": '{"tokenizer_class": "Unheard", "auto_map": {"AutoTokenizer": ["evil.C", "evil.C"]}}',
    }
    program = "import circuitdiff as cd\n"
    for file, text in content.items():
        folder = save_decoder(tmp_path / file)
        (folder / file).write_text(text)
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
        program += f"try:\n cd.load_model({str(folder)!r})\nexcept cd.InputError as e:\n print('refused')\n"
    run = subprocess.run([sys.executable, "-c", program], input="y\n" * 20, capture_output=True, text=True, timeout=300)
    assert not (tmp_path / "ran").exists()
    assert run.stdout.splitlines() == ["refused", "refused"], run.stderr
