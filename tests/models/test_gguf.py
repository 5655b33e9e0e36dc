"""Whatever a GGUF file says is followed or refused by name; the oracles are transformers models in memory."""

from __future__ import annotations

import math

import pytest
import torch

from circuitdiff.errors import InputError
from circuitdiff.models.sources import read_outline, read_source
from helpers.gguf_files import (
    BYTE_LEVEL,
    CONTROL,
    D_HEAD,
    D_VOCAB,
    MERGES,
    NORMAL,
    byte_level,
    random_model,
    sentencepiece,
    settings_of,
    write_gguf,
)

CONTEXT, EPS = 64, 2**-10
TOKENS = torch.randint(3, D_VOCAB, (2, 72), generator=torch.Generator().manual_seed(1))
SHORT, LONG = TOKENS[:, :40], TOKENS  # within and beyond the context
FACTORS = [1.0, 1.5, 3.0, 8.0]


@torch.no_grad()
def logits(model, tokens=SHORT):
    return model(input_ids=tokens).logits


def rotates(base=10_000.0, **more):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base} | more}


@pytest.fixture(scope="module")
def llama():
    return random_model("Llama", rms_norm_eps=EPS)


@pytest.fixture
def write(tmp_path, llama):
    """Writes the tiny decoder with more settings and tensors."""

    def write_with(settings=None, **options):
        return write_gguf(
            tmp_path / "model.gguf", llama, "llama", settings_of(llama) | (settings or {}), permute=True, **options
        )

    return write_with


HEADS_OF_10 = {"attention.key_length": 10, "attention.value_length": 10}
LOCAL = HEADS_OF_10 | {"attention.sliding_window": 5}
CAPPED = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
LOCAL_CONFIG = {"head_dim": 10, "query_pre_attn_scalar": 10, "sliding_window": 5, "tie_word_embeddings": True}
NO_PREFIX = sentencepiece(add_space_prefix=False)
RMS, BASE = {"rms_norm_eps": EPS}, {"rope.freq_base": 5e3}
KINDS = {  # architecture: transformers' name, the file's settings, the config's, how the file is written
    "llama": ("Llama", BASE | {"rope.dimension_count": 8}, RMS | rotates(5e3), {"permute": True}),
    "qwen2": ("Qwen2", {}, RMS, {"tokenizer": byte_level("qwen2")}),
    "qwen3": ("Qwen3", BASE | HEADS_OF_10, RMS | {"head_dim": 10} | rotates(5e3), {}),
    "gemma2": ("Gemma2", LOCAL | CAPPED, RMS | LOCAL_CONFIG | CAPPED, {"shift": 1, "tokenizer": NO_PREFIX}),
    "gemma3": (
        "Gemma3",
        LOCAL
        | {"attention.sliding_window_pattern": 2, "rope.freq_base": 7e3, "rope.freq_base_swa": 900.0}
        | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        RMS
        | LOCAL_CONFIG
        | {"layer_types": ["sliding_attention", "full_attention"]}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 7e3},
                "sliding_attention": {"rope_type": "default", "rope_theta": 900.0},
            }
        },
        {"shift": 1, "tokenizer": NO_PREFIX},
    ),
    "phi3": (
        "Phi3",
        {"rope.dimension_count": 6, "attention.sliding_window": 7, "rope.scaling.original_context_length": CONTEXT},
        RMS | {"sliding_window": 7} | rotates(partial_rotary_factor=0.75),
        {"tokenizer": sentencepiece()},
    ),
    "starcoder2": ("Starcoder2", BASE, {"norm_epsilon": EPS} | rotates(5e3), {"tokenizer": byte_level("starcoder")}),
    "stablelm": (
        "StableLm",
        BASE | {"rope.dimension_count": 4, "use_parallel_residual": False},
        {"layer_norm_eps": EPS, "use_qkv_bias": True} | rotates(5e3, partial_rotary_factor=0.5),
        {},
    ),
    "nemotron": (
        "Nemotron",
        {"rope.dimension_count": 6},
        {"norm_eps": EPS} | rotates(partial_rotary_factor=0.75),
        {"shift": 1},
    ),
}


@pytest.mark.parametrize("architecture", KINDS)
def test_a_file_has_the_logits_of_the_model_that_it_was_written_from(tmp_path, architecture):
    kind, settings, config, options = KINDS[architecture]
    model = random_model(kind, **config)
    epsilon = "layer_norm_rms_epsilon" if "rms_norm_eps" in config else "layer_norm_epsilon"
    path = write_gguf(tmp_path / "m.gguf", model, architecture, settings_of(model, epsilon) | settings, **options)
    assert torch.equal(logits(read_source(path, dtype="float64").model), logits(model))


