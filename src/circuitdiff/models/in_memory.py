"""Models in memory that a further one can be made from: the same weights with fewer adapters.

What the adapters leave alone is in memory once, however many variants there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from circuitdiff.engine import Model


def with_first_adapters(
    models: Sequence[Model], path: str, adapters: Sequence[Path], placed: tuple[str, str]
) -> Model | None:
    """The one that was read from `path`, in the same dtype on the same device, with the most of the first adapters."""
    wanted = [str(folder) for folder in adapters]

    def fits(model: Model) -> bool:
        known, merged = model.provenance, _merged(model)
        same = (known.get("path"), known["dtype"], known["device"]) == (path, *placed)
        return same and merged == wanted[: len(merged)]

    return max(filter(fits, models), key=lambda model: len(_merged(model)), default=None)


def sharing_weights(module: PreTrainedModel) -> PreTrainedModel:
    """A copy whose parameters are the same memory: who changes one must first give it memory of its own."""
    return deepcopy(module, {id(own): nn.Parameter(own.data, requires_grad=False) for own in module.parameters()})


def origin_in(model: Model) -> dict[str, Any]:
    """Where the weights came from, before adapters."""
    return {key: model.provenance[key] for key in ("kind", "path", "commit")}


def _merged(model: Model) -> list[str]:
    return [adapter["path"] for adapter in model.provenance.get("adapters", ())]
