"""Every setting and tensor of a GGUF file: taken over, harmless for a written reason, or refused by name.

transformers reads some settings of an architecture, takes its own defaults for the others, and drops tensors that it
has no place for. Here the config is made to say what the file says, whether or not transformers has read it.

Rotary positions become transformers' `rope_parameters`. Angles are position x freq_base^(-2i / rotated) for i = 0, 1,
..., then scaled in one of four ways, exactly as llama.cpp does it:

1. by factors in the file, one per angle (the tensor `rope_freqs.weight`): angle / factor;
2. by factors for short and for long prompts (the tensors `rope_factors_short.weight`, `rope_factors_long.weight`);
3. linear: every angle / factor;
4. yarn: small angles / factor, large ones as they are, a ramp between; sine and cosine x (1 + ln(factor) / 10).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from circuitdiff.models.gguf_file import GgufHeader, read_header
from circuitdiff.models.libraries import listed

# a setting of the architecture, and what transformers' configs call it
_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "block_count": ("num_hidden_layers",),
    "embedding_length": ("hidden_size",),
    "context_length": ("max_position_embeddings",),
    "vocab_size": ("vocab_size",),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual",),
    "expert_count": ("num_experts",),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
}
_REQUIRED = ("block_count", "embedding_length", "context_length", "attention.head_count")
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
_EPSILON_ATTRIBUTES = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
_OWN_FUNCTION = frozenset(
    {*_EPSILONS, "attention.value_length", "attention.scale"}
    | {"attention.sliding_window", "attention.sliding_window_pattern"}
)

# settings that change nothing at these values
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.temperature_scale": (0,),
    "embedding_scale": (0, 1),  # 0 is llama.cpp's "not set"
    "residual_scale": (0, 1),
    "logit_scale": (0, 1),
    "expert_shared_count": (0,),
    "expert_weights_scale": (0, 1),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "tensor_data_layout": ("Meta AI original pth",),  # the only layout there is since GGUF 2
}
_NEUTRAL_BESIDE: Mapping[str, tuple[Any, ...]] = {
    "general.type": ("model",),
    "split.count": (0, 1),  # of more, this file is but a part
}
_HARMLESS: Mapping[str, str] = {
    r"general\..*": "names, licence, origin, quantisation, sampling; the reader has used the alignment",
    r"split\.(no|tensors\.count)": "counts of the only file",
    r"(.*\.)?imatrix\..*": "how the quantisation was calibrated",
    r"tokenizer\..*": "accounted for where the tokenizer is read",
}
FACTORS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
ROPE_TENSORS = frozenset({FACTORS, SHORT, LONG})
ROPE_SETTINGS = frozenset(
    {
        *("rope.dimension_count", "rope.dimension_count_swa", "rope.freq_base", "rope.freq_base_swa"),
        *("rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor"),
        *("rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
        *("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_log_multiplier"),
        "rope.scaling.finetuned",  # harmless: llama.cpp only prints it
    }
)
_DEFAULT_BASE = 10_000.0  # llama.cpp's, where a file states none


def complete_config(config: PreTrainedConfig, path: Path) -> None:
    """Makes `config`, which transformers read from the GGUF file, say all that the file says.

    Raises: InputError that names the first setting or tensor which the model would not follow.
    """
    header = read_header(path)
    _refuse_unknown_settings(header)
    default = type(config)()  # a config of this kind, to see which attributes there are
    _set_attributes(header, config, default)
    _set_epsilon(header, config, default)
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    _check_head_sizes(header, config, default, d_head)
    _set_sliding_window(header, config, default)
    set_rope(header, config, d_head)
    config.tie_word_embeddings = "output.weight" not in header.tensors
    _check_saved_alike(header, config)
    _refuse_unread_tensors(header, config)


def _refuse_unknown_settings(header: GgufHeader) -> None:
    known = {*_ATTRIBUTES, *_NEUTRAL, *_OWN_FUNCTION, *ROPE_SETTINGS}
    for name, value in header.settings.items():
        if name not in known:
            header.refuse_setting(name, "a setting that is not supported")
        if isinstance(value, list) and name != "attention.sliding_window_pattern":
            header.refuse_setting(name, "a value for each layer, which is not supported")
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            header.refuse_setting(name, f"and only {' or '.join(map(repr, _NEUTRAL[name]))} is supported")
    for key, value in header.metadata.items():
        if key in _NEUTRAL_BESIDE and value not in _NEUTRAL_BESIDE[key]:
            header.refuse(f"{key} = {value!r}, and only {' or '.join(map(repr, _NEUTRAL_BESIDE[key]))} is supported")
        own = key.startswith(f"{header.architecture}.") or key in _NEUTRAL_BESIDE
        if not own and not any(re.fullmatch(pattern, key) for pattern in _HARMLESS):
            header.refuse(f"{key} = {value!r}, a setting that is not supported")


def _set_attributes(header: GgufHeader, config: PreTrainedConfig, default: PreTrainedConfig) -> None:
    for name in _REQUIRED:
        if name not in header.settings:
            header.refuse_setting(name, "which every file must state")
    n_heads = header.settings["attention.head_count"]
    # what a setting means where it is absent, and where the config has no name for it
    implied = {
        "context_length": header.settings["context_length"],  # models without a limit on positions
        "attention.head_count_kv": n_heads,
        "attention.key_length": header.settings["embedding_length"] // n_heads,
        "attn_logit_softcapping": 0.0,
        "final_logit_softcapping": 0.0,
        "expert_count": 0,
        "expert_used_count": 0,
    }
    for name, attributes in _ATTRIBUTES.items():
        # some kinds read a head's size without declaring it; were it ignored, the weights' shapes would not fit
        known = [a for a in attributes if hasattr(default, a) or (a == "head_dim" and hasattr(config, a))]
        attribute = known[0] if known else None
        value = header.settings.get(name)
        if attribute is None:
            if value is not None and value != implied.get(name):
                header.refuse_setting(name, f"but {type(config).__name__} has no place for it")
        elif value is not None:
            capped = name.endswith("softcapping")
            setattr(config, attribute, None if capped and value == 0 else value)
        elif name == "attention.key_length":
            setattr(config, attribute, implied[name])
        elif name in ("attention.head_count_kv", "expert_used_count"):
            # without it transformers leaves keys and queries in the file's order, or takes another model's number
            header.refuse_setting(name, "which transformers needs to read the weights")


def _set_epsilon(header: GgufHeader, config: PreTrainedConfig, default: PreTrainedConfig) -> None:
    values = {header.settings[name] for name in _EPSILONS if name in header.settings}
    attributes = [name for name in _EPSILON_ATTRIBUTES if hasattr(default, name)]
    if len(values) != 1 or len(attributes) != 1:
        header.refuse_setting(_EPSILONS[0], f"and {_EPSILONS[1]} {'differs' if values else 'is missing, too'}")
    setattr(config, attributes[0], values.pop())


def _check_head_sizes(header: GgufHeader, config: PreTrainedConfig, default: PreTrainedConfig, d_head: int) -> None:
    """Keys and values of one size, queries scaled by it (or, in llama.cpp's two exceptions, by the mean head's)."""
    if header.settings.get("attention.value_length", d_head) != d_head:
        header.refuse_setting("attention.value_length", f"another size than the keys' {d_head}")
    scalar = d_head
    if hasattr(default, "query_pre_attn_scalar"):
        if header.settings["block_count"] in (46, 62):  # no setting says it; llama.cpp knows these by their depth
            scalar = config.hidden_size // config.num_attention_heads
        config.query_pre_attn_scalar = scalar
    scale = header.settings.get("attention.scale", 0.0) or scalar**-0.5
    if abs(scale * scalar**0.5 - 1) > 1e-6:
        header.refuse_setting("attention.scale", f"and only {scalar**-0.5:.6g} is supported")


def _set_sliding_window(header: GgufHeader, config: PreTrainedConfig, default: PreTrainedConfig) -> None:
    window = header.settings.get("attention.sliding_window", 0)
    reaches_all = window == 0 or window >= header.settings["context_length"]
    pattern = header.settings.get("attention.sliding_window_pattern")
    if not hasattr(default, "sliding_window") or hasattr(default, "use_sliding_window"):
        if not reaches_all:
            header.refuse_setting("attention.sliding_window", f"but {type(config).__name__} attends to all positions")
        return
    if pattern is not None:
        config.layer_types = _layer_types(header, config, default, pattern)
    if window == 0 and "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        header.refuse_setting("attention.sliding_window", f"but {type(config).__name__} needs one")
    config.sliding_window = window or None


def _layer_types(
    header: GgufHeader, config: PreTrainedConfig, default: PreTrainedConfig, pattern: int | list[bool]
) -> list[str]:
    """Every `pattern`-th layer attends to all positions; or a list says which slide."""
    n_layers = config.num_hidden_layers
    slides = pattern if isinstance(pattern, list) else [(i + 1) % pattern != 0 for i in range(n_layers)]
    if not hasattr(default, "layer_types") or len(slides) != n_layers:
        header.refuse_setting("attention.sliding_window_pattern", f"which does not fit {type(config).__name__}")
    return ["sliding_attention" if slide else "full_attention" for slide in slides]


def _check_saved_alike(header: GgufHeader, config: PreTrainedConfig) -> None:
    """The config must come back from config.json as it is: some kinds rewrite or refuse what they do not know."""
    try:
        again = type(config).from_dict(config.to_dict()).to_dict()
    except (ValueError, KeyError) as error:
        header.refuse(f"settings that {type(config).__name__} does not allow ({str(error).strip().splitlines()[-1]})")
    if changed := [name for name, value in config.to_dict().items() if again.get(name) != value]:
        header.refuse(f"settings that {type(config).__name__} would change: {', '.join(changed)}")


def _refuse_unread_tensors(header: GgufHeader, config: PreTrainedConfig) -> None:
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=config.to_dict())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    read = set(get_gguf_hf_weights_map(model, processor))
    # experts' weights are read under their names without the ending
    unread = [name for name in header.tensors - ROPE_TENSORS if not {name, name.removesuffix(".weight")} & read]
    if unread:
        header.refuse(f"the tensor {listed(unread, most=1)}, for which {type(model).__name__} has no place")


def set_rope(header: GgufHeader, config: PreTrainedConfig, d_head: int) -> None:
    """Writes the file's rotary positions into `config.rope_parameters`.

    Raises: InputError if the file scales them in a way that transformers would not follow exactly.
    """
    stated = sorted({f"{header.architecture}.{key}" for key in ROPE_SETTINGS & set(header.settings)})
    stated += sorted(ROPE_TENSORS & header.tensors)
    if not config.rope_parameters:
        if stated:
            header.refuse(f"{stated[0]}, but {type(config).__name__} has no rotary positions")
        return
    rotated = header.settings.get("rope.dimension_count", d_head)
    scaling = _scaling(header, rotated)
    nested = set(config.nested_rope_parameter_keys(config.rope_parameters))
    base = header.settings.get("rope.freq_base", _DEFAULT_BASE)
    local_base = header.settings.get("rope.freq_base_swa", _DEFAULT_BASE if nested else base)
    if header.settings.get("rope.dimension_count_swa", rotated) != rotated:
        header.refuse_setting("rope.dimension_count_swa", "another share of the head than in the other layers")
    if nested:
        if rotated != d_head:
            header.refuse_setting(
                "rope.dimension_count", f"but {type(config).__name__} rotates heads of {d_head} whole"
            )
        if nested != {"full_attention", "sliding_attention"} or "short_factor" in scaling:
            header.refuse(f"rotary positions ({', '.join(stated)}) that differ by layer in an unknown way")
        # llama.cpp scales the full layers only
        plain = {"rope_type": "default"}
        config.rope_parameters = {
            "full_attention": plain | {"rope_theta": base} | scaling,
            "sliding_attention": plain | {"rope_theta": local_base},
        }
        return
    if local_base != base:
        header.refuse_setting("rope.freq_base_swa", f"but {type(config).__name__} has one base for all layers")
    partial = _partial(header, config, rotated, d_head)
    config.rope_parameters = {"rope_type": "default", "rope_theta": base} | partial | scaling
    if scaling and hasattr(config, "original_max_position_embeddings"):  # goes before rope_parameters' own
        config.original_max_position_embeddings = scaling.get(
            "original_max_position_embeddings", config.max_position_embeddings
        )


def _partial(header: GgufHeader, config: PreTrainedConfig, rotated: int, d_head: int) -> dict[str, float]:
    """What says that only the first `rotated` of a head's dimensions turn, if the architecture knows that."""
    known = "partial_rotary_factor" in (config.rope_parameters or {})
    share = rotated / d_head
    if (rotated != d_head and not known) or int(d_head * share) != rotated:
        header.refuse_setting("rope.dimension_count", f"but {type(config).__name__} rotates heads of {d_head} whole")
    return {"partial_rotary_factor": share} if known else {}


