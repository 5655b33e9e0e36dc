"""Which weights are a head's own, and swapping weights between two models for a while.

No layout is known by name. The entries that a head's q, k or v depends on are those whose gradient is not zero when the
layer reads random numbers; those that its z passes through on the way out likewise. So separate projections, fused ones
in any order, and weights stored either way round are all found alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from circuitdiff.engine.attention import AttentionCall, edited_output, expand_kv, handled_by
from circuitdiff.engine.model import Model
from circuitdiff.engine.replay import embed, run_layer
from circuitdiff.errors import InputError

Projection = Literal["q", "k", "v", "o"]
MLP_SIDES = ("mlp in", "mlp out")


@dataclass(frozen=True)
class Slice:
    """Some rows (axis 0) or columns (axis 1) of one parameter; without an axis, all of it."""

    parameter: str  # its name in the model's module
    axis: int | None = None
    index: tuple[int, ...] = ()


def head_slices(model: Model, layer: int, heads: Sequence[int], projection: Projection) -> list[Slice]:
    """The weights that make these heads' q, k or v, or write out their z.

    k and v are those of the key/value heads that the heads read, which other query heads may read, too. What all heads
    share (a norm of one head's width, the output's bias) is nobody's.

    Raises: InputError if a head's weights cannot be told from the others' (a norm over all heads, an unknown layout).
    """
    parameters = dict(model.attentions[layer].named_parameters())
    touched = _touched(model, layer, heads, projection, parameters)
    shared = _shared(model, layer, heads, projection, {n: parameters[n] for n, t in touched.items() if t.all()})
    names = {id(parameter): name for name, parameter in model.module.named_parameters()}
    found = []
    for name, entries in touched.items():
        if name in shared and entries.dim() > 1:
            raise _refusal(model, layer, projection, f"they depend on all of {name}, as under a norm over all heads")
        if entries.any() and name not in shared:
            cut = _slice(names[id(parameters[name])], entries)
            if cut is None:
                raise _refusal(model, layer, projection, f"they are neither rows nor columns of {name}")
            found.append(cut)
    if not found:
        raise _refusal(model, layer, projection, "no weight of the layer's attention was found to belong to them")
    return found


def mlp_sides(model: Model, layer: int) -> dict[str, list[str]]:
    """The parameters with which a layer's MLP reads the residual stream, "mlp in", and writes into it, "mlp out".

    Told by widths: of what a module that holds a matrix is given and gives back, one is the residual stream's. Whatever
    does not run on two tokens (experts that were not chosen), or holds its weights otherwise, is neither.
    """
    resid, keywords = embed(model, torch.zeros(1, 2, dtype=torch.long))
    attention = {id(parameter) for parameter in model.attentions[layer].parameters()}
    names = {id(parameter): name for name, parameter in model.module.named_parameters()}
    sides: dict[str, list[str]] = {side: [] for side in MLP_SIDES}

    def look(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        if not (args and isinstance(args[0], Tensor) and isinstance(output, Tensor)):
            return
        reads, writes = (each.shape[-1] == resid.shape[-1] for each in (args[0], output))
        if reads != writes:
            own = [names[id(p)] for p in module.parameters(recurse=False)]
            sides[MLP_SIDES[0 if reads else 1]] += own

    with ExitStack() as stack, torch.no_grad():
        for module in model.layers[layer].modules():
            own = [p for p in module.parameters(recurse=False) if id(p) not in attention]
            if any(p.dim() == 2 for p in own):
                stack.callback(module.register_forward_hook(look).remove)
        run_layer(model.layers[layer], resid, keywords[layer])
    return sides


def sharing_heads(model: Model, heads: Sequence[int]) -> list[int]:
    """The other query heads that read the same keys and values."""
    per_kv = model.n_heads // model.n_kv_heads
    kv = {head // per_kv for head in heads}
    return [head for head in range(model.n_heads) if head // per_kv in kv and head not in heads]


@contextmanager
def swapped(model: Model, slices: Sequence[Slice], donor: Model) -> Iterator[None]:
    """While this lasts, `model` has the donor's weights in these slices; afterwards its own again, bit by bit."""
    own, theirs = (dict(each.module.named_parameters()) for each in (model, donor))
    with ExitStack() as stack, torch.no_grad():
        for part in slices:
            stack.enter_context(_swapped(own[part.parameter], theirs[part.parameter], part))
        yield


@contextmanager
def untied(model: Model) -> Iterator[None]:
    """In this block the unembedding, tied to the embeddings before and after, has weights of its own, equal ones."""
    head, config = model.module.get_output_embeddings(), model.module.config.get_text_config()
    shared, setting = head.weight, config.tie_word_embeddings  # pyright: ignore[reportOptionalMemberAccess]
    head.weight = nn.Parameter(shared.data.clone(), requires_grad=False)  # pyright: ignore
    config.tie_word_embeddings = False
    try:
        yield
    finally:
        head.weight, config.tie_word_embeddings = shared, setting  # pyright: ignore


def is_tied(model: Model) -> bool:
    """Whether embeddings and unembedding are one parameter."""
    head = model.module.get_output_embeddings()
    return head is not None and head.weight is model.module.get_input_embeddings().weight


def complement(module: nn.Module, slices: Sequence[Slice], among: Sequence[str]) -> list[Slice]:
    """What `slices` leave of the parameters named in `among`."""
    sizes = {name: parameter.shape for name, parameter in module.named_parameters()}
    left = []
    for name in among:
        taken = [part for part in slices if part.parameter == name]
        if not taken:
            left.append(Slice(name))
        elif all(part.axis is not None for part in taken):  # else all of it is taken
            (axis,) = {part.axis or 0 for part in taken}  # the heads of one layer lie along one axis of a parameter
            index = {i for part in taken for i in part.index}
            if rest := tuple(i for i in range(sizes[name][axis]) if i not in index):
                left.append(Slice(name, axis, rest))
    return left


