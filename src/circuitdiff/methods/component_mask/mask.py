"""Component masks (DCM): a learned weight per head, 1 = keep its own value, 0 = take the source's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdiff.circuit import Head


def kept(mask: Float[Tensor, " head"]) -> Bool[Tensor, " head"]:
    """Which heads a fitted mask keeps: clamped to [0, 1], then rounded, 0.5 to 0.

    Source: Davies et al. 2023 (arXiv:2307.03637); Prakash et al. 2024 (arXiv:2402.14811).
    """
    return torch.round(mask.clamp(0, 1)) == 1


def selected(mask: Float[Tensor, " head"], heads: Sequence[Head]) -> list[Head]:
    """The heads that a fitted mask patches, hence the ones that carry the desideratum; in the order of `heads`."""
    return [head for head, keep in zip(heads, kept(mask).tolist(), strict=True) if not keep]
