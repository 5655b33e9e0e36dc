"""From a source to a model that the engine can edit, checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from circuitdiff.engine import Model
from circuitdiff.models.checks import Check, checks_at_load, refuse_failures
from circuitdiff.models.sources import read_source
from circuitdiff.models.structure import find_structure

_AT_ONCE = 2**22  # numbers of a tensor whose bits are added up at once
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SAYS_NOTHING = ("architectures", "transformers_version")  # of a config: who wrote it


def load_model(
    source: str | Path,
    adapters: Sequence[str | Path] = (),
    dtype: str = "float32",
    device: str = "cpu",
    *,
    name: str | None = None,
    like: Sequence[Model] = (),
) -> Model:
    """A causal decoder with its adapters merged in, in order, proven to be edited exactly.

    `source` is a hub id, a folder, a `.gguf` file or a family name such as "smollm2" or "tracker-base". If it is one of
    `like`, which are in memory, with further adapters, only these are read, and whatever they leave alone is shared
    with that one.

    Raises: InputError if the source cannot be read or its architecture cannot be edited; CheckError if a self-check
    fails.
    """
    read = read_source(source, adapters, dtype, device, like)
    return as_model(read.model, read.tokenizer, name or read.name, read.provenance, read.checks)


def as_model(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    provenance: Mapping[str, Any],
    checks: Sequence[Check] = (),
) -> Model:
    """A decoder that is in memory already, proven to be edited exactly; `checks` are those that it has passed so far.

    Raises: InputError if its architecture cannot be edited; CheckError if a self-check fails.
    """
    parts = find_structure(module, name)
    known = {**provenance, "fingerprint": fingerprint(module, tokenizer)}
    model = Model(
        name=name,
        module=module,
        tokenizer=tokenizer,
        layers=parts.layers,
        attentions=parts.attentions,
        projections=parts.projections,
        n_heads=parts.n_heads,
        n_kv_heads=parts.n_kv_heads,
        d_head=parts.d_head,
        provenance=known,
    )
    measured = [*checks, *_checks_once(model)]
    refuse_failures(measured)
    known["checks"] = [check.to_dict() | {"model": name} for check in measured]
    return model


# What weights passed that were loaded before in this process: a study loads its models again and again.
_passed: dict[tuple[str, str, str], list[Check]] = {}


def _checks_once(model: Model) -> list[Check]:
    key = (model.provenance["fingerprint"], str(model.dtype), str(model.device))
    if key not in _passed:
        measured = checks_at_load(model)
        refuse_failures(measured)
        _passed[key] = measured
    return _passed[key]


@torch.no_grad()
def fingerprint(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """The same for the same weights, config and tokenizer, wherever they were read from, on any device.

    Of every tensor the name, shape and two sums of its bits, which are exact in any order of adding up.
    """
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {_sums_of_bits(tensor)}".encode())
    config = {key: value for key, value in module.config.to_diff_dict().items() if key not in _SAYS_NOTHING}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(_tokenizer_in_words(tokenizer).encode())
    return digest.hexdigest()[:16]


def _sums_of_bits(tensor: Tensor) -> tuple[int, int]:
    """The numbers' bits as integers: their sum, and their sum weighted by place, modulo 2 to the 64."""
    flat = tensor.detach().reshape(-1)
    plain = weighted = 0
    for start in range(0, len(flat), _AT_ONCE):
        bits = flat[start : start + _AT_ONCE].contiguous().view(_BITS[flat.element_size()]).long()
        places = torch.arange(start, start + len(bits), device=bits.device) * 2 + 1
        plain += int(bits.sum())
        weighted += int((bits * places).sum())
    return plain % 2**64, weighted % 2**64


def _tokenizer_in_words(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that decides which tokens a text becomes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        whole = json.loads(backend.to_str())
        return json.dumps({key: part for key, part in whole.items() if key not in ("padding", "truncation")})
    return json.dumps(sorted(tokenizer.get_vocab().items()))
