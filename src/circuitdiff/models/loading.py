"""From a source to a model that the engine can edit, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from circuitdiff.engine import Model
from circuitdiff.models.checks import Check, checks_at_load, refuse_failures
from circuitdiff.models.sources import read_source
from circuitdiff.models.structure import find_structure


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
    known = {**provenance, "fingerprint": fingerprint(module)}
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
_passed: dict[tuple[str, str, str, str], list[Check]] = {}


def _checks_once(model: Model) -> list[Check]:
    key = (model.provenance["fingerprint"], model.module.config.to_json_string(), str(model.dtype), str(model.device))
    if key not in _passed:
        measured = checks_at_load(model)
        refuse_failures(measured)
        _passed[key] = measured
    return _passed[key]


@torch.no_grad()
def fingerprint(module: nn.Module) -> str:
    """The same for the same weights: a hash of every tensor's name, shape, sum and sum of squares."""
    digest = hashlib.sha256()
    for name, parameter in module.state_dict().items():
        wide = parameter.double()
        digest.update(f"{name} {tuple(parameter.shape)} {wide.sum().item()!r} {wide.square().sum().item()!r}".encode())
    return digest.hexdigest()[:16]
