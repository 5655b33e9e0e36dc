"""A decoder with its adapters and tokenizer, wherever they are: hub, folder, GGUF file, family name or memory.

What further variants of a model in memory leave alone is in memory once, however many there are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from circuitdiff.engine import Model
from circuitdiff.errors import InputError, choices, first_line
from circuitdiff.models.adapters import adapter_folder, merge_adapter
from circuitdiff.models.checkpoint import (
    Place,
    check_causal,
    check_decoder,
    check_vocabulary,
    place_of,
    read_checkpoint,
    read_config,
    read_tokenizer,
)
from circuitdiff.models.checks import Check
from circuitdiff.models.family_registry import Builder, PackagedFile, embedded_adapter, member_of, sha256_of
from circuitdiff.models.libraries import quiet

_GGUF_READING = 2  # raised whenever we read GGUF files otherwise; 1 did not split digits as the file says
_DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Source:
    """A decoder in eval mode whose parameters take no gradients, its tokenizer, and where both came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    provenance: dict[str, Any]
    checks: tuple[Check, ...]  # what was measured while adapters were merged


@dataclass(frozen=True)
class Outline:
    """A decoder without its weights; adapters change nothing of it."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase


def read_source(
    source: str | Path | PreTrainedModel,
    adapters: Sequence[str | Path] = (),
    dtype: str | None = None,
    device: str | None = None,
    like: Sequence[Model] = (),
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    *,
    idle_adapters: bool = False,
) -> Source:
    """The decoder that `load_model` describes, before anything is known about how it is edited.

    A family name goes before a folder or `.gguf` file of that name, and those before a hub id. The adapters are PEFT
    folders, embedded adapters' names or hub ids. `device` is one of torch's, or "auto" for the first of CUDA if there
    is one. A model in memory needs a `tokenizer`.

    Raises: InputError if there is no such source, it is not a causal decoder, is damaged, incomplete, or lacks its
    tokenizer, or an adapter does not fit; CheckError if an adapter changes nothing or does not merge exactly.
    """
    if not isinstance(source, str | Path | PreTrainedModel):
        raise InputError(
            f"expected a source by name or path, or a transformers model; got a {type(source).__name__}: of a model "
            f"with adapters give what `merge_and_unload()` returns"
        )
    dtype, device = _dtype_and_device(source, dtype, device)
    member = None if isinstance(source, PreTrainedModel) else member_of(str(source))
    own = [] if member is None else [_embedded(name) for name in member.adapters]
    folders = [*own, *map(adapter_folder, adapters)]
    with quiet():
        start = _start(source, folders, (dtype, device), like, _given_tokenizer(tokenizer))
        model, checks, merged = _with_adapters(start.model, folders[len(start.merged) :], idle_adapters)
    check_vocabulary(start.source, model, start.tokenizer)
    model.eval().requires_grad_(False)
    own_name = start.source if member else Path(start.source).name
    name = "+".join([own_name, *(Path(adapter).name for adapter in adapters)])
    placed = {"dtype": dtype, "device": device, "adapters": [*start.merged, *merged]}
    return Source(model, start.tokenizer, name, {"source": start.source} | placed | start.origin, checks)


@dataclass(frozen=True)
class _Start:
    """A decoder before the adapters that are yet to be merged."""

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    origin: dict[str, Any]
    merged: list[dict[str, Any]] = field(default_factory=list)


def _start(
    source: str | Path | PreTrainedModel,
    folders: Sequence[Path],
    placed: tuple[str, str],
    like: Sequence[Model],
    tokenizer: PreTrainedTokenizerBase | None,
) -> _Start:
    if isinstance(source, PreTrainedModel):
        return _in_memory(source, tokenizer)
    name, dtype, device_map = str(source), dtype_named(placed[0]), placed_on(placed[1])
    located = _located(name)
    if callable(located):
        model, own = located(dtype)
        model.to(device_map[""] if device_map else "cpu")  # pyright: ignore[reportArgumentType, reportCallIssue]
        return _Start(name, model, tokenizer or own, {"kind": "built"})
    place, path = located
    if (known := with_first_adapters(like, path, folders, placed)) is not None:
        origin = {key: known.provenance[key] for key in ("kind", "path", "commit")}
        adapters = list(known.provenance["adapters"])
        return _Start(name, sharing_weights(known.module), tokenizer or known.tokenizer, origin, adapters)
    model, own, origin = read_checkpoint(place, dtype, device_map, tokenizer)
    if path != str(place):
        origin |= {"kind": "gguf", "path": path}
    return _Start(name, model, own, origin)


def _located(source: str) -> tuple[Place, str] | Builder:
    """Where a source is read from, and the path that it is known by: those of a packaged file's copy differ."""
    member = member_of(source)
    if member is None:
        place = place_of(source)
        return place, str(place)
    return _converted(member.origin) if isinstance(member.origin, PackagedFile) else member.origin


