"""Reading a checkpoint with transformers, from hub, folder or GGUF file: a whole causal decoder and its tokenizer.

Whatever transformers would only log (weights that are missing, left over or of another shape) is refused here: such a
model runs, and its numbers mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from circuitdiff.config.reading import looks_like_path, no_such_path
from circuitdiff.errors import InputError, first_line, nearest
from circuitdiff.models.checks import difference, tolerance_for
from circuitdiff.models.config_file import check_size, left_to_defaults, refuse_quantised, written_config
from circuitdiff.models.family_registry import MEMBERS
from circuitdiff.models.gguf_config import complete_config
from circuitdiff.models.gguf_file import complete_tokenizer
from circuitdiff.models.libraries import library_errors, listed
from circuitdiff.models.probe import prepare, probe_tokens, probing


@dataclass(frozen=True)
class Place:
    """What transformers is given to read from."""

    kind: str  # "hub", "folder" or "gguf"
    path: str
    gguf_file: str | None = None

    @property
    def options(self) -> dict[str, str]:
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}

    def __str__(self) -> str:
        return str(Path(self.path) / self.gguf_file) if self.gguf_file else self.path


def place_of(source: str) -> Place:
    """Raises: InputError if there is no such folder or file, or it holds no model."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            hint = "; it is an adapter: give it in `adapters`" if (path / "adapter_config.json").is_file() else ""
            raise InputError(f"the folder {path} holds no model: it has no config.json{hint}")
        return Place("folder", str(path))
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"a file must be a .gguf file; got {path}: give the folder that holds config.json instead")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise InputError(f"{path} is not a GGUF file (it is empty or begins otherwise); copy it again")
        return Place("gguf", str(path.parent), path.name)
    if path.suffix == ".gguf":
        raise InputError(f"no such file: {path}")
    if looks_like_path(source):
        raise InputError(no_such_path(source))
    return Place("hub", source)


def read_checkpoint(
    place: Place,
    dtype: torch.dtype,
    device_map: dict[str, str] | None = None,
    given: PreTrainedTokenizerBase | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """The decoder, its tokenizer (`given` or its own), and where both came from. Raises: InputError."""
    config, defaults = read_config(place)
    tokenizer = given or read_tokenizer(place)
    model = _read_weights(place, config, dtype, device_map)
    if place.kind == "gguf":
        delattr(model.config, "quantization_config")  # the weights are plain numbers by now, and can be saved as such
        delattr(model, "hf_quantizer")
    check_causal(str(place), model)
    commit = getattr(config, "_commit_hash", None)
    return model, tokenizer, {"kind": place.kind, "path": str(place), "commit": commit, "left_to_defaults": defaults}


def read_config(place: Place) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The config, and what config.json leaves to defaults."""
    gguf = place.kind == "gguf"
    written = None if gguf else written_config(place.path)
    try:
        with library_errors(lambda said: _damaged(place, said)):
            config = AutoConfig.from_pretrained(place.path, trust_remote_code=False, **place.options)
    except InputError as error:
        raise (_hub_error(place, error.__cause__ or error) if place.kind == "hub" else error) from error.__cause__
    with library_errors(lambda said: _damaged(place, said)):
        check_decoder(str(place), config)
        if gguf:
            complete_config(config, Path(str(place)))
            return config, {}
        refuse_quantised(place, config)
        if place.kind == "folder":
            check_size(Path(place.path), config)
        return config, left_to_defaults(config, written or written_config(place.path) or {})


def _hub_error(place: Place, error: BaseException) -> InputError:
    if isinstance(error.__cause__, GatedRepoError) or "gated repo" in str(error):
        return InputError(
            f"the hub keeps {place} behind a licence (401 or 403): accept it on the model's page, then log in with "
            f"`hf auth login`"
        )
    return InputError(
        f"no model {place.path!r}: it is not a folder, not a .gguf file, not a name of an embedded model"
        f"{nearest(place.path, MEMBERS)}, and neither the hub's cache nor the hub gave it ({first_line(error)[:200]})"
    )


def _damaged(place: Place, said: str) -> str:
    return f"cannot read {place}: damaged, incomplete or unknown to transformers ({said})"


def check_decoder(place: str, config: PreTrainedConfig) -> None:
    """Raises: InputError if the config is not a causal decoder's."""
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not getattr(config, "is_encoder_decoder", False)
    built, decoders = config.architectures or [], MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    if not known or (built and set(decoders).isdisjoint(built)):
        kind = ", ".join(built) or config.model_type
        raise InputError(f"{place} is not a causal decoder but {kind}; circuitdiff needs one (a ...ForCausalLM)")


def read_tokenizer(place: Place) -> PreTrainedTokenizerBase:
    """Raises: InputError if there is none, or it is damaged."""
    remedy = "put its tokenizer.json beside config.json, or name another model's as `tokenizer`"
    with library_errors(lambda said: f"cannot read a tokenizer from {place} ({said}): {remedy}"):
        tokenizer = AutoTokenizer.from_pretrained(place.path, trust_remote_code=False, **place.options)
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise InputError(f"the tokenizer at {place} knows no words: {remedy}")
        tokenizer("a b")  # a damaged one may fail only now
        if place.kind == "gguf":
            complete_tokenizer(tokenizer, Path(str(place)))
    return tokenizer


def _read_weights(
    place: Place, config: PreTrainedConfig, dtype: torch.dtype, device_map: dict[str, str] | None
) -> PreTrainedModel:
    with library_errors(lambda said: _damaged(place, said)):
        model, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            place.path,
            config=config,  # read once: a GGUF file's header takes seconds
            **place.options,
            dtype=dtype,
            device_map=device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    mismatched = [f"{key} ({list(file)}, not {list(own)})" for key, file, own in info["mismatched_keys"]]
    _refuse_keys(place, "lacks weights that the model needs", info["missing_keys"])
    _refuse_keys(place, "has weights of another shape than config.json says", mismatched)
    _refuse_keys(place, "has weights that the model would ignore", info["unexpected_keys"])
    return model


def _refuse_keys(place: Place, what: str, keys: Sequence[str] | set[str]) -> None:
    if keys:
        raise InputError(f"{place} {what}: {listed(keys)}; copy or convert the checkpoint again")


def check_vocabulary(place: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises: InputError if the tokenizer has a token that the model does not embed."""
    n_rows = len(model.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]
    largest = max(tokenizer.get_vocab().values())
    if largest >= n_rows:
        raise InputError(
            f"the tokenizer of {place} is not this model's: it has token {largest}, the model embeds {n_rows}"
        )


@torch.no_grad()
def check_causal(place: str, model: PreTrainedModel) -> None:
    """The logits at a position must not depend on later tokens: those from the middle on, or the last one.

    Raises: InputError if they do, or are not finite.
    """
    prepare(model)
    with probing(place, "running on random tokens"):
        tokens = probe_tokens(model, n_prompts=1).repeat(3, 1)
        starts = {1: tokens.shape[1] // 2, 2: tokens.shape[1] - 1}
        for row, start in starts.items():
            tokens[row, start:] = (tokens[0, start:] == 0).long()
        logits = model(input_ids=tokens, use_cache=False).logits
    if not logits.isfinite().all():
        raise InputError(
            f"{place} gives logits that are not finite: the weights are damaged, or {model.dtype} too small"
        )
    worst = max(difference(logits[row, :start], logits[0, :start]) for row, start in starts.items())
    if worst > tolerance_for(model):
        raise InputError(f"{place} is not a causal decoder: a later token changes the logits before it")
