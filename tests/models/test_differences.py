"""What two models differ in beside their weights, in plain words."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from circuitdiff import model_differences
from circuitdiff.models import load_model
from circuitdiff.models.differences import settings_in_words, tokenizers_in_words
from circuitdiff.models.weight_changes import summed
from helpers.tiny_decoders import tiny_decoder, tiny_tokenizer


def two_more(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens(["<a>", "<b>"])


def many_more(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens([f"<{i}>" for i in range(8)])


def other_words(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Punctuation()  # pyright: ignore


def other_end(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = "w3"


def chat(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ messages }}"


def never_split(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<unk>", lstrip=True, special=True)]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: None, []),
        (two_more, ["2 tokens more: '<a>', '<b>'"]),
        (many_more, ["8 tokens more: '<0>', '<1>', '<2>', '<3>', '<4>' and 3 more"]),
        (other_words, ["the splitting into words differs"]),
        (chat, ["it has a chat template"]),
        (never_split, ["tokens that are never split are treated differently"]),
    ],
)
def test_a_tokenizer_that_differs_is_described(change, words):
    changed = tiny_tokenizer()
    change(changed)
    assert list(tokenizers_in_words(tiny_tokenizer(), changed)) == words


def test_the_base_has_what_the_variant_lacks():
    changed = tiny_tokenizer()
    two_more(changed)
    chat(changed)
    assert list(tokenizers_in_words(changed, tiny_tokenizer())) == [
        "2 tokens fewer: '<a>', '<b>'",
        "it has no chat template",
    ]
    other = tiny_tokenizer()
    other.chat_template = "{{ others }}"
    two_more(other)
    assert list(tokenizers_in_words(changed, other)) == ["the chat template differs"]


def test_special_tokens_and_moved_tokens_are_named():
    changed = tiny_tokenizer()
    other_end(changed)
    assert "eos token 'w3', not None" in list(tokenizers_in_words(tiny_tokenizer(), changed))
    rules = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    vocab = rules["model"]["vocab"]
    vocab["w3"], vocab["w7"] = vocab["w7"], vocab["w3"]
    rules["model"]["unk_token"] = "w0"
    swapped = PreTrainedTokenizerFast(
        tokenizer_object=type(tiny_tokenizer().backend_tokenizer).from_str(json.dumps(rules))
    )
    swapped.unk_token = "<unk>"
    assert list(tokenizers_in_words(tiny_tokenizer(), swapped)) == [
        "2 tokens with another number: 'w3' is 8, not 4, 'w7' is 4, not 8",
        "the splitting of words into tokens differs (unk_token)",
    ]


def test_settings_that_change_what_is_computed_are_named_one_by_one():
    base = LlamaConfig(hidden_size=48, num_attention_heads=4, head_dim=8)
    variant = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=8, rms_norm_eps=1e-4, use_cache=False)
    variant.rope_parameters = {**base.rope_parameters, "rope_theta": 5e5}  # pyright: ignore
    assert list(settings_in_words(base.to_dict(), variant.to_dict())) == [
        "hidden size 64, not 48",
        "rms norm eps 0.0001, not 1e-06",
        "rope parameters: rope theta 500000.0, not 10000.0",
    ]


def test_models_are_compared_in_all_of_it():
    tokenizer = tiny_tokenizer()
    chat(tokenizer)
    base = load_model(tiny_decoder(), tokenizer=tiny_tokenizer(), name="plain")
    variant = load_model(tiny_decoder(seed=1, rms_norm_eps=1e-4), tokenizer=tokenizer, name="chatty")
    found = model_differences(base, variant)
    assert (found.base, found.variant) == ("plain", "chatty")
    assert (found.settings, found.tokenizer) == (("rms norm eps 0.0001, not 1e-06",), ("it has a chat template",))
    assert found.whole == summed(None, "all", found.weights)
    assert found.whole.n_numbers == sum(p.numel() for p in base.module.parameters())
    assert not found.same_weights
    assert model_differences(base, base).same_weights
