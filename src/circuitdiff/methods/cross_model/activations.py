"""What a donor's heads carry and its MLPs add, read once and kept without the donor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.circuit import Group, Head, Mlps
from circuitdiff.engine import Model
from circuitdiff.engine.capture import Carried, read_heads, stream_at_positions
from circuitdiff.engine.fits import check_pairs
from circuitdiff.errors import InputError
from circuitdiff.evaluation.answers import N_VALUES, Evaluation, answers_readout, evaluation_of
from circuitdiff.evaluation.circuits import check_heads, check_layers, check_roles
from circuitdiff.evaluation.shapes import by_layer
from circuitdiff.models.comparable import Shape
from circuitdiff.prompts import Pairs

Carrier = Literal["z", "q", "k", "v", "pattern", "contribution"]

_SAMPLED_TOKENS = 1024  # a random projection of the final stream that keeps distances to a few percent


@dataclass(frozen=True)
class Activations:
    """What chosen heads of a model carry, and MLPs add, at chosen roles of each prompt, and where its runs end."""

    shape: Shape
    what: Carrier
    heads: Mapping[str, Mapping[int, tuple[int, ...]]]  # by role and layer
    values: Mapping[str, Carried]  # of these heads, in their order
    mlps: Mapping[str, Mapping[int, Float[Tensor, "prompt d_model"]]]  # by role and layer, what the MLP adds
    answers: Evaluation
    logits: Float[Tensor, "prompt sampled"]  # of a fixed sample of tokens, centred
    d_vocab: int  # that the sample is drawn from

    def ends_in(self, d_vocab: int) -> Float[Tensor, "prompt shared"]:
        """`logits` of the tokens that are also in the sample of a model with another vocabulary."""
        return shared(self.logits, self.d_vocab, d_vocab)


@dataclass(frozen=True, eq=False)
class Patch:
    """What some heads of one layer, or its MLP, are given at one role of each prompt."""

    what: Carrier | Literal["mlp_out"]
    role: str
    layer: int
    heads: tuple[int, ...]  # none of an MLP
    values: Float[Tensor, " prompt *carried"]  # by head and width; d_model of an MLP


def read_activations(model: Model, pairs: Pairs, groups: Iterable[Group | Mlps], what: Carrier = "z") -> Activations:
    """What the heads of the groups carry on the clean prompts, each at its group's role; nothing else is kept.

    Of `Mlps`, whatever heads are read of, what they add to the residual stream.

    Raises: InputError if a role, head or layer does not exist, `what` is unknown, or MLPs cannot be read.
    """
    return read_several(model, pairs, groups, [what])[what]


def read_several(
    model: Model, pairs: Pairs, groups: Iterable[Group | Mlps], whats: Sequence[Carrier]
) -> dict[Carrier, Activations]:
    """`read_activations` of several kinds, off the same runs."""
    check_pairs(model, pairs, "cross-model patching")
    groups = list(groups)
    wanted = heads_by_role(group for group in groups if isinstance(group, Group))
    mlps = _read_mlps(model, pairs, [part for part in groups if isinstance(part, Mlps)])
    if unknown := [what for what in whats if what not in get_args(Carrier)]:
        raise InputError(f"what is patched must be one of {', '.join(get_args(Carrier))}; got {unknown[0]!r}")
    check_roles(pairs, wanted)
    for layers in wanted.values():
        check_heads(model, (Head(layer, max(heads)) for layer, heads in layers.items()))
    answers_of = answers_readout(pairs, model.device)

    def readout(logits: Float[Tensor, "row d_vocab"], prompt: Int[Tensor, " row"]) -> Float[Tensor, "row value"]:
        columns = answers_of(logits, prompt)
        return torch.cat([columns, sampled(logits).to(columns.dtype)], dim=1)

    values, ends = read_heads(model, pairs.clean_prompts, whats, wanted, readout)
    answers, shape = evaluation_of(ends[:, :N_VALUES], pairs), Shape.of(model, pairs)
    return {
        what: Activations(shape, what, wanted, values[what], mlps, answers, ends[:, N_VALUES:], model.d_vocab)
        for what in whats
    }


def _read_mlps(model: Model, pairs: Pairs, mlps: Sequence[Mlps]) -> dict[str, dict[int, Tensor]]:
    """By role and layer, off one run."""
    layers: dict[str, set[int]] = {}
    for part in mlps:
        layers.setdefault(part.at, set()).update(part.layers)
    if not layers:
        return {}
    check_roles(pairs, layers)
    everyone = sorted(set.union(*layers.values()))
    check_layers(model, everyone)
    at = torch.stack([pairs.positions[role] for role in layers], dim=1)
    found, _ = stream_at_positions(model, "mlp_out", pairs.clean_prompts, at, everyone)
    return {role: {n: found[everyone.index(n), :, i] for n in layers[role]} for i, role in enumerate(layers)}


def heads_by_role(groups: Iterable[Group]) -> dict[str, dict[int, tuple[int, ...]]]:
    """All heads of the groups, by role and layer."""
    found: dict[str, set[Head]] = {}
    for group in groups:
        found.setdefault(group.at, set()).update(group.heads)
    return {role: by_layer(heads) for role, heads in found.items()}


def patches(source: Activations, group: Group | Mlps) -> tuple[Patch, ...]:
    """What gives the heads of a group, or MLPs, what they carry in `source`."""
    if isinstance(group, Mlps):
        return tuple(Patch("mlp_out", group.at, n, (), source.mlps[group.at][n]) for n in sorted(set(group.layers)))
    found = []
    for layer, heads in by_layer(group.heads).items():
        known = source.heads[group.at][layer]
        places = [known.index(head) for head in heads]
        found.append(Patch(source.what, group.at, layer, heads, source.values[group.at][layer][:, places]))
    return tuple(found)


def sampled(logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, "row sampled"]:
    """Logits of a fixed random sample of the vocabulary, centred: a random projection of the final stream."""
    chosen = logits[:, _sample_of(logits.shape[1]).to(logits.device)]
    return chosen - chosen.mean(1, keepdim=True)


def shared(ends: Float[Tensor, "row sampled"], d_vocab: int, other_d_vocab: int) -> Float[Tensor, "row shared"]:
    """What is sampled from one vocabulary, of the tokens that are sampled from the other, too; centred."""
    if d_vocab == other_d_vocab:
        return ends
    chosen = ends[:, torch.isin(_sample_of(d_vocab), _sample_of(other_d_vocab)).to(ends.device)]
    return chosen - chosen.mean(1, keepdim=True)


@cache
def _sample_of(d_vocab: int) -> Int[Tensor, " sampled"]:
    """Tokens in their order: nearly the same for a vocabulary to which some were added."""
    rank = torch.from_numpy(np.random.default_rng(0).random(d_vocab))  # of a token, whatever comes after it
    return rank.argsort()[:_SAMPLED_TOKENS].sort().values
