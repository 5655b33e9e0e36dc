"""From a source to a model that the engine can edit, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from circuitdiff.engine import Model
from circuitdiff.models.checks import checks_at_load, refuse_failures
from circuitdiff.models.sources import read_source
from circuitdiff.models.structure import find_structure


def load_model(
    source: str | Path,
    adapters: Sequence[str | Path] = (),
    dtype: str = "float32",
    device: str = "cpu",
    *,
    name: str | None = None,
) -> Model:
    """A causal decoder with its adapters merged in, in order, proven to be edited exactly.

    `source` is a hub id, a folder, a `.gguf` file or a family name such as "smollm2" or "tracker-base".

    Raises: InputError if the source cannot be read or its architecture cannot be edited; CheckError if a self-check
    fails.
    """
    read = read_source(source, adapters, dtype, device)
    title = name or read.name
    parts = find_structure(read.model, title)
    provenance = read.provenance | {"fingerprint": fingerprint(read.model)}
    model = Model(
        name=title,
        module=read.model,
        tokenizer=read.tokenizer,
        layers=parts.layers,
        attentions=parts.attentions,
        projections=parts.projections,
        n_heads=parts.n_heads,
        n_kv_heads=parts.n_kv_heads,
        d_head=parts.d_head,
        provenance=provenance,
    )
    checks = [*read.checks, *checks_at_load(model)]
    refuse_failures(checks)
    provenance["checks"] = [check.to_dict() | {"model": title} for check in checks]
    return model


@torch.no_grad()
def fingerprint(module: nn.Module) -> str:
    """The same for the same weights: a hash of every tensor's name, shape, sum and sum of squares."""
    digest = hashlib.sha256()
    for name, parameter in module.state_dict().items():
        wide = parameter.double()
        digest.update(f"{name} {tuple(parameter.shape)} {wide.sum().item()!r} {wide.square().sum().item()!r}".encode())
    return digest.hexdigest()[:16]
