"""Writing adapters and models in 16 bits: complete, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
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