def test_experts_are_read_with_the_logits_of_the_model(tmp_path):
    experts = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
    model = random_model("Qwen3Moe", head_dim=10, **RMS, **experts).float()  # not implemented in double precision
    settings = settings_of(model) | HEADS_OF_10 | {"expert_count": 5, "expert_used_count": 2}
    path = write_gguf(tmp_path / "m.gguf", model, "qwen3moe", settings | {"expert_feed_forward_length": 16})
    assert torch.equal(logits(read_source(path).model), logits(model))


def with_rotary(frequencies, magnitude=1.0, kind="Llama", **config):
    """The tiny decoder with these inverse frequencies, and sines and cosines times `magnitude`."""
    model = random_model(kind, rms_norm_eps=EPS, **config)
    rotary = model.model.rotary_emb
    rotary.inv_freq.copy_(torch.tensor(frequencies))
    rotary.attention_scaling = magnitude
    return model


def frequencies(base=10_000.0, rotated=D_HEAD):
    return [base ** (-2 * i / rotated) for i in range(rotated // 2)]


def assert_same(path, model, tokens):
    """Rotary angles are in float32, whose rounding grows with the layers; what was dropped changed logits by 0.1."""
    actual, expected = logits(read_source(path, dtype="float64").model, tokens), logits(model, tokens)
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("tokens", [SHORT, LONG], ids=["short", "long"])
def test_rotary_factors_divide_the_frequencies_at_any_length(write, tokens):
    path = write({"rope.freq_base": 5e3}, tensors={"rope_freqs.weight": FACTORS})
    assert_same(path, with_rotary([f / x for f, x in zip(frequencies(5e3), FACTORS, strict=True)]), tokens)


@pytest.mark.parametrize(
    "settings", [{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope.scale_linear": 4.0}]
)
def test_linear_scaling_divides_all_frequencies(write, settings):
    assert_same(write(settings), with_rotary([f / 4 for f in frequencies()]), LONG)


def test_scaling_of_type_none_scales_nothing(write, llama):
    assert_same(write({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}), llama, SHORT)


def yarn_by_hand(factor, context, fast, slow):
    """A frequency turns context x f / (2 pi) times within the context: often = kept, rarely = divided."""

    def dimension(turns):
        return D_HEAD * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(10_000.0))

    low, high = max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), D_HEAD - 1)
    result = []
    for i, f in enumerate(frequencies()):
        kept = 1 - min(max((i - low) / (high - low), 0), 1)
        result.append(f * kept + f / factor * (1 - kept))
    return result


@pytest.mark.parametrize(("attention", "fast", "slow"), [(1.0, 32.0, 1.0), (0.75, 8.0, 0.25)])
def test_yarn_divides_low_frequencies_and_scales_sines_and_cosines(write, attention, fast, slow):
    settings = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
    settings |= {"rope.scaling.yarn_beta_fast": fast, "rope.scaling.yarn_beta_slow": slow}
    path = write(settings | {"rope.scaling.attn_factor": attention})
    magnitude = attention * (1 + 0.1 * math.log(4))
    assert_same(path, with_rotary(yarn_by_hand(4, 16, fast, slow), magnitude), LONG)


@pytest.mark.parametrize(("length", "factors"), [(16, [1.0, 1.25, 2.0]), (17, [2.0, 4.0, 9.0])])
def test_long_and_short_factors_apply_by_the_prompts_length(tmp_path, length, factors):
    config = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75}}
    model = with_rotary([f / x for f, x in zip(frequencies(rotated=6), factors, strict=True)], 1.25, "Phi3", **config)
    settings = {"rope.dimension_count": 6, "rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": 1.25}
    tensors = {"rope_factors_short.weight": [1.0, 1.25, 2.0], "rope_factors_long.weight": [2.0, 4.0, 9.0]}
    path = write_gguf(tmp_path / "m.gguf", model, "phi3", settings_of(model) | settings, tensors=tensors)
    assert_same(path, model, TOKENS[:, :length])