@contextmanager
def _swapped(own: nn.Parameter, theirs: nn.Parameter, part: Slice) -> Iterator[None]:
    if part.axis is None:
        before = own.data
        try:
            own.data = theirs.data.to(own.device)
            yield
        finally:
            own.data = before
        return
    index = torch.tensor(part.index, device=own.device)
    before = own.data.index_select(part.axis, index)
    try:
        own.data.index_copy_(
            part.axis, index, theirs.data.index_select(part.axis, index.to(theirs.device)).to(own.device)
        )
        yield
    finally:
        own.data.index_copy_(part.axis, index, before)


def _shared(
    model: Model, layer: int, heads: Sequence[int], projection: Projection, whole: Mapping[str, nn.Parameter]
) -> set[str]:
    """Those of the parameters, each touched as a whole by `heads`, that are nobody's: a lone head touches all of them.

    Of several heads, that is; a lone key/value head owns its weights, but the output's bias is never a head's.
    """
    per_kv = model.n_heads // model.n_kv_heads
    owners = model.n_kv_heads if projection in ("k", "v") else model.n_heads
    if owners == 1:
        return {name for name, parameter in whole.items() if projection == "o" and parameter.dim() == 1}
    everyone = len({head // per_kv if projection in ("k", "v") else head for head in heads}) == owners
    if not everyone or not whole:
        return set(whole)
    alone = _touched(model, layer, heads[:1], projection, whole)
    return {name for name, entries in alone.items() if entries.all() and entries.dim() == 1}


def _slice(name: str, touched: Tensor) -> Slice | None:
    """The touched entries as rows, columns or all of a parameter; None if they are none of these."""
    if touched.all():
        return Slice(name)
    if touched.dim() == 1:
        return Slice(name, 0, tuple(touched.nonzero()[:, 0].tolist()))
    if touched.dim() != 2:
        return None
    rows, columns = touched.any(1), touched.any(0)
    if columns.all() == rows.all():
        return None
    return Slice(name, 0 if columns.all() else 1, tuple((rows if columns.all() else columns).nonzero()[:, 0].tolist()))


def _refusal(model: Model, layer: int, projection: Projection, why: str) -> InputError:
    return InputError(
        f"the {projection} weights of single heads in layer {layer} of {model.name} cannot be told apart: {why}; graft "
        f"other projections, or ranges of layers"
    )


def _touched(
    model: Model, layer: int, heads: Sequence[int], projection: Projection, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """By parameter, which entries change what these heads compute from random numbers: those with a gradient.

    In double precision: in 16 bits a gradient that is a sum of two terms is exactly zero now and then.
    """
    g = torch.Generator().manual_seed(layer)
    of_layer = {id(parameter): name for name, parameter in model.layers[layer].named_parameters()}
    attention = {of_layer[id(p)]: p.detach().double().requires_grad_() for p in model.attentions[layer].parameters()}
    wanted = [attention[of_layer[id(parameter)]] for parameter in parameters.values()]
    with torch.enable_grad():
        computed = _computed(model, layer, heads, projection, attention, g)
        total = (computed * _random(computed.shape, g).to(computed.device)).sum()
        found = torch.autograd.grad(total, wanted, allow_unused=True)
    nothing = [torch.zeros_like(parameter, dtype=torch.bool) for parameter in wanted]
    touched = [zero if slope is None else slope != 0 for zero, slope in zip(nothing, found, strict=True)]
    return dict(zip(parameters, touched, strict=True))


class _Enough(Exception):
    """The attention has run; what follows it in the layer need not."""


def _computed(
    model: Model,
    layer: int,
    heads: Sequence[int],
    projection: Projection,
    weights: Mapping[str, Tensor],
    generator: torch.Generator,
) -> Float[Tensor, "*any"]:
    """q, k or v of the heads when the layer reads random numbers; or what it writes when only they have a z.

    `weights`: the attention's, by their names in the layer.
    """
    resid, keywords = embed(model, torch.zeros(1, 2, dtype=torch.long))
    hidden = _random(resid.shape, generator).to(resid.device)
    calls: list[AttentionCall] = []
    written: list[Tensor] = []

    def handler(call: AttentionCall) -> Tensor:
        calls.append(call)
        z = torch.zeros_like(expand_kv(call.v, model.n_heads)).transpose(1, 2)
        if projection == "o":
            shape = z[:, :, heads].shape
            z = z.index_copy(2, torch.tensor(list(heads), device=z.device), _random(shape, generator).to(z.device))
        return z.detach()

    def keep(output: Tensor) -> Tensor:
        written.append(output)
        raise _Enough

    module = model.layers[layer]
    others = {name: p.detach().double() for name, p in module.named_parameters() if name not in weights and p.dim() < 2}
    with handled_by(handler), edited_output(model.attentions[layer], keep), suppress(_Enough):
        functional_call(module, {**others, **weights}, (hidden,), dict(keywords[layer]))
    if projection == "o":
        return written[0]
    values = {"q": calls[0].q, "k": calls[0].k, "v": calls[0].v}[projection]
    computed = expand_kv(values, model.n_heads)[:, list(heads)]
    if projection != "q" or (sinks := calls[0].sinks) is None:
        return computed
    return torch.cat([computed.flatten(), sinks[:, list(heads)].flatten()])  # queries' scores have a sink beside them


def _random(shape: torch.Size, generator: torch.Generator) -> Float[Tensor, "*any"]:
    return torch.randn(shape, generator=generator, dtype=torch.float64)
