"""Weight grafting: the donor's own weights in the recipient, on the recipient's own inputs.

A patched activation of a late head also holds what the donor's earlier parts did. Grafted weights do not: they say what
caused a gain.

1. The model's weights are split into parts: the groups' heads (q, k, v and o slices), and all else by kind.
2. The recipient is run with each part alone grafted, and with parts grafted one after the other until it is the donor;
   the donor is run with each part taken from the recipient ("left out").
3. Whose is the gain? Shares of donor - recipient (`stats.shapley.attribute`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine import Model
from circuitdiff.engine.capture import capture
from circuitdiff.engine.fits import check_pairs
from circuitdiff.engine.mixtures import Mixture, mixtures_of, run_mixtures
from circuitdiff.engine.weights import (
    MLP_SIDES,
    Projection,
    Slice,
    complement,
    head_slices,
    is_tied,
    mlp_sides,
    sharing_heads,
    swapped,
    untied,
)
from circuitdiff.errors import InputError
from circuitdiff.evaluation.answers import Evaluation, Score, answers_readout, evaluation_of
from circuitdiff.evaluation.circuits import Progress, check_heads
from circuitdiff.evaluation.shapes import by_layer, named_parts
from circuitdiff.models.checks import tolerance_for
from circuitdiff.models.comparable import Shape, check_comparable
from circuitdiff.prompts import Pairs
from circuitdiff.readable import Readable
from circuitdiff.stats.shapley import Attribution, Subset, attribute, needed_subsets

Grafted = Group | Circuit | Mapping[str, Group | range] | Literal["matrices"]

ALL_PROJECTIONS: tuple[Projection, ...] = ("q", "k", "v", "o")
# The rest of the model, in the order in which it enters: whatever no group or range of layers has taken.
KINDS = ("other heads", "mlps", "norms", "embeddings", "unembedding", "the rest")
_LEFT_BY_MATRICES = {"other heads": "the rest of attention", "mlps": "the rest of the MLPs"}  # biases; experts


@dataclass(frozen=True, repr=False)
class Part(Readable):
    """Weights that are grafted together."""

    slices: tuple[Slice, ...]
    heads: tuple[Head, ...] = ()
    also_touched: tuple[Head, ...] = ()  # query heads beyond these that read the same grafted keys or values


def split(
    model: Model, grafted: Grafted, projections: Sequence[Projection], *, per_head: bool = False
) -> dict[str, Part]:
    """The named groups and ranges of layers, or matrices, then the rest of the model by kind; together all weights.

    Raises: InputError if a head or layer does not exist, or a head's weights cannot be told from others'.
    """
    named = _matrices(model) if grafted == "matrices" else _named(model, grafted, projections, per_head=per_head)
    if clash := sorted(set(named) & set(KINDS)):
        raise InputError(f"{clash[0]!r} is the name of what the groups leave; call the group otherwise")
    taken = [piece for part in named.values() for piece in part.slices]
    kinds = _kinds(model)
    for kind in KINDS:
        left = complement(model.module, taken, [name for name, its in kinds.items() if its == kind])
        if left:
            named[_LEFT_BY_MATRICES.get(kind, kind) if grafted == "matrices" else kind] = Part(tuple(left))
    return named


def layer_ranges(n_layers: int, begins: Sequence[int] | None) -> dict[str, range]:
    """All layers in ranges that begin at these layers, and at 0; lower ones first. None: in the middle.

    Raises: InputError if a range has no layer.
    """
    inner = [n_layers // 2] if begins is None else list(begins)
    bounds = [0, *inner, n_layers]
    if any(first >= last for first, last in pairwise(bounds)):
        raise InputError(
            f"ranges of layers begin at rising layers between 1 and {n_layers - 1}; got {', '.join(map(str, inner))}"
        )
    return {f"layers {first} to {last - 1}": range(first, last) for first, last in pairwise(bounds)}


def head_part(model: Model, group: Group, projections: Sequence[Projection]) -> Part:
    """The weights of a group's heads, whatever its role.

    Raises: InputError if the model lacks a head or its weights cannot be told from others'.
    """
    check_heads(model, group.heads)
    layers = by_layer(group.heads)
    pieces = [
        piece
        for layer, heads in layers.items()
        for projection in projections
        for piece in head_slices(model, layer, heads, projection)
    ]
    sharing = layers if {"k", "v"} & set(projections) else {}
    touched = [Head(layer, i) for layer, heads in sharing.items() for i in sharing_heads(model, heads)]
    return Part(tuple(pieces), group.heads, tuple(touched))


def _named(
    model: Model,
    grafted: Group | Circuit | Mapping[str, Group | range],
    projections: Sequence[Projection],
    per_head: bool,
) -> dict[str, Part]:
    parts = named_parts(grafted, per_head=per_head)
    return {name: _part(model, each, projections) for name, each in parts.items()}


def _matrices(model: Model) -> dict[str, Part]:
    """All layers' weights by what they do: make q, k, v; write z out; read for the MLP, and write for it."""
    layers, heads = range(model.n_layers), range(model.n_heads)
    named = {of: [s for layer in layers for s in head_slices(model, layer, heads, of)] for of in ALL_PROJECTIONS}
    found: dict[str, Sequence[Slice]] = {**named}
    sides = [mlp_sides(model, layer) for layer in layers]
    found |= {side: [Slice(name) for each in sides for name in each[side]] for side in MLP_SIDES}
    return {name: Part(tuple(slices)) for name, slices in found.items() if slices}


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
    inside, output = list(module.modules()), module.get_output_embeddings()
    kinds: dict[int, str] = {}
    for kind, parameters in (  # of a parameter that is of several, the last counts
        ("mlps", [p for layer in model.layers for p in layer.parameters()]),
        ("other heads", [p for attention in model.attentions for p in attention.parameters()]),
        ("norms", [p for part in inside if "norm" in type(part).__name__.lower() for p in part.parameters(False)]),
        ("unembedding", [] if output is None else output.parameters()),
        ("embeddings", [p for part in inside if isinstance(part, nn.Embedding) for p in part.parameters()]),
    ):
        kinds |= {id(parameter): kind for parameter in parameters}
    return {name: kinds.get(id(parameter), "the rest") for name, parameter in module.named_parameters()}


