"""A model's weights in parts that are grafted one by one: groups of heads, ranges of layers, and the rest by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine import Model
from circuitdiff.engine.weights import Projection, Slice, complement, head_slices, sharing_heads
from circuitdiff.errors import InputError

Grafted = Group | Circuit | Mapping[str, Group | range]

# The rest of the model, in the order in which it enters: whatever no group or range of layers has taken.
KINDS = ("other heads", "mlps", "norms", "embeddings", "unembedding", "the rest")


@dataclass(frozen=True)
class Part:
    """Weights that are grafted together."""

    slices: tuple[Slice, ...]
    heads: tuple[Head, ...] = ()
    also_touched: tuple[Head, ...] = ()  # query heads beyond these that read the same grafted keys or values


def split(
    model: Model, grafted: Grafted, projections: Sequence[Projection], *, per_head: bool = False
) -> dict[str, Part]:
    """The named groups and ranges of layers, then the rest of the model by kind; together all weights.

    Raises: InputError if a head or layer does not exist, or a head's weights cannot be told from others'.
    """
    named = {name: _part(model, each, projections) for name, each in _named(grafted, per_head=per_head).items()}
    taken = [piece for part in named.values() for piece in part.slices]
    kinds = _kinds(model)
    for kind in KINDS:
        left = complement(model.module, taken, [name for name, its in kinds.items() if its == kind])
        if left:
            named[kind] = Part(tuple(left))
    return named


def head_part(model: Model, group: Group, projections: Sequence[Projection]) -> Part:
    """The weights of a group's heads, whatever its role.

    Raises: InputError if the model lacks a head or its weights cannot be told from others'.
    """
    layers: dict[int, set[int]] = {}
    for head in group.heads:
        if head.layer >= model.n_layers or head.index >= model.n_heads:
            raise InputError(
                f"head {head} does not exist: {model.name} has {model.n_layers} layers of {model.n_heads} heads"
            )
        layers.setdefault(head.layer, set()).add(head.index)
    pieces = [
        piece
        for layer, heads in sorted(layers.items())
        for projection in projections
        for piece in head_slices(model, layer, sorted(heads), projection)
    ]
    shares_kv = bool({"k", "v"} & set(projections))
    touched = [
        Head(layer, i)
        for layer, heads in sorted(layers.items())
        for i in sharing_heads(model, sorted(heads))
        if shares_kv
    ]
    return Part(tuple(pieces), group.heads, tuple(touched))


def _named(grafted: Grafted, *, per_head: bool) -> Mapping[str, Group | range]:
    if per_head:
        if not isinstance(grafted, Group):
            raise InputError("per_head takes a single group apart; give a Group, not several")
        return {str(head): Group(grafted.at, (head,)) for head in grafted.heads}
    if isinstance(grafted, Group):
        return {"group": grafted}
    named = grafted.groups if isinstance(grafted, Circuit) else grafted
    if clash := sorted(set(named) & set(KINDS)):
        raise InputError(f"{clash[0]!r} is the name of what the groups leave; call the group otherwise")
    return named


def _part(model: Model, each: Group | range, projections: Sequence[Projection]) -> Part:
    if isinstance(each, Group):
        if not each.heads:
            raise InputError("a group to graft needs heads; one has none: leave it out")
        return head_part(model, each, projections)
    if not each or each[0] < 0 or each[-1] >= model.n_layers:
        raise InputError(f"layers {each[0]} to {each[-1]} do not all exist: {model.name} has {model.n_layers} layers")
    inside = {id(parameter) for layer in each for parameter in model.layers[layer].parameters()}
    return Part(tuple(Slice(name) for name, p in model.module.named_parameters() if id(p) in inside))


def _kinds(model: Model) -> dict[str, str]:
    """What kind of weight each parameter is. A tied unembedding is part of the embeddings."""
    module = model.module
    of_heads = {id(p) for attention in model.attentions for p in attention.parameters()}
    in_layers = {id(p) for layer in model.layers for p in layer.parameters()}
    output = module.get_output_embeddings()
    unembedding = set() if output is None else {id(p) for p in output.parameters()}
    embeddings = {id(p) for part in module.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    norms = {
        id(p) for part in module.modules() if "norm" in type(part).__name__.lower() for p in part.parameters(False)
    }

    def kind(parameter: nn.Parameter) -> str:
        for name, members in (
            ("embeddings", embeddings),
            ("unembedding", unembedding),
            ("norms", norms),
            ("other heads", of_heads),
            ("mlps", in_layers),
        ):
            if id(parameter) in members:
                return name
        return "the rest"

    return {name: kind(parameter) for name, parameter in module.named_parameters()}
