"""Finding a decoder's layers and attention by watching one forward pass, and refusing what the engine cannot edit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuitdiff.engine.attention import IMPLEMENTATION, AttentionCall, attend, handled_by
from circuitdiff.engine.replay import cut, recorded, run_layer
from circuitdiff.errors import InputError
from circuitdiff.models.probe import SHORT, prepare, probe_tokens, probing


@dataclass(frozen=True)
class Structure:
    """The parts of a decoder that the engine touches, an entry per layer."""

    layers: Sequence[nn.Module]
    attentions: Sequence[nn.Module]
    projections: Sequence[nn.Module]
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_query: int


@dataclass
class _Seen:
    """What one probing forward pass showed."""

    calls: list[AttentionCall] = field(default_factory=list)
    z: list[Tensor] = field(default_factory=list)
    outputs: dict[nn.Module, Any] = field(default_factory=dict)
    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)


@torch.no_grad()
def find_structure(module: PreTrainedModel, name: str) -> Structure:
    """Runs the model through our attention function and reads off how it is built.

    Raises: InputError if the architecture does not follow transformers' attention interface, gates or normalises z
    before the output projection, has values of another size than queries, shares keys and values between layers, or
    mixes positions outside attention; or if it cannot be run.
    """
    prepare(module)
    try:
        module.set_attn_implementation(IMPLEMENTATION)
    except ValueError as error:
        raise _refusal(name, f"transformers will not let it use another attention function ({error})") from error
    with probing(name, "running on random tokens through circuitdiff's attention"):
        seen = _watch(module)
    attentions = _attentions(module, seen, name)
    n_heads, n_kv_heads, d_query, d_head = _sizes(seen, name)
    layers = [_layer_of(module, attention, name) for attention in attentions]
    if len(set(layers)) < len(layers):
        raise _refusal(name, f"its {len(set(layers))} layers have {len(layers)} attentions, not one each")
    _refuse_shared_keys(seen, name)
    projections = [_projection(seen, i, attention, name) for i, attention in enumerate(attentions)]
    with probing(name, "calling its layers one by one"):
        _refuse_other_mixing(module, layers, name)
    return Structure(layers, attentions, projections, n_heads, n_kv_heads, d_head, d_query)


def _refusal(name: str, why: str) -> InputError:
    return InputError(f"{name} cannot be used: {why}; circuitdiff supports decoders with plain softmax attention")


def _watch(module: PreTrainedModel) -> _Seen:
    seen = _Seen()

    def handler(call: AttentionCall) -> Tensor:
        z = attend(call)
        seen.calls.append(call)
        seen.z.append(z)
        return z

    def keep(part: nn.Module, args: tuple[Any, ...], output: object) -> None:
        seen.outputs[part] = output
        if args and isinstance(args[0], Tensor):
            seen.inputs[part] = args[0]

    with ExitStack() as stack:
        for part in module.modules():
            stack.callback(part.register_forward_hook(keep).remove)
        stack.enter_context(handled_by(handler))
        module(input_ids=probe_tokens(module, longest=SHORT), use_cache=False)  # how it is built shows in any window
    return seen


def _attentions(module: PreTrainedModel, seen: _Seen, name: str) -> list[nn.Module]:
    n_layers = module.config.get_text_config().num_hidden_layers
    if not seen.calls:
        raise _refusal(name, f"{type(module).__name__} does not follow transformers' attention interface")
    if [call.layer for call in seen.calls] != list(range(n_layers)):
        raise _refusal(
            name,
            f"its {n_layers} layers call attention {len(seen.calls)} times, not once each in order (a hybrid of "
            f"attention and other mixers?)",
        )
    return [call.module for call in seen.calls]


def _sizes(seen: _Seen, name: str) -> tuple[int, int, int, int]:
    """The number of heads, of key/value heads, and the sizes of queries and of values, the same in every layer."""
    sizes = {(call.q.shape[1], call.k.shape[1], call.q.shape[3], call.v.shape[3]) for call in seen.calls}
    if len(sizes) > 1:
        raise _refusal(name, "its layers differ in their number of heads or head size")
    return sizes.pop()


def _layer_of(module: PreTrainedModel, attention: nn.Module, name: str) -> nn.Module:
    """The member of the model's list of layers that holds `attention`."""
    for layer in chain(*(part for part in module.modules() if isinstance(part, nn.ModuleList))):
        if any(part is attention for part in layer.modules()):
            return layer
    raise _refusal(name, "its attention is not inside a list of layers")


def _refuse_shared_keys(seen: _Seen, name: str) -> None:
    for i, call in enumerate(seen.calls):
        for other in seen.calls[:i]:
            if _same_values(call.k, other.k) or _same_values(call.v, other.v):
                raise _refusal(name, f"layer {call.layer} shares the keys or values of layer {other.layer}")


def _same_values(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(a.any()) and torch.equal(a, b)


def _projection(seen: _Seen, layer: int, attention: nn.Module, name: str) -> nn.Module:
    """The module whose input is z, and whose output is the attention's."""
    z = seen.z[layer].flatten(2)
    if not z.isfinite().all():
        raise InputError(
            f"{name} computes what is no number in layer {layer}: its weights are damaged; copy them again"
        )
    output = seen.outputs[attention]
    if not isinstance(output, tuple):
        raise _refusal(name, f"the attention of layer {layer} does not return its output in a tuple")
    written = output[0]
    for part in attention.modules():
        given, out = seen.inputs.get(part), seen.outputs.get(part)
        if part is attention or given is None or not isinstance(out, Tensor) or given.numel() != z.numel():
            continue
        if torch.equal(given.reshape(z.shape), z) and torch.equal(out.reshape(written.shape), written):
            return part
    raise _refusal(
        name,
        f"in layer {layer} the output projection's input is not z, or the attention changes its output (gated or "
        f"normalised attention)",
    )


def _refuse_other_mixing(module: PreTrainedModel, layers: Sequence[nn.Module], name: str) -> None:
    """With z frozen, what the second half of the positions give out must not depend on the first half's input."""
    z: list[Tensor] = []

    def keep(call: AttentionCall) -> Tensor:
        z.append(attend(call))
        return z[-1]

    tokens = probe_tokens(module)
    middle = tokens.shape[1] // 2
    with recorded(layers) as calls, handled_by(keep):
        module(input_ids=tokens, use_cache=False)
    for i, (layer, (hidden, keywords)) in enumerate(zip(layers, calls, strict=True)):
        cut(keywords, torch.arange(middle, tokens.shape[1]))  # refuses what a window could not be given
        g = torch.Generator().manual_seed(i)
        noise = torch.randn(hidden.shape, generator=g).to(hidden)
        noise[:, middle:] = 0
        with handled_by(lambda call, z=z[i]: z):
            before, after = (run_layer(layer, each, keywords)[:, middle:] for each in (hidden, hidden + noise))
        slack = max(1e-4, 4 * torch.finfo(hidden.dtype).eps)  # experts share matrix products with other positions
        if not torch.allclose(before, after, rtol=slack, atol=slack / 10):
            raise _refusal(name, f"layer {i} mixes positions outside its attention (a convolution or a recurrence?)")