_FEW = 4  # prompts on which the whole graft is held against the donor


@dataclass(frozen=True, repr=False)
class Graft(Readable):
    """The recipient with parts of the donor's weights, and the donor, on the same prompts."""

    order: tuple[str, ...]  # the groups, causes first, then the rest by kind
    parts: Mapping[str, Part]
    unchanged: tuple[str, ...]  # parts whose weights are the same in both models
    donor: Evaluation
    runs: Mapping[Subset, Evaluation]
    whole_graft_error: float  # everything grafted against the donor itself, relative to the largest logit

    @property
    def recipient(self) -> Evaluation:
        return self.runs[frozenset()]

    def attribution(self, score: Score = "accuracy") -> Attribution:
        """Shares of the gain in this score, with intervals over scenarios."""
        return attribute(
            {subset: answers.scored(score) for subset, answers in self.runs.items()},
            self.donor.scored(score),
            self.donor.scenarios.numpy(),
            self.order,
        )


@torch.no_grad()
def graft(
    donor: Model,
    recipient: Model,
    group: Grafted,
    pairs: Pairs,
    *,
    projections: tuple[Projection, ...] = ALL_PROJECTIONS,
    per_head: bool = False,
) -> Graft:
    """What the recipient answers with the donor's weights in some of its parts, at all positions.

    Parts are the groups' heads, whatever their role, or ranges of layers, or with "matrices" the weights of all layers
    that make q, k and v, write out z, and read and write for the MLPs; and then the rest of the model by kind. As
    causes the last group comes first, or the lowest layers. Query heads that share a key/value head share its weights:
    `Part.also_touched` names those beyond the group; with projections ("q", "o") there are none. Weights that two
    groups share are in both. With `per_head` a lone group's heads are the parts.

    Raises: InputError if the models do not fit together, a head or layer does not exist, heads' weights cannot be told
    apart, or all weights grafted do not make the donor.
    """
    [found] = graft_several(donor, recipient, [Grafting(group, projections, per_head)], pairs)
    return found


@dataclass(frozen=True)
class Grafting:
    """The parts of one graft; see `graft`."""

    parts: Grafted
    projections: tuple[Projection, ...] = ALL_PROJECTIONS
    per_head: bool = False


@torch.no_grad()
def graft_several(
    donor: Model, recipient: Model, wanted: Sequence[Grafting], pairs: Pairs, *, progress: Progress | None = None
) -> list[Graft]:
    """`graft` of several divisions into parts, whose runs share what they have in common.

    Raises: InputError as `graft` does.
    """
    check_models(donor, recipient, pairs)
    with _alike_untied(donor, recipient):
        divided = [_Divided.of(donor, recipient, each) for each in wanted]
        everything = [piece for part in divided[0].parts.values() for piece in part.slices]

        def all_grafted(few: Pairs) -> Tensor:
            with swapped(recipient, everything, donor):
                return capture(recipient, few.clean_prompts, readout=lambda logits, _: logits)

        error = whole_graft_error(donor, recipient, all_grafted, pairs)
        mixtures = list(dict.fromkeys(mixture for each in divided for mixture in each.mixtures.values()))
        answers = dict(zip(mixtures, _answers(donor, recipient, mixtures, pairs, progress), strict=True))
    return [
        Graft(
            order=each.order,
            parts=each.parts,
            unchanged=tuple(name for name in each.order if name not in each.changed),
            donor=answers[_DONOR],
            runs={subset: answers[mixture] for subset, mixture in each.mixtures.items()},
            whole_graft_error=error,
        )
        for each in divided
    ]


