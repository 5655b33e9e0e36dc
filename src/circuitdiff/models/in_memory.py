"""Models in memory that a further one can be made from: the same weights with fewer adapters.

What the adapters leave alone is in memory once, however many variants there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from circuitdiff.engine import Model
from circuitdiff.errors import InputError


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


def origin_in(model: Model) -> dict[str, Any]:
    """Where the weights came from, before adapters."""
    return {key: model.provenance[key] for key in ("kind", "path", "commit")}


def _merged(model: Model) -> list[str]:
    return [adapter["path"] for adapter in model.provenance.get("adapters", ())]