def _scaling(header: GgufHeader, rotated: int) -> dict[str, Any]:
    """What is added to the plain `rope_parameters`."""
    says = header.settings.get
    kind = says("rope.scaling.type", "linear")  # llama.cpp's default
    factor = says("rope.scaling.factor", says("rope.scale_linear", 0.0)) or 1.0
    attention = says("rope.scaling.attn_factor", 1.0)
    context = says("rope.scaling.original_context_length", header.settings["context_length"])
    if kind not in ("none", "linear", "yarn", "longrope"):
        header.refuse_setting("rope.scaling.type", "which is not one of none, linear, yarn, longrope")
    unscaled = kind == "none" or factor == 1.0
    if tensors := sorted(ROPE_TENSORS & header.tensors):
        if kind == "yarn" or not unscaled:
            beside = f"{header.architecture}.rope.scaling.*"
            header.refuse(f"the tensor {tensors[0]} beside {beside}, which is not supported")
        return _by_factors(header, tensors, rotated, attention, context)
    if kind == "longrope":
        header.refuse_setting("rope.scaling.type", f"but not the tensors {SHORT} and {LONG}")
    if kind == "yarn" and not unscaled:
        return _yarn(header, factor, attention, context)
    if attention != 1.0:
        header.refuse_setting("rope.scaling.attn_factor", "which is supported with yarn and longrope only")
    return {} if unscaled else {"rope_type": "linear", "factor": factor}