@pytest.mark.parametrize("settings", [{}, {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}])
def test_a_file_saved_as_a_folder_keeps_its_logits_and_tokens(write, tmp_path, settings):
    path = write(settings, tensors={} if settings else {"rope_freqs.weight": FACTORS}, tokenizer=byte_level("smollm"))
    source = read_source(path, dtype="float64")
    source.model.save_pretrained(tmp_path / "copy")
    source.tokenizer.save_pretrained(tmp_path / "copy")
    copy = read_source(tmp_path / "copy", dtype="float64")
    assert torch.equal(logits(copy.model, LONG), logits(source.model, LONG))
    assert copy.tokenizer("a  1 12")["input_ids"] == source.tokenizer("a  1 12")["input_ids"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"attention.frobnication": 3}, r"llama\.attention\.frobnication = 3"),
        ({"rope.scaling.type": "dynamic"}, r"llama\.rope\.scaling\.type = 'dynamic'"),
        ({"rope.scaling.type": "longrope"}, r"llama\.rope\.scaling\.type = 'longrope', but not the tensors"),
        ({"rope.scaling.alpha": 2.0}, r"llama\.rope\.scaling\.alpha"),
        ({"rope.scaling.attn_factor": 1.5}, r"llama\.rope\.scaling\.attn_factor = 1\.5"),
        ({"rope.freq_base_swa": 5e3}, r"llama\.rope\.freq_base_swa = 5000"),
        ({"rope.dimension_count": 4}, r"llama\.rope\.dimension_count = 4"),
        ({"attention.scale": 0.5}, r"llama\.attention\.scale = 0\.5"),
        ({"attention.value_length": 6}, r"llama\.attention\.value_length = 6"),
        ({"attention.sliding_window": 7}, r"llama\.attention\.sliding_window = 7"),
        ({"attention.key_length": [8, 6]}, r"llama\.attention\.key_length = \[8, 6\], a value for each layer"),
        ({"attention.causal": False}, r"llama\.attention\.causal = False"),
        ({"attn_logit_softcapping": 20.0}, r"llama\.attn_logit_softcapping = 20"),
        ({"logit_scale": 0.25}, r"llama\.logit_scale = 0\.25"),
        ({"expert_count": 4}, r"llama\.expert_count = 4"),
        ({"attention.layer_norm_epsilon": 0.25}, r"llama\.attention\.layer_norm_rms_epsilon"),
    ],
)
def test_a_setting_that_the_model_would_not_follow_is_refused_by_name(write, settings, says):
    with pytest.raises(InputError, match=says + r".*give the original folder"):
        read_source(write(settings))


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}


@pytest.mark.parametrize(
    "more",
    [
        {"rope.scaling.yarn_ext_factor": 0.5},
        {"rope.scaling.yarn_log_multiplier": 0.1},
        {"rope.scaling.yarn_attn_factor": 1.5},
        {"rope.scaling.factor": 0.5},
    ],
)
def test_a_yarn_that_transformers_would_only_approximate_is_refused(write, more):
    with pytest.raises(InputError, match=f"llama.{next(iter(more))} = "):
        read_source(write(YARN | more))


@pytest.mark.parametrize("missing", ["context_length", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"])
def test_a_setting_whose_default_would_be_another_models_is_refused_when_it_is_missing(tmp_path, llama, missing):
    settings = {key: value for key, value in settings_of(llama).items() if key != missing}
    with pytest.raises(InputError, match=f"llama.{missing} = 'nothing'"):
        read_source(write_gguf(tmp_path / "m.gguf", llama, "llama", settings, permute=True))


@pytest.mark.parametrize(
    ("tensors", "settings", "says"),
    [
        ({"blk.1.attn_q.bias": [0.0] * 24}, {}, r"the tensor blk\.1\.attn_q\.bias, for which"),
        ({"blk.0.attn_sinks": [0.0] * 3}, {}, r"the tensor blk\.0\.attn_sinks"),
        ({"rope_freqs.weight": FACTORS}, YARN, r"rope_freqs\.weight beside llama\.rope\.scaling"),
        ({"rope_freqs.weight": FACTORS[:3]}, {}, r"3 and 3 factors in rope_freqs\.weight, not 4"),
        ({"rope_factors_long.weight": FACTORS}, {}, r"the tensors rope_factors_long\.weight"),
    ],
)
def test_a_tensor_that_the_model_has_no_place_for_is_refused_by_name(write, tensors, settings, says):
    path = write(settings, tensors=tensors)
    with pytest.raises(InputError, match=says):
        read_source(path)
    with pytest.raises(InputError, match=says):
        read_outline(path)


def test_a_scaling_that_the_config_would_rewrite_is_refused(tmp_path):
    model = random_model("Phi3", rms_norm_eps=EPS)
    path = write_gguf(tmp_path / "m.gguf", model, "phi3", settings_of(model) | YARN)
    with pytest.raises(InputError, match=r"Phi3Config"):
        read_source(path)


ORDINARY = {
    "general.name": "Tiny",
    "general.type": "model",
    "general.file_type": 15,
    "general.quantization_version": 2,
    "general.alignment": 32,
    "general.base_model.0.name": "Tinier",
    "general.tags": ["text-generation"],
    "general.sampling.temp": 0.6,
    "quantize.imatrix.file": "calibration.dat",
    "quantize.imatrix.entries_count": 7,
    "split.no": 0,
    "split.count": 1,
    "split.tensors.count": 21,
    "tokenizer.chat_template": "{{ messages }}",
    "tokenizer.chat_template.tool_use": "{{ tools }}",
    "tokenizer.chat_templates": ["tool_use"],
    "tokenizer.ggml.eot_token_id": 2,
    "tokenizer.ggml.fim_pre_token_id": 1,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.add_eos_token": False,
    "tokenizer.ggml.add_space_prefix": False,
    "tokenizer.ggml.add_sep_token": False,
}
ORDINARY_SETTINGS = {
    "vocab_size": D_VOCAB,
    "rope.dimension_count": D_HEAD,
    "attention.key_length": D_HEAD,
    "attention.value_length": D_HEAD,
    "rope.freq_base": 10_000.0,
    "rope.scaling.finetuned": True,
    "rope.scaling.original_context_length": 16,
    "attention.causal": True,
    "attention.scale": D_HEAD**-0.5,
    "attention.sliding_window": CONTEXT,
    "expert_count": 0,
    "expert_used_count": 0,
    "tensor_data_layout": "Meta AI original pth",
}


def test_nothing_of_an_ordinary_file_is_refused(write, llama):
    source = read_source(write(ORDINARY_SETTINGS, metadata=ORDINARY), dtype="float64")
    assert torch.equal(logits(source.model), logits(llama))


@pytest.mark.parametrize(
    ("key", "value"),
    [("general.type", "adapter"), ("split.count", 3), ("adapter.lora.alpha", 8.0), ("clip.projector_type", "mlp")],
)
def test_a_file_that_is_not_one_whole_model_is_refused(write, key, value):
    with pytest.raises(InputError, match=rf"{key} = {value!r}"):
        read_source(write(metadata={key: value}))


def pieces(path, text):
    tokenizer = read_source(path).tokenizer
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["a", "\u0120", "\u01201", "2"]),  # " 12" is one piece: the first merge is that of the space
        ("smollm", ["a", "\u0120\u0120", "1", "2"]),  # each digit is a piece
        ("qwen2", ["a", "\u0120", "\u0120", "1", "2"]),
        ("llama-bpe", ["<s>", "a", "\u0120", "\u0120", "12"]),
    ],
)
def test_text_is_split_as_the_file_says(write, pre, expected):
    actual = pieces(write(tokenizer=byte_level(pre)), "a  12")
    assert actual == expected


