"""A generator for each part of a planting, so that changing one part redraws no other."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor


def generator(*key: object) -> torch.Generator:
    """A random generator of its own for `key`, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def normal(*shape: int, key: tuple[object, ...]) -> Float[Tensor, "*shape"]:
    """Standard normal numbers that depend on `key` alone."""
    return torch.randn(*shape, generator=generator(*key), dtype=torch.float64)


def unit_rows(n_rows: int, n_columns: int, key: tuple[object, ...]) -> Float[Tensor, "n_rows n_columns"]:
    """Random directions, one a row, of length 1."""
    return torch.nn.functional.normalize(normal(n_rows, n_columns, key=key), dim=1)


def orthogonal(n: int, key: tuple[object, ...]) -> Float[Tensor, "n n"]:
    """A random orthogonal matrix."""
    return torch.linalg.qr(normal(n, n, key=key)).Q
