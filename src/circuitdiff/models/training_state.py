"""The state of a training run in one file, so that a killed run continues where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from circuitdiff.errors import InputError
from circuitdiff.models.saving import writing


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
    _put_back(tensors, trained, optimizer)
    return json.loads(history["losses"]), [CurvePoint(*point) for point in json.loads(history["curve"])]


@torch.no_grad()
def _put_back(
    tensors: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    for name, parameter in trained.items():
        parameter.copy_(tensors[f"value.{name}"])
    kinds = {key.partition(".")[0] for key in tensors} - {"value"}
    moments = {i: {kind: tensors[f"{kind}.{name}"] for kind in kinds} for i, name in enumerate(trained)}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
