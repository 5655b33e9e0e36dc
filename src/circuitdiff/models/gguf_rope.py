"""The rotary positions of a GGUF file, as transformers' `rope_parameters`.

Angles are position x freq_base^(-2i / rotated) for i = 0, 1, ..., then scaled in one of four ways, exactly as llama.cpp
does it:

1. by factors in the file, one per angle (the tensor `rope_freqs.weight`): angle / factor;
2. by factors for short and for long prompts (the tensors `rope_factors_short.weight`, `rope_factors_long.weight`);
3. linear: every angle / factor;
4. yarn: small angles / factor, large ones as they are, a ramp between; sine and cosine x (1 + ln(factor) / 10).
"""

from __future__ import annotations

import math
from typing import Any

from transformers import PreTrainedConfig

from circuitdiff.models.gguf_header import GgufHeader

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
            header.refuse(
                f"the tensor {tensors[0]} beside {header.architecture}.rope.scaling.*, which is not supported"
            )
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
        header.refuse(
            f"the tensors {', '.join(tensors)} with rope.scaling.attn_factor {attention:g}, an unknown scaling"
        )
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
        header.refuse_setting(
            "rope.scaling.yarn_attn_factor", f"and only yarn's default, {magnitude:.6g}, is supported"
        )
    return {
        "rope_type": "yarn",
        "factor": factor,
        "attention_factor": attention * magnitude,
        "beta_fast": says("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": says("rope.scaling.yarn_beta_slow", 1.0),
        "original_max_position_embeddings": context,
    }