@torch.no_grad()
def graft_alone(
    donor: Model,
    recipient: Model,
    groups: Sequence[Group],
    pairs: Pairs,
    *,
    projections: Sequence[Projection] = ALL_PROJECTIONS,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """The recipient with each group's weights grafted, one group at a time: for random groups to compare with.

    Raises: InputError as `graft` does.
    """
    check_models(donor, recipient, pairs)
    with _alike_untied(donor, recipient):
        mixtures = [Mixture(head_part(recipient, group, projections).slices) for group in groups]
        return _answers(donor, recipient, mixtures, pairs, progress)


_RECIPIENT, _DONOR = Mixture(()), Mixture((), inverted=True)


@dataclass(frozen=True)
class _Divided:
    """A model's weights in parts, and how each run is mixed."""

    order: tuple[str, ...]
    parts: Mapping[str, Part]
    changed: Subset
    mixtures: Mapping[Subset, Mixture]  # of every run that is needed

    @classmethod
    def of(cls, donor: Model, recipient: Model, wanted: Grafting) -> _Divided:
        projections = wanted.projections
        if set(projections) - set(ALL_PROJECTIONS) or not projections or len(set(projections)) < len(projections):
            given = ", ".join(projections) or "none"
            raise InputError(f"projections are some of q, k, v, o, each once; got {given}")
        parts = split(recipient, wanted.parts, wanted.projections, per_head=wanted.per_head)
        ordered = _ordered(parts, wanted)
        alone = mixtures_of(recipient, donor, [Mixture(part.slices) for part in parts.values()])
        changed = frozenset(name for name, differs in zip(parts, alone.entries, strict=True) if differs)
        mixtures = {subset: _mixture(parts, changed, subset & changed) for subset in needed_subsets(ordered)}
        mixtures[frozenset(ordered)] = _DONOR
        return cls(ordered, parts, changed, mixtures)


def _mixture(parts: Mapping[str, Part], changed: Subset, subset: Subset) -> Mixture:
    """A subset of the changed parts; all but one of them is the donor with that one taken from the recipient."""
    missing = changed - subset
    if not subset or not missing:
        return _DONOR if subset else _RECIPIENT
    left_out = len(missing) == 1 and len(subset) > 1
    names = missing if left_out else subset
    return Mixture(tuple(piece for name in sorted(names) for piece in parts[name].slices), left_out)


def _answers(
    donor: Model, recipient: Model, mixtures: Sequence[Mixture], pairs: Pairs, progress: Progress | None
) -> list[Evaluation]:
    readout = answers_readout(pairs, recipient.device)
    found = run_mixtures(mixtures_of(recipient, donor, mixtures), pairs.clean_prompts, readout, progress)
    return [evaluation_of(values, pairs) for values in found]


def whole_graft_error(donor: Model, recipient: Model, grafted: Callable[[Pairs], Tensor], pairs: Pairs) -> float:
    """All weights grafted must make the donor, or the parts do not hold all of it. `grafted`: the logits with all."""
    few = pairs.select(torch.arange(min(_FEW, len(pairs))))
    theirs, made = capture(donor, few.clean_prompts, readout=lambda logits, _: logits), grafted(few)
    error = float((made - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
    if not error <= tolerance_for(recipient.module):
        raise InputError(
            f"all weights of {donor.name} grafted into {recipient.name} do not make {donor.name}: logits differ by "
            f"{error:.2g} of the largest; the two differ outside their weights (another config?): use one base's"
        )
    return error


def _ordered(parts: Mapping[str, Part], wanted: Grafting) -> tuple[str, ...]:
    """Single heads and ranges of layers from below, or groups from the last; then the rest of the model by kind."""
    groups = [name for name in parts if name not in KINDS]
    if wanted.parts == "matrices":
        return tuple(parts)
    ranges = dict(wanted.parts) if isinstance(wanted.parts, Mapping) else {}
    begins = {name: each.start for name, each in ranges.items() if isinstance(each, range)}
    if wanted.per_head:
        chosen = sorted(groups, key=lambda name: parts[name].heads)
    elif ranges and len(begins) == len(ranges):
        chosen = sorted(begins, key=lambda name: begins[name])
    else:
        chosen = groups[::-1]
    return (*chosen, *(name for name in KINDS if name in parts))


@contextmanager
def _alike_untied(donor: Model, recipient: Model) -> Iterator[None]:
    """An adapter of the head alone unties it: then both models have the same parts only if neither ties them.

    Afterwards each is as it was: with another variant the parts of a graft would otherwise depend on this one.
    """
    if is_tied(donor) == is_tied(recipient):
        yield
    else:
        with untied(donor if is_tied(donor) else recipient):
            yield


def check_models(donor: Model, recipient: Model, pairs: Pairs) -> None:
    check_pairs(recipient, pairs, "grafting")
    check_comparable(Shape.of(donor, pairs), Shape.of(recipient, pairs))
    if donor.dtype != recipient.dtype:
        raise InputError(
            f"{donor.name} is in {donor.dtype} and {recipient.name} in {recipient.dtype}; load both in one dtype"
        )
