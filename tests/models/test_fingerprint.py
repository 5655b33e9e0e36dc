"""What two models' fingerprints tell apart, and what they do not."""

from __future__ import annotations

import copy

import pytest
import torch

from circuitdiff.models import fingerprint as fingerprints
from circuitdiff.models.sources import read_source
from helpers.tiny_decoders import save_decoder


def fingerprint(module, tokenizer):
    return fingerprints.fingerprint(fingerprints.weight_digests(module), module.config, tokenizer)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    return read_source(save_decoder(tmp_path_factory.mktemp("model")))


@pytest.fixture
def module(read):
    return copy.deepcopy(read.model)


def test_it_is_the_same_with_any_number_of_threads_and_wherever_the_model_was(read, module):
    g = torch.Generator().manual_seed(0)
    for i in range(6):  # large enough to be added up in parts
        large = torch.nn.Parameter(torch.randn(1000, 1000, generator=g), requires_grad=False)
        module.get_submodule("model.layers")[0].register_parameter(f"large_{i}", large)
    threads, known = torch.get_num_threads(), set()
    module.config._name_or_path = "elsewhere"
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            known.add(fingerprint(module, read.tokenizer))
    finally:
        torch.set_num_threads(threads)
    module.config._name_or_path = "here"
    assert known == {fingerprint(module, read.tokenizer)}


def test_it_tells_weights_apart_that_only_change_places(read, module):
    before = fingerprint(module, read.tokenizer)
    weight = next(p for p in module.parameters() if p.dim() == 2)
    weight.data = weight.data.flip(0).clone()
    assert fingerprint(module, read.tokenizer) != before


def test_it_tells_configs_and_tokenizers_apart(read, module):
    before = fingerprint(module, read.tokenizer)
    module.config.rms_norm_eps = 0.1
    assert fingerprint(module, read.tokenizer) != before
    other = copy.deepcopy(read.tokenizer)
    other.add_tokens(["zzz"])
    assert fingerprint(read.model, other) != before == fingerprint(read.model, read.tokenizer)


def test_padding_a_batch_does_not_change_it(read):
    before = fingerprint(read.model, read.tokenizer)
    other = copy.deepcopy(read.tokenizer)
    other.backend_tokenizer.enable_padding(length=3)
    assert fingerprint(read.model, other) == before
