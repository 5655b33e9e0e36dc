"""How far the weights of two loaded models are apart, by layer and kind.

Weights are compared as the models compute with them: adapters merged, in their precision, tensor by tensor. Which
rows make q, k and v is read off the model (`engine.weights`), not off the names of its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitdiff.engine import Model
from circuitdiff.engine.weights import Slice, head_slices
from circuitdiff.errors import InputError
from circuitdiff.models.fingerprint import refuse_changed

Kind = Literal["embeddings", "q", "k", "v", "qkv", "o", "mlp", "norms", "biases", "head", "other", "all"]

COUNTS = 1e-3  # of the largest singular value: what smaller ones do is no rank
MOST_RANK = 128  # that is told apart
_FURTHER = 16  # directions that are followed beside, so that the last of MOST_RANK is known well
_AT_ONCE = 2**22  # numbers that are summed in double precision at once


@dataclass(frozen=True)
class WeightChange:
    """How far the weights of one kind in one layer are from the base's.

    `rank` is the number of singular values of the difference above `COUNTS` times its largest, the largest among these
    matrices, and at most `MOST_RANK`: where that stands, it may be more. In 16 bits, rounding raises it. See
    `numerical_rank`.
    """

    layer: int | None  # from zero; None for what is in no layer, or in all
    kind: Kind
    n_numbers: int  # that both models have
    n_changed: int
    change: float  # Frobenius norm of the difference
    size: float  # Frobenius norm of the base's
    relative: float | None  # change / size; None where the base has only zeros and the variant has not
    rank: int | None  # None where there is no matrix


class WeightChanges(NamedTuple):
    """All numbers of two models, by layer and kind; and in words the tensors that do not stand beside one another."""

    weights: tuple[WeightChange, ...]
    not_compared: tuple[str, ...]


@torch.no_grad()
def weight_changes(base: Model, variant: Model) -> WeightChanges:
    """How far each kind of weights in each layer is from the base's; weights that are tied count once.

    Both models are first held against the SHA-256 of every weight that was recorded when they were loaded. Beside the
    models, two tensors are in memory. Of embeddings with other numbers of rows, the first rows are compared.

    Raises: CheckError if a weight has changed since.
    """
    refuse_changed((base, variant), {}, "a later model")
    own, theirs = (each.module.state_dict() for each in (base, variant))
    places = _places(base)
    found: dict[tuple[int | None, Kind], list[WeightChange]] = {}
    not_compared = []
    for name in _names(base, variant):
        if name not in own or name not in theirs:
            not_compared.append(f"{name} is in {(base if name in own else variant).name} only")
            continue
        layer, parts = places.get(name, (None, (("other", Slice(name)),)))
        one, other, words = _in_common(own[name], theirs[name], parts[0][0])
        not_compared += [f"{name}: {words}"] if words else []
        if one is None or other is None:
            continue
        difference = other.to(torch.promote_types(one.dtype, torch.float32), copy=True).sub_(one.to(other.device))
        for kind, part in parts:
            change = _measured(layer, kind, _cut(one, part), _cut(difference, part))
            found.setdefault((layer, kind), []).append(change)
    return WeightChanges(tuple(summed(*place, parts) for place, parts in found.items()), tuple(not_compared))


def summed(layer: int | None, kind: Kind, parts: Iterable[WeightChange]) -> WeightChange:
    """Several changes as one."""
    parts = list(parts)
    change, size = math.hypot(*(each.change for each in parts)), math.hypot(*(each.size for each in parts))
    relative = change / size if size else None if change else 0.0
    ranks = [each.rank for each in parts if each.rank is not None]
    numbers = sum(each.n_numbers for each in parts), sum(each.n_changed for each in parts)
    return WeightChange(layer, kind, *numbers, change, size, relative, max(ranks, default=None))


def numerical_rank(change: Float[Tensor, "row column"]) -> int:
    """How many singular values are above `COUNTS` times the largest, at most `MOST_RANK`.

    Of all singular values where the shorter side is small. Else of those of the matrix projected on `MOST_RANK` and a
    few more random directions of its range, after one power iteration: exact up to rounding for a matrix of lower
    rank; where singular values fall off slowly it may come out too low, since a projection's are never above the
    matrix's own.

    Source: Halko, Martinsson & Tropp 2011 (arXiv:0909.4061), algorithm 4.4.
    """
    n = MOST_RANK + _FURTHER
    if min(change.shape) > 2 * n:
        g = torch.Generator().manual_seed(0)
        basis = change @ torch.randn(change.shape[1], n, generator=g).to(change)
        basis = change @ torch.linalg.qr(change.T @ torch.linalg.qr(basis).Q).Q
        change = torch.linalg.qr(basis).Q.T @ change
    values = torch.linalg.svdvals(change)
    return min(MOST_RANK, int((values > COUNTS * values[:1]).sum()))


def _measured(layer: int | None, kind: Kind, base: Tensor, difference: Tensor) -> WeightChange:
    """`difference` and the `base` that it is from; a stack of matrices has the largest rank among them."""
    n_changed, rank = int((difference != 0).sum()), None
    if difference.dim() > 1 and kind not in ("norms", "biases"):
        matrices = difference.reshape(-1, *difference.shape[-2:]) if n_changed else ()
        rank = max((numerical_rank(each) for each in matrices), default=0)
    alone = WeightChange(layer, kind, base.numel(), n_changed, _norm(difference), _norm(base), None, rank)
    return summed(layer, kind, [alone])


def _norm(tensor: Tensor) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in tensor.reshape(-1).split(_AT_ONCE)))


def _cut(tensor: Tensor, part: Slice) -> Tensor:
    if part.axis is None:
        return tensor
    return tensor.index_select(part.axis, torch.tensor(part.index, device=tensor.device))


def _names(base: Model, variant: Model) -> list[str]:
    """Of all tensors that a checkpoint would hold; of tied ones the first, unless one of the models has them apart."""
    saved = base.module.state_dict().keys() | variant.module.state_dict().keys()
    named = [
        name for each in (base, variant) for name, _ in (*each.module.named_parameters(), *each.module.named_buffers())
    ]
    return [name for name in dict.fromkeys(named) if name in saved]


def _in_common(base: Tensor, variant: Tensor, kind: Kind) -> tuple[Tensor | None, Tensor | None, str]:
    """What both have, and in words what only one has. Of embeddings, further rows are those of further tokens."""
    if base.shape == variant.shape:
        return base, variant, ""
    sizes = [" × ".join(map(str, each.shape)) for each in (variant, base)]
    if kind not in ("embeddings", "head") or base.shape[1:] != variant.shape[1:]:
        return None, None, f"{sizes[0]}, not {sizes[1]}"
    rows = min(len(base), len(variant))
    return base[:rows], variant[:rows], f"{sizes[0]}, not {sizes[1]}; the first {rows:,} rows are compared"


Parts = Sequence[tuple[Kind, Slice]]


def _places(model: Model) -> dict[str, tuple[int | None, Parts]]:
    """Of every parameter, the layer that it is in and what its rows or columns are."""
    layer_of = {id(part): i for i, layer in enumerate(model.layers) for part in layer.modules()}
    attention = {id(part) for each in model.attentions for part in each.modules()}
    projection = {id(part) for each in model.projections for part in each.modules()}
    split = _split_attentions(model)
    head = model.module.get_output_embeddings()
    places: dict[str, tuple[int | None, Parts]] = {}
    for path, part in model.module.named_modules():
        layer = layer_of.get(id(part))
        for own, parameter in part.named_parameters(recurse=False):
            name = f"{path}.{own}" if path else own
            kind: Kind = "other" if layer is None else "mlp"
            if parameter.dim() < 2 or "norm" in path.rpartition(".")[2]:  # some norms have a row for each head
                kind = (
                    "biases"
                    if any(p.dim() > 1 and p is not parameter for p in part.parameters(recurse=False))
                    else "norms"
                )
            elif part is head or isinstance(part, nn.Embedding):
                kind = "head" if part is head else "embeddings"
            elif id(part) in projection:
                kind = "o"
            elif id(part) in attention:
                kind = "qkv"
            places[name] = layer, split.get(name, ((kind, Slice(name)),)) if kind == "qkv" else ((kind, Slice(name)),)
    return places


def _split_attentions(model: Model) -> dict[str, Parts]:
    """By name, the parameters whose rows or columns are q, k and v and nothing else. Layers that are built alike are
    split alike."""
    known: dict[Any, dict[str, Parts]] = {}
    names = {id(parameter): name for name, parameter in model.module.named_parameters()}
    split: dict[str, Parts] = {}
    for layer, attention in enumerate(model.attentions):
        parameters = dict(attention.named_parameters())
        form = tuple((own, parameter.shape) for own, parameter in parameters.items())
        if form not in known:
            by_name = _split(model, layer)
            known[form] = {own: by_name[names[id(p)]] for own, p in parameters.items() if names[id(p)] in by_name}
        split |= {names[id(parameters[own])]: parts for own, parts in known[form].items()}
    return split


def _split(model: Model, layer: int) -> dict[str, Parts]:
    """The same for one layer. What cannot be told apart is left out."""
    sizes = {name: parameter.shape for name, parameter in model.module.named_parameters()}
    parts: dict[str, list[tuple[Kind, Slice]]] = {}
    for kind in ("q", "k", "v"):
        try:
            for part in head_slices(model, layer, range(model.n_heads), kind):
                parts.setdefault(part.parameter, []).append((kind, part))
        except InputError:  # they depend on something else, too
            continue
    return {name: each for name, each in parts.items() if _whole(sizes[name], [part for _, part in each])}


def _whole(shape: torch.Size, parts: Sequence[Slice]) -> bool:
    """Whether the slices are all of a parameter, and nothing twice."""
    axes = {part.axis for part in parts}
    if None in axes or len(axes) > 1:
        return len(parts) == 1
    index = sorted(i for part in parts for i in part.index)
    return index == list(range(shape[axes.pop() or 0]))
