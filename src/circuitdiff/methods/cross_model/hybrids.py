"""Runs of the recipient in which some heads are given what was read elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine import Edit, Model
from circuitdiff.engine.branch import BRANCHING
from circuitdiff.engine.executor import Readout
from circuitdiff.engine.memory import DEFAULT_MEMORY_GB
from circuitdiff.evaluation.answers import N_VALUES, Evaluation, answers_readout, evaluation_of
from circuitdiff.evaluation.circuits import Progress
from circuitdiff.evaluation.edited import Editing, run_edited
from circuitdiff.methods.cross_model.activations import Activations, Patch, sampled, shared
from circuitdiff.methods.cross_model.compatibility import distance_from_clean, spread
from circuitdiff.prompts import Bucket, Pairs

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

    def begins(hybrid: Hybrid, bucket: Bucket) -> int:
        return min((bucket.positions[patch.role] for patch in hybrid), default=bucket.length - 1)

    def edits(part: Sequence[Hybrid], bucket: Bucket) -> list[Edit]:
        return _edits(part, bucket, device)

    values = run_edited(
        recipient,
        pairs,
        hybrids,
        Editing(roles, begins, edits, _split if branching else None),
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


def _edits(hybrids: Sequence[Hybrid], bucket: Bucket, device: torch.device) -> list[Edit]:
    """One edit for each patch, of all the hybrids that have it."""
    owners: dict[Patch, list[int]] = {}
    for i, hybrid in enumerate(hybrids):
        for patch in hybrid:
            owners.setdefault(patch, []).append(i)
    return [
        Edit(
            patch.layer,
            patch.what,
            bucket.positions[patch.role],
            torch.tensor(patch.heads, device=device),
            torch.tensor(some),
            _for_bucket(patch, bucket).to(device),
        )
        for patch, some in owners.items()
    ]


def _for_bucket(patch: Patch, bucket: Bucket) -> Float[Tensor, "1 prompt head width"]:
    values = patch.values[bucket.prompts.to(patch.values.device)][None]
    return values[..., : bucket.length] if patch.what == "pattern" else values


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
