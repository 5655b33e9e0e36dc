"""What a model is known by: its fingerprint, once it is read; the files that it comes from, before.

The fingerprint is the SHA-256 of every weight, its config and its tokenizer. Weights are also recorded one by one, so
that a model which stays in memory can be held against what it was when it was loaded: the next model may have been
built on the same memory. The files are not read: they are the same as long as nobody touched one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from circuitdiff.engine import Model
from circuitdiff.models.adapters import adapter_folder
from circuitdiff.models.checks import CheckError
from circuitdiff.models.config_file import cached_config
from circuitdiff.models.family_registry import PackagedFile, embedded_adapter, member_of
from circuitdiff.models.libraries import listed

_AT_ONCE = 2**24  # bytes that are copied from another device or layout at once
# Of a config: who wrote it, and what the weights themselves say.
_SAYS_NOTHING = ("architectures", "transformers_version", "dtype", "tie_word_embeddings")

Digests = Mapping[str, str]  # of each parameter and buffer, by name


def fingerprint(weights: Digests, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """The same for the same weights, config and tokenizer, wherever they were read from, on any device."""
    settings = {key: value for key, value in config.to_diff_dict().items() if key not in _SAYS_NOTHING}
    digest = hashlib.sha256(json.dumps(sorted(weights.items())).encode())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(_tokenizer_rules(tokenizer).encode())
    return digest.hexdigest()[:16]


def weight_digests(module: nn.Module, known: dict[object, str] | None = None) -> Digests:
    """The SHA-256 of every tensor's type, shape and numbers.

    Memory whose digest is in `known` is not read again; what is read is added to it.
    """
    known = {} if known is None else known
    tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    places = {name: _place(tensor) for name, tensor in tensors.items()}
    unread = {place: tensors[name] for name, place in places.items() if place not in known}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing a large block lets other threads run
        known.update(zip(unread, pool.map(_digest, unread.values()), strict=True))
    # Buffers that are in no file (frequencies of positions) have one precision or another, depending on who made them.
    unsaved = {name: _digest(buffer.float()) for name, buffer in module.named_buffers() if name not in tensors}
    return {name: known[place] for name, place in places.items()} | unsaved


def refuse_changed(models: Sequence[Model], known: dict[object, str], loaded: str) -> None:
    """Holds models that stay in memory against the weights that were recorded when they were loaded.

    `known`: see `weight_digests`; memory that was read after `loaded` had been built is not read again.

    Raises: CheckError naming the weights that have changed.
    """
    for model in models:
        now = weight_digests(model.module, known)
        changed = [name for name in model.weights if model.weights[name] != now.get(name)]
        if changed:
            raise CheckError(
                f"{model.name} is no longer what was loaded: {listed(changed)} changed in memory, at the latest "
                f"while {loaded} was loaded; load it again, and change no weights of a model that circuitdiff uses"
            )


def _place(tensor: Tensor) -> object:
    """What is the same for tensors that are the same memory, read in the same way."""
    where = (tensor.device, tensor.data_ptr()) if tensor.numel() else ()
    return (where, tensor.dtype, tuple(tensor.shape), tensor.stride())


@torch.no_grad()
def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.reshape(-1).view(torch.uint8)
    for part in flat.split(_AT_ONCE):
        digest.update(part.cpu().numpy().data)
    return digest.hexdigest()


def _tokenizer_rules(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that decides which tokens a text becomes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        whole = json.loads(backend.to_str())
        return json.dumps({key: part for key, part in whole.items() if key not in ("padding", "truncation")})
    return json.dumps(sorted(tokenizer.get_vocab().items()))


def origin_of(source: str | Path, adapters: Sequence[str | Path] = ()) -> list[Any] | None:
    """Every file's path, size and time of change; None if the source is not on this machine yet.

    Raises: InputError if a family's package or an adapter is not there.
    """
    folders = [adapter_folder(adapter) for adapter in adapters]
    if member := member_of(str(source)):
        packaged = member.origin.paths() if isinstance(member.origin, PackagedFile) else None
        begin = [str(source)] if packaged is None else [file for path in packaged for file in _files(path)]
        folders = [*filter(None, map(embedded_adapter, member.adapters)), *folders]
    elif (path := Path(source).expanduser()).exists():
        begin = _files(path)
    elif config := cached_config(str(source)):  # of a hub id, in its snapshot
        begin = _files(config.parent)
    else:
        return None
    return [*begin, *(file for folder in folders for file in _files(folder))]


def _files(place: Path) -> list[tuple[str, int, int]]:
    paths = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    return [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
