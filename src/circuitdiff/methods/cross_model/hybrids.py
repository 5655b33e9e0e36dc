"""Runs of the recipient in which heads or MLPs are given what was read elsewhere; could it have made them itself?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.circuit import Group
from circuitdiff.engine import Edit, MlpEdit, Model
from circuitdiff.engine.edits import SenderEdit
from circuitdiff.engine.executor import Readout
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB
from circuitdiff.engine.window import BRANCHING
from circuitdiff.evaluation.answers import N_VALUES, Evaluation, answers_readout, evaluation_of
from circuitdiff.evaluation.circuits import Progress
from circuitdiff.evaluation.edited import Editing, run_edited
from circuitdiff.methods.cross_model.activations import Activations, Patch, patches, sampled, shared
from circuitdiff.prompts import Bucket, Pairs

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


Hybrid = tuple[Patch, ...]


class Ran(NamedTuple):
    """What a hybrid answers, and how far from clean runs it ends (1 = as far as another prompt's run)."""

    answers: Evaluation
    distance: Float[Tensor, " prompt"]


class Clean(NamedTuple):
    """Where the donor's and the recipient's clean runs end."""

    donor: Activations
    recipient: Activations


def run_hybrids(
    recipient: Model,
    pairs: Pairs,
    hybrids: Sequence[Hybrid],
    clean: Clean,
    *,
    executor: str = "window",
    memory_gb: float = DEFAULT_MEMORY_GB,
    progress: Progress | None = None,
) -> list[Ran]:
    """All hybrids on the same prompts, as variants of one run."""
    device, everything = recipient.device, [patch for hybrid in hybrids for patch in hybrid]
    roles = list(dict.fromkeys(patch.role for patch in everything))
    branching = all(patch.what in BRANCHING for patch in everything)

    editing = Editing[Hybrid](
        roles,
        begins=lambda hybrid, bucket: min((bucket.positions[p.role] for p in hybrid), default=bucket.length - 1),
        edits=lambda part, bucket: _edits(part, bucket, device),
        split=_split if branching else None,
    )
    values = run_edited(
        recipient,
        pairs,
        hybrids,
        editing,
        readout_of=lambda bucket: _readout(pairs.select(bucket.prompts), bucket, clean, device),
        executor=executor,
        memory_gb=memory_gb,
        progress=progress,
    )
    return [Ran(evaluation_of(value[:, :N_VALUES], pairs), value[:, N_VALUES]) for value in values]


def _split(hybrid: Hybrid, bucket: Bucket) -> tuple[Hybrid, Hybrid]:
    """The patches at the hybrid's first position, and the others."""
    first = min((bucket.positions[patch.role] for patch in hybrid), default=0)
    at_first = tuple(patch for patch in hybrid if bucket.positions[patch.role] == first)
    return at_first, tuple(patch for patch in hybrid if bucket.positions[patch.role] > first)


def _edits(hybrids: Sequence[Hybrid], bucket: Bucket, device: torch.device) -> list[SenderEdit]:
    """One edit for each patch, of all the hybrids that have it."""
    owners: dict[Patch, list[int]] = {}
    for i, hybrid in enumerate(hybrids):
        for patch in hybrid:
            owners.setdefault(patch, []).append(i)
    edits: list[SenderEdit] = []
    for patch, some in owners.items():
        values, at = patch.values[bucket.prompts.to(patch.values.device)][None], bucket.positions[patch.role]
        if patch.what == "mlp_out":
            edits.append(MlpEdit(patch.layer, at, torch.tensor(some), values.to(device)))
            continue
        values = values[..., : bucket.length] if patch.what == "pattern" else values
        heads = torch.tensor(patch.heads, device=device)
        edits.append(Edit(patch.layer, patch.what, at, heads, torch.tensor(some), values.to(device)))
    return edits


def _readout(pairs: Pairs, bucket: Bucket, clean: Clean, device: torch.device) -> Readout:
    answers = answers_readout(pairs, device)
    vocabularies = clean.recipient.d_vocab, clean.donor.d_vocab
    recipient_ends = clean.recipient.ends_in(clean.donor.d_vocab)
    donor = clean.donor.ends_in(clean.recipient.d_vocab)[bucket.prompts].to(device)
    own, scale = recipient_ends[bucket.prompts].to(device), spread(recipient_ends)

    def readout(logits: Float[Tensor, "row d_vocab"], prompt: Int[Tensor, " row"]) -> Float[Tensor, "row value"]:
        columns = answers(logits, prompt)
        ends = shared(sampled(logits), *vocabularies).to(columns.dtype)
        far = distance_from_clean(ends, donor[prompt], own[prompt], scale)
        return torch.cat([columns, far[:, None]], dim=1)

    return readout
