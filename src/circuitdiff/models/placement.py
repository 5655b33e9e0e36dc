"""In which precision a model is read, and on which device."""

from __future__ import annotations

import torch

from circuitdiff.errors import InputError, choices, first_line

_DTYPES = ("float32", "float64", "float16", "bfloat16")


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
