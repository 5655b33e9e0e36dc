"""PEFT adapters, merged into a model and proved to be there.

An adapter that is silently not applied, or half applied, gives a base model's numbers under a variant's name. So every
key of the file must have a place in the model, merging must not change the logits, and the adapter must.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jaxtyping import Float
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.save_and_load import load_peft_weights
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from circuitdiff.errors import InputError, first_line
from circuitdiff.models.checks import Check, difference, refuse_failures, tolerance_of
from circuitdiff.models.family_registry import embedded_adapter
from circuitdiff.models.structure import probe_tokens

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


class Merged(NamedTuple):
    """A model with an adapter merged in, and what was measured on the way."""

    model: PreTrainedModel
    checks: tuple[Check, ...]


def adapter_folder(source: str | Path) -> Path:
    """The folder of an adapter given as a folder, an embedded adapter's name or a hub id.

    Raises: InputError if there is none, or the folder lacks the adapter's settings or weights.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = embedded_adapter(str(source)) or _downloaded(str(source))
    missing = [part for part in ("adapter_config.json",) if not (folder / part).is_file()]
    if not any((folder / weights).is_file() for weights in _WEIGHTS):
        missing.append(_WEIGHTS[0])
    if missing:
        raise InputError(f"{folder} is not a PEFT adapter: it has no {' and no '.join(missing)}")
    return folder


def _downloaded(hub_id: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=["adapter_*"]))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError) as error:
        raise InputError(
            f"no adapter {hub_id!r}: it is not a folder, not an embedded adapter, and the hub has none or could not "
            f"be reached ({first_line(error)})"
        ) from error


def check_adapter(config: PreTrainedConfig, source: str | Path) -> None:
    """Holds an adapter against a model that is given by its settings alone: no weights but the adapter's are read.

    An adapter that cannot be laid out without the model's weights is left to `merge_adapter`.

    Raises: InputError as `merge_adapter` does, and if there is no such adapter.
    """
    folder = adapter_folder(source)
    weights, settings = _read(folder)
    try:
        with torch.device("meta"):
            adapted = _laid_out(AutoModelForCausalLM.from_config(config), folder, settings)
    except NotImplementedError:  # torch's, of what it cannot compute without numbers
        return
    _check_keys(folder, weights, get_peft_model_state_dict(adapted, save_embedding_layers=False))


def merge_adapter(model: PreTrainedModel, source: str | Path) -> Merged:
    """`model` with the adapter added to its weights. The model given is changed, but no memory that it shares.

    Raises: InputError if a key of the adapter finds no place in the model or lacks a counterpart, or a shape
    differs; CheckError if the adapter changes nothing or merging changes the logits.
    """
    folder = adapter_folder(source)
    before = _probe(model)
    adapted = _with_adapter(model, folder)
    unmerged = _probe(adapted)
    _unshare(adapted)
    merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=False)  # pyright: ignore[reportCallIssue, reportAssignmentType]
    tolerance = tolerance_of(model.dtype)
    error, change = difference(_probe(merged), unmerged), difference(unmerged, before)
    checks = (
        Check("every adapter key landed", folder.name, 0.0, 0.0, True, "keys without a place, missing or misshapen"),
        Check("merged equals unmerged", folder.name, error, tolerance, error <= tolerance, "relative, random tokens"),
        Check("the adapter changes the logits", folder.name, change, 0.0, change > 0, "must be above 0"),
    )
    refuse_failures(list(checks))
    return Merged(merged, checks)


def _unshare(adapted: PeftModel) -> None:
    """Own memory for the weights that merging changes: other models may hold the same."""
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            for parameter in layer.get_base_layer().parameters():
                parameter.data = parameter.data.clone()


@torch.no_grad()
def _probe(model: nn.Module) -> Float[Tensor, "prompt pos d_vocab"]:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return model(input_ids=probe_tokens(base), use_cache=False).logits  # pyright: ignore[reportArgumentType]


def _with_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """`model` with the adapter's layers, unmerged, holding exactly the tensors of the file."""
    weights, settings = _read(folder)
    adapted = _laid_out(model, folder, settings)
    _check_keys(folder, weights, get_peft_model_state_dict(adapted, save_embedding_layers=False))
    rest = set_peft_model_state_dict(adapted, weights)
    landed = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    lost = [key for key, value in weights.items() if not torch.equal(landed[key].cpu(), value.to(landed[key].dtype))]
    _refuse(folder, "did not take the values of", [*rest.unexpected_keys, *lost])
    return adapted.eval()  # pyright: ignore[reportReturnType]


def _laid_out(model: PreTrainedModel, folder: Path, settings: PeftConfig) -> PeftModel:
    """`model` with the adapter's layers, which hold nothing of the file yet."""
    settings.inference_mode = True
    try:
        with torch.random.fork_rng(devices=[]):  # peft fills the deltas from the global generator first
            return get_peft_model(model, settings)  # pyright: ignore[reportReturnType]
    except (ValueError, TypeError) as error:
        raise InputError(f"adapter {folder} does not fit this model: {first_line(error)}") from error


def _read(folder: Path) -> tuple[dict[str, Tensor], PeftConfig]:
    try:
        return load_peft_weights(str(folder), device="cpu"), PeftConfig.from_pretrained(str(folder))
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, EOFError, RuntimeError) as error:
        raise InputError(f"cannot read the adapter {folder}: {first_line(error)}; copy it again") from error


def _check_keys(folder: Path, weights: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    _refuse(folder, "has no place for", [key for key in weights if key not in places])
    _refuse(folder, "finds in the file no", [key for key in places if key not in weights])
    _refuse(
        folder,
        "has another shape at",
        [
            f"{key} ({list(places[key].shape)}, not {list(value.shape)})"
            for key, value in weights.items()
            if value.shape != places[key].shape
        ],
    )


def _refuse(folder: Path, what: str, keys: Iterable[str]) -> None:
    if found := sorted(keys):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise InputError(
            f"adapter {folder} was not made for this model: the model {what} {', '.join(found[:3])}{more}; "
            f"give the base model that it was trained on"
        )