def _by_factors(header: GgufHeader, tensors: list[str], rotated: int, attention: float, context: int) -> dict[str, Any]:
    """transformers' longrope divides each angle by its factor; with both lists the same it does so at any length."""
    if tensors == [FACTORS] and attention == 1.0:
        short = long = header.values(FACTORS)
    elif tensors == sorted((SHORT, LONG)):
        short, long = header.values(SHORT), header.values(LONG)
    else:
        named = ", ".join(tensors)
        header.refuse(f"the tensors {named} with rope.scaling.attn_factor {attention:g}, an unknown scaling")
    if {len(short), len(long)} != {rotated // 2}:
        header.refuse(f"{len(short)} and {len(long)} factors in {', '.join(tensors)}, not {rotated // 2}")
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "factor": max(1.0, header.settings["context_length"] / context),  # stated, not used: attention_factor is given
        "attention_factor": float(attention),
        "original_max_position_embeddings": context,
    }


def _yarn(header: GgufHeader, factor: float, attention: float, context: int) -> dict[str, Any]:
    says, magnitude = header.settings.get, 1 + 0.1 * math.log(factor)
    if factor < 1:
        header.refuse_setting("rope.scaling.factor", "but yarn's is at least 1")
    if says("rope.scaling.yarn_ext_factor", 1.0) not in (1.0, -1.0):  # -1 stands for the default, 1
        header.refuse_setting("rope.scaling.yarn_ext_factor", "and only 1 is supported")
    if says("rope.scaling.yarn_log_multiplier", 0.0) != 0:
        header.refuse_setting("rope.scaling.yarn_log_multiplier", "and only 0 is supported")
    # the converter writes the whole magnitude here, llama.cpp takes the default's whatever is written
    if not math.isclose(says("rope.scaling.yarn_attn_factor", magnitude), magnitude, rel_tol=1e-6):
        only = f"and only yarn's default, {magnitude:.6g}, is supported"
        header.refuse_setting("rope.scaling.yarn_attn_factor", only)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "attention_factor": attention * magnitude,
        "beta_fast": says("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": says("rope.scaling.yarn_beta_slow", 1.0),
        "original_max_position_embeddings": context,
    }
