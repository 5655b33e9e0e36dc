"""What a model's config.json says, held against what transformers makes of it.

transformers keeps keys that it does not know and fills up what is missing: a config with one misspelt key runs as
another model. So what is left to defaults is said, and a key that is nearly one of the architecture's is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedConfig

from circuitdiff.config.reading import read_json
from circuitdiff.errors import InputError

CONFIG = "config.json"
_NEARLY = 0.85  # how alike a misspelt key and the right one are, as difflib measures it
_OF_ROTARY = ("rope_theta", "rope_scaling", "rotary_pct", "rotary_emb_base", "partial_rotary_factor")
_LEGACY = {"torch_dtype": "dtype", **dict.fromkeys(_OF_ROTARY, "rope_parameters")}
_ROTARY = (  # keys of rotary positions, whatever their type
    *("rope_theta", "rope_type", "factor", "original_max_position_embeddings", "attention_factor", "truncate"),
    *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "short_factor", "long_factor"),
    *("low_freq_factor", "high_freq_factor", "partial_rotary_factor", "mrope_section"),
)
_NUMBERS_PER_BYTE = 2  # of weights in 4 bits


def written_config(source: str) -> dict[str, Any] | None:
    """The content of config.json in a folder, or of a hub id in the cache; None if there is no such file here."""
    path = Path(source) / CONFIG
    place = path if path.is_file() else cached_config(source)
    return place and read_json(place)


def cached_config(hub_id: str) -> Path | None:
    """The config.json of a hub id in the hub's cache; None if it is not there, or no hub id."""
    try:
        cached = try_to_load_from_cache(hub_id, CONFIG)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def left_to_defaults(config: PreTrainedConfig, written: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture's own settings that config.json does not have, with the values that they get.

    Raises: InputError naming a key that is nearly one of these.
    """
    config, written = _innermost(config, written)
    given = {_LEGACY.get(key, config.attribute_map.get(key, key)) for key in written}
    common = {field.name for field in fields(PreTrainedConfig)}
    own = [field.name for field in fields(type(config))] if is_dataclass(config) else []
    missing = {name: getattr(config, name, None) for name in own if name not in given and name not in common}
    absent = {name: repr(value) for name, value in missing.items()}
    absent |= {older: absent[name] for older, name in _LEGACY.items() if name in absent}
    for key in written:
        if key not in own and key not in _LEGACY and key not in config.attribute_map:
            _refuse_if_nearly(key, absent, f"{CONFIG} of {config.model_type}")
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(rotary := written.get(key), dict):
            absent = {name: "its default" for name in _ROTARY if name not in rotary}
            for name in rotary:
                if name not in _ROTARY:
                    _refuse_if_nearly(name, absent, f"{CONFIG}, {key}")
    return missing


def _innermost(config: PreTrainedConfig, written: Mapping[str, Any]) -> tuple[PreTrainedConfig, Mapping[str, Any]]:
    """The text model's part, where a config has parts."""
    text = config.get_text_config()
    for key, part in written.items():
        if isinstance(part, dict) and getattr(config, key, None) is text:
            return text, part
    return config, written


def _refuse_if_nearly(key: str, missing: Mapping[str, str], where: str) -> None:
    if near := get_close_matches(key, missing, n=1, cutoff=_NEARLY):
        raise InputError(
            f"{where} has {key!r}, which is not known, and no {near[0]!r}, which would be {missing[near[0]]}: rename "
            f"the key, or delete it if the default is meant"
        )


def check_size(folder: Path, config: PreTrainedConfig) -> None:
    """A config that describes far more numbers than the files hold would only fill the memory.

    Raises: InputError naming the sizes.
    """
    text = config.get_text_config()
    names = ("hidden_size", "num_hidden_layers", "vocab_size")
    width, n_layers, n_tokens = (getattr(text, name, None) for name in names)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not files or not (isinstance(width, int) and isinstance(n_layers, int) and isinstance(n_tokens, int)):
        return
    held = _NUMBERS_PER_BYTE * sum(file.stat().st_size for file in files)
    if width < 1 or width * (n_layers + n_tokens) > held:
        raise InputError(
            f"cannot read {folder}: {CONFIG} describes {n_layers} layers of width {width} and {n_tokens} tokens, more "
            f"than the weights beside it hold: one of them is damaged, incomplete or another model's; copy both again"
        )


def refuse_quantised(place: object, config: PreTrainedConfig) -> None:
    """Raises: InputError if the config says that the weights are not plain numbers."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return
    said = stored if isinstance(stored, dict) else stored.to_dict()
    method = said.get("quant_method", "no method is named")
    bits = next((f", {n} bits" for n in (4, 8) if said.get(f"load_in_{n}bit") or said.get("bits") == n), "")
    raise InputError(
        f"{place} says in {CONFIG} that its weights are quantised ({method}{bits}); "
        f"circuitdiff needs plain numbers: give the checkpoint before it was quantised, or, if the weights are plain "
        f"and only the setting was left over, delete quantization_config from {CONFIG}"
    )