def _dtype_and_device(source: object, dtype: str | None, device: str | None) -> tuple[str, str]:
    """As asked for, or as a model in memory is. Raises: InputError if it should be another."""
    if not isinstance(source, PreTrainedModel):
        return dtype or "float32", device or "cpu"
    own = str(source.dtype).removeprefix("torch."), str(source.device)
    for asked, has, what in zip((dtype, device), own, ("dtype", "device"), strict=True):
        if asked not in (None, has):
            raise InputError(
                f"a model in memory keeps its {what}, {has}; got {what} {asked!r}: convert it before, or leave it out"
            )
    return own


def _in_memory(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> _Start:
    name = module.config._name_or_path or type(module).__name__
    if tokenizer is None:
        raise InputError(f"{name} is in memory and comes without its tokenizer: give it as `tokenizer`")
    check_plain(module, name)
    model = sharing_weights(module)
    check_decoder(name, model.config)
    check_causal(name, model)
    return _Start(name, model, tokenizer, {"kind": "memory", "path": None, "commit": None})


def _given_tokenizer(tokenizer: str | Path | PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase | None:
    if tokenizer is None or isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    located = _located(str(tokenizer))
    return located(torch.float32)[1] if callable(located) else read_tokenizer(located[0])


def read_outline(source: str | Path, tokenizer: str | Path | None = None) -> Outline:
    """What `read_source` would read, but for the weights.

    Raises: InputError if there is no such source, it is not a causal decoder, or it lacks its tokenizer.
    """
    with quiet():
        given, located = _given_tokenizer(tokenizer), _located(str(source))
        if callable(located):
            model, own = located(torch.float32)
            return Outline(model.config, given or own)
        config, _ = read_config(located[0])
        return Outline(config, given or read_tokenizer(located[0]))


def _with_adapters(
    model: PreTrainedModel, folders: Sequence[Path], idle: bool
) -> tuple[PreTrainedModel, tuple[Check, ...], list[dict[str, Any]]]:
    """The model with the adapters merged in, in order; what was measured; and which files they were."""
    checks, merged = [], []
    for folder in folders:
        model, measured = merge_adapter(model, folder, idle=idle)
        checks += measured
        files = {file.name: sha256_of(file) for file in sorted(folder.glob("adapter_model.*"))}
        merged.append({"name": folder.name, "path": str(folder), "sha256": files})
    return model, tuple(checks), merged


def _embedded(name: str) -> Path:
    folder = embedded_adapter(name)
    if folder is None:
        raise InputError(f"the embedded adapter {name!r} is not in this installation; install circuitdiff again")
    return folder


def _converted(packaged: PackagedFile) -> tuple[Place, str]:
    """A copy of a packaged GGUF file in the user's cache; and the paths of the file's parts.

    A GGUF file takes transformers some twenty seconds, which a converted copy saves every later load.
    """
    paths = packaged.paths()
    read_by = f"transformers-{transformers.__version__}-{_GGUF_READING}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "circuitdiff"
    copy = cache / f"{packaged.parts[0][0]}-{packaged.sha256[:16]}-{read_by}"
    if not copy.is_dir():
        _convert(paths, copy, packaged.room)
    return Place("folder", str(copy)), " + ".join(map(str, paths))


def _convert(parts: Sequence[Path], folder: Path, room: str) -> None:
    """Writes the model of a GGUF file to `folder`, whole or not at all; another process may be doing the same.

    Raises: InputError if there is no room.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as partial:
            gguf, converted = Path(partial) / "joined.gguf", Path(partial) / "converted"
            with gguf.open("wb") as joined:
                for part in parts:
                    with part.open("rb") as file:
                        copyfileobj(file, joined)
            model, tokenizer, _ = read_checkpoint(place_of(str(gguf)), torch.float32)
            model.save_pretrained(converted)
            tokenizer.save_pretrained(converted)
            try:
                converted.rename(folder)
            except OSError:
                if not folder.is_dir():  # or another process was faster
                    raise
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot write {folder} ({error}): free {room} there, or set XDG_CACHE_HOME to another folder"
        ) from error


def with_first_adapters(
    models: Sequence[Model], path: str, adapters: Sequence[Path], placed: tuple[str, str]
) -> Model | None:
    """The one that was read from `path`, in the same dtype on the same device, with the most of the first adapters."""
    wanted = [str(folder) for folder in adapters]

    def n_merged(model: Model) -> int:
        """How many of the first adapters it has; -1 if it is another model, or has others."""
        known, merged = model.provenance, [adapter["path"] for adapter in model.provenance.get("adapters", ())]
        same = (known.get("path"), known["dtype"], known["device"]) == (path, *placed)
        return len(merged) if same and merged == wanted[: len(merged)] else -1

    best = max(models, key=n_merged, default=None)
    return None if best is None or n_merged(best) < 0 else best


def sharing_weights(module: PreTrainedModel) -> PreTrainedModel:
    """A copy whose parameters are the same memory: who changes one must first give it memory of its own."""
    return deepcopy(module, {id(own): nn.Parameter(own.data, requires_grad=False) for own in module.parameters()})


def check_plain(module: PreTrainedModel, name: str) -> None:
    """Holds a model that somebody else made and may have changed against what a freshly read one is.

    Raises: InputError if it is quantised, lies on several devices, or carries adapters or hooks.
    """
    if any(isinstance(part, BaseTunerLayer) for part in module.modules()):
        raise InputError(f"{name} carries adapters: merge them first (`merge_and_unload()`)")
    if not all(p.is_floating_point() for p in module.parameters()) or getattr(module, "hf_quantizer", None):
        raise InputError(f"{name} is quantised, and circuitdiff needs plain numbers: load it without quantisation")
    if len(devices := {str(p.device) for p in module.parameters()}) > 1:
        raise InputError(f"{name} lies on {', '.join(sorted(devices))}: move it to one device")
    for part_name, part in module.named_modules():
        if part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__:
            raise InputError(f"{name} has a hook at {part_name or 'its top'}, which would change it unseen: remove it")


def dtype_named(name: str) -> torch.dtype:
    """Raises: InputError if it is none that a model is read in."""
    if name not in _DTYPES:
        raise InputError(f"unknown dtype {name!r}{choices(name, _DTYPES)}")
    return getattr(torch, name)


def placed_on(name: str) -> dict[str, str] | None:
    """What transformers is told about where the weights go, all on one device; "auto" is the first of CUDA, or the CPU.

    Raises: InputError if this torch has no such device, or it lacks double precision.
    """
    if name == "auto":
        return {"": "cuda:0"} if torch.cuda.is_available() else None
    if name.startswith("mps"):
        raise InputError("cannot use device 'mps': it has no double precision, which the checks need; choose cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"cannot use device {name!r} ({first_line(error)}): choose cpu, auto, or a device that this torch has, "
            f"like cuda or cuda:1"
        ) from error
    return None if name == "cpu" else {"": name}
