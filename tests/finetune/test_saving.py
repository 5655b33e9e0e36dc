"""What is stored is what was measured, whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from circuitdiff.errors import InputError
from circuitdiff.finetune.loop import (
    answer_logits,
    finetune,
)
from circuitdiff.finetune.saving import save_adapter, writing
from circuitdiff.models.sources import read_source
from helpers.tiny_decoders import save_decoder
from helpers.training import LORA, TRAINING, examples, lora_model, trained_values


@pytest.mark.parametrize("stored_as", ["float16", "bfloat16"])
def test_the_stored_adapter_gives_the_logits_that_were_measured(tmp_path, stored_as):
    model, data = lora_model(), examples()
    finetune(model, data, data, replace(TRAINING, stored_as=stored_as))
    measured = answer_logits(model, data).detach()
    save_adapter(model, tmp_path / "adapter", "tiny", stored_as)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, stored_as)}
    read = read_source(save_decoder(tmp_path / "base"), [tmp_path / "adapter"])
    torch.testing.assert_close(answer_logits(read.model, data), measured, rtol=1e-5, atol=1e-5)
    for name, value in trained_values(model).items():
        assert torch.equal(stored[name.replace(".default", "")].float(), value)


def test_the_same_adapter_is_stored_as_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_adapter(lora_model(), tmp_path / name, "tiny", "float16")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(LORA.targets)  # a set in peft: its order changes from run to run


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def fill():
        with writing(target) as partial:
            partial.write_text("half of the ne")
            Path("/dev/full").write_text("x")  # the kernel's own "no space left on device"

    with pytest.raises(InputError, match=r"cannot write .*file: .*No space left on device; free some space.*continues"):
        fill()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
