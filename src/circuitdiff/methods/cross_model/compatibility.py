"""Is a hybrid run one that the recipient could have made, or do the donor's activations mean nothing in it?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Group
from circuitdiff.methods.cross_model.activations import Activations, patches

Rows = Float[Tensor, "prompt width"]


class Basis(NamedTuple):
    """How alike a head's values are in donor and recipient, from -1 to 1: the mean over a group's heads.

    As they are, and turned by the rotation of the head's basis that makes them most alike on other prompts.
    """

    as_it_is: float
    turned: float


def distance_from_clean(ends: Rows, donor: Rows, recipient: Rows, scale: float) -> Float[Tensor, " prompt"]:
    """How far each hybrid run ends from where clean runs of the same prompt end, in units of `scale`.

    The distance is to the nearest point between the recipient's and the donor's end, so that a hybrid on its way from
    one to the other is near.
    """
    way, start = donor - recipient, ends - recipient
    along = ((start * way).sum(-1) / way.square().sum(-1).clamp(min=1e-30)).clamp(0, 1)
    return (start - along[:, None] * way).norm(dim=-1) / scale


def spread(ends: Rows) -> float:
    """The mean distance between where clean runs of two prompts end: the unit of distances."""
    n = len(ends)
    return max(float(torch.cdist(ends, ends).sum()) / max(1, n * (n - 1)), 1e-30)


def basis_of(donor: Activations, own: Activations, group: Group) -> Basis:
    """Do the group's heads write in the recipient's basis? A head whose z is turned computes the same and fits nowhere.

    Similarities are cosines over all prompts of values less their mean, half of the prompts turned by what the other
    half says, both ways. With fewer than four prompts nan.
    """
    rows = [
        _similarities(theirs.values[:, i], mine.values[:, i])
        for theirs, mine in zip(patches(donor, group), patches(own, group), strict=True)
        for i in range(len(theirs.heads))
    ]
    as_it_is, turned = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    return Basis(as_it_is, turned)


def _similarities(donor: Rows, own: Rows) -> tuple[float, float]:
    half = torch.arange(len(donor)) % 2 == 0
    if len(donor) < 4:
        return float("nan"), float("nan")
    theirs, mine = (x.double() - x.double().mean(0) for x in (donor, own))
    turned = [_cosine(theirs[~fit], mine[~fit] @ _rotation(mine[fit], theirs[fit])) for fit in (half, ~half)]
    return _cosine(theirs, mine), sum(turned) / 2


def _rotation(
    source: Float[Tensor, "prompt width"], target: Float[Tensor, "prompt width"]
) -> Float[Tensor, "width width"]:
    """The orthogonal matrix that takes `source` nearest to `target`.

    Source: Schönemann 1966 (doi:10.1007/BF02289451).
    """
    u, _, vh = torch.linalg.svd(source.T @ target)
    return u @ vh


def _cosine(a: Rows, b: Rows) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-30))