def test_pieces_are_looked_up_whole_where_llama_cpp_does(write):
    assert pieces(write(tokenizer=byte_level("gpt-2")), "abc") == ["ab", "c"]
    assert pieces(write(tokenizer=byte_level("llama-bpe")), "abc") == ["<s>", "abc"]


@pytest.mark.parametrize(("more", "expected"), [({}, ["<s>", "\u2581a"]), ({"add_space_prefix": False}, ["<s>", "a"])])
def test_a_text_gets_a_space_in_front_where_the_file_says_so(write, more, expected):
    assert pieces(write(tokenizer=sentencepiece(**more)), "a") == expected


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, True), (False, False)])
def test_a_text_begins_and_ends_as_the_file_says(write, bos, eos):
    expected = ["<s>"] * bos + ["a"] + ["</s>"] * eos
    assert pieces(write(tokenizer=byte_level(add_bos_token=bos, add_eos_token=eos)), "a") == expected


def test_no_token_is_added_to_the_files(write):
    tokenizer = read_source(write()).tokenizer
    assert sorted(tokenizer.get_vocab().values()) == list(range(D_VOCAB))
    assert tokenizer("</s>")["input_ids"] == [2]


UNSPELLABLE = {
    "tokens": [*BYTE_LEVEL[:-1], "<\uff5cx\uff5c>"],  # its last token, of a merge, gives way
    "merges": MERGES[:-1],
    "token_type": [NORMAL] * (D_VOCAB - 1) + [CONTROL],
}


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (byte_level("frobnicated"), r"tokenizer\.ggml\.pre = 'frobnicated'"),
        (byte_level("default"), r"tokenizer\.ggml\.pre = 'default'"),
        (byte_level(add_space_prefix=True), r"tokenizer\.ggml\.add_space_prefix = True"),
        (byte_level(frobnicate=True), r"tokenizer\.ggml\.frobnicate = True"),
        (sentencepiece(remove_extra_whitespaces=True), r"tokenizer\.ggml\.remove_extra_whitespaces = True"),
        (sentencepiece(pre="llama-bpe"), r"tokenizer\.ggml\.pre = 'llama-bpe'"),
        (byte_level() | {"tokens": ["a", *BYTE_LEVEL[1:]]}, r"44 tokens, some of which are spelled alike"),
        (byte_level() | UNSPELLABLE, r"the token '<\uff5cx\uff5c>'"),
    ],
)
def test_a_tokenizer_that_would_cut_text_otherwise_is_refused_by_name(write, tokenizer, says):
    with pytest.raises(InputError, match=says):
        read_source(write(tokenizer=tokenizer))
