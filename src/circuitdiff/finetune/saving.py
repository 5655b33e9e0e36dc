"""Adapters, models and the state of a training run: written complete, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from circuitdiff.errors import InputError


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A file or folder beside `path` to write to; it takes the place of `path` only once it is complete.

    Raises: InputError if the disk is full or cannot be written; what was at `path` before is still there.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        _remove(partial)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if partial.is_dir():
            _remove(path)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        _remove(partial, ignore_errors=True)
        raise InputError(
            f"cannot write {path}: {error}; free some space or choose another folder, then run the same again: "
            f"it continues from the last checkpoint"
        ) from error


def _remove(path: Path, *, ignore_errors: bool = False) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=ignore_errors)
    elif path.is_file():
        path.unlink()


def save_adapter(model: PeftModel, folder: Path, base: str, stored_as: str) -> None:
    """Writes the adapter in PEFT's format, the same bytes for the same adapter.

    Raises: InputError if the disk is full or cannot be written.
    """
    dtype = getattr(torch, stored_as)
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    config = model.peft_config["default"].to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
    with writing(folder) as partial:
        partial.mkdir()
        packed = {key: tensor.to("cpu", dtype).contiguous() for key, tensor in tensors.items()}
        save_file(packed, partial / "adapter_model.safetensors", {"format": "pt"})
        text = json.dumps(config, indent=1, sort_keys=True, default=sorted)  # peft keeps its targets in a set
        (partial / "adapter_config.json").write_text(text + "\n")


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, stored_as: str) -> None:
    """Writes the whole model, in 16 bits, and its tokenizer as a folder. The model given is changed to that dtype.

    Raises: InputError if the disk is full or cannot be written.
    """
    with writing(folder) as partial:
        partial.mkdir()
        model.to(getattr(torch, stored_as)).save_pretrained(partial)  # pyright: ignore[reportArgumentType]
        tokenizer.save_pretrained(partial)


class CurvePoint(NamedTuple):
    """The held-out accuracy after `step` steps."""

    step: int
    accuracy: float


def save_state(
    path: Path,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    settings: str,
    losses: Sequence[float],
    curve: Sequence[CurvePoint],
) -> None:
    """Writes parameters, AdamW's moments and the run's history at once, or nothing."""
    moments = optimizer.state_dict()["state"]
    tensors = {f"value.{name}": p.detach() for name, p in trained.items()}
    for i, name in enumerate(trained):
        tensors |= {f"{kind}.{name}": tensor for kind, tensor in moments[i].items()}
    history = {"settings": settings, "losses": json.dumps(losses), "curve": json.dumps(curve)}
    with writing(path) as partial:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial, history)


@torch.no_grad()
def load_state(
    path: Path | None, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, settings: str
) -> tuple[list[float], list[CurvePoint]]:
    """Puts a saved state back, if there is one; losses and held-out curve so far, empty for a new run.

    Raises: InputError if the file is damaged or belongs to a run with other settings.
    """
    if path is None or not path.exists():
        return [], []
    try:
        with safe_open(path, "pt") as file:
            history = file.metadata()
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read the checkpoint {path}: {error}; delete it to start anew") from error
    if history["settings"] != settings or {k.partition(".")[2] for k in tensors} != set(trained):
        raise InputError(f"the checkpoint {path} is of a run with other settings; delete it to start anew")
    for name, parameter in trained.items():
        parameter.copy_(tensors[f"value.{name}"])
    kinds = {key.partition(".")[0] for key in tensors} - {"value"}
    moments = {i: {kind: tensors[f"{kind}.{name}"] for kind in kinds} for i, name in enumerate(trained)}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return json.loads(history["losses"]), [CurvePoint(*point) for point in json.loads(history["curve"])]
