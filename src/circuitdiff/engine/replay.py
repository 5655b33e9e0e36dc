"""The clean run, with which executors compare, and calling a model's layers again on some positions only.

A replayed layer is the model's own module with the recorded keywords, cut to the positions of the window. They are cut
by keyword name, never by "the axis of size T": a batch of T prompts would be cut along the wrong axis.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitdiff.engine.attention import AttentionCall, attend, handled_by
from circuitdiff.engine.model import Model, bypassed
from circuitdiff.errors import InputError

Keywords = Mapping[str, Any]

# The axis that counts positions, from the end. A mask's rows are its queries; its keys are not cut.
_POSITION_AXIS = {"attention_mask": -2, "position_ids": -1, "position_embeddings": -2, "cache_position": -1}


@dataclass(frozen=True)
class CleanRun:
    """One forward pass of a bucket; lists have an entry per layer.

    Only positions >= `start` are kept, but for keys and values, which later positions read.
    """

    tokens: Int[Tensor, "prompt pos"]
    start: int
    resid_pre: list[Float[Tensor, "prompt kept d_model"]]
    q: list[Float[Tensor, "prompt head kept d_query"]]
    k: list[Float[Tensor, "prompt kv_head pos d_query"]]
    v: list[Float[Tensor, "prompt kv_head pos d_head"]]
    z: list[Float[Tensor, "prompt kept head d_head"]]
    attention_output: list[Float[Tensor, "prompt kept d_model"]]
    keywords: list[Keywords]
    logits: Float[Tensor, "prompt d_vocab"]

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    def z_at(self, layer: int, position: int) -> Float[Tensor, "prompt head d_head"]:
        return self.z[layer][:, position - self.start]


@torch.no_grad()
def run_clean(model: Model, tokens: Int[Tensor, "prompt pos"], start: int = 0) -> CleanRun:
    """Runs the unedited model on prompts of one length."""
    q, k, v, z, outputs = [], [], [], [], []

    def handler(call: AttentionCall) -> Tensor:
        own = attend(call)
        q.append(call.q[:, :, start:].clone())
        k.append(call.k)
        v.append(call.v)
        z.append(own[:, start:].clone())
        return own

    def keep_output(_: nn.Module, __: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        outputs.append(output[0][:, start:].clone())

    with ExitStack() as stack:
        for attention in model.attentions:
            stack.callback(attention.register_forward_hook(keep_output).remove)
        calls = stack.enter_context(recorded(model.layers))
        stack.enter_context(handled_by(handler))
        logits = model.forward(tokens)
    resid_pre = [hidden[:, start:].clone() for hidden, _ in calls]
    keywords: list[Keywords] = [keyword for _, keyword in calls]
    return CleanRun(tokens, start, resid_pre, q, k, v, z, outputs, keywords, logits)


@contextmanager
def edited_input(layer: nn.Module, edited: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While this lasts, `edited` changes the residual stream that enters a layer."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:  # the residual stream comes first, or by name (`recorded`)
            return (edited(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": edited(kwargs["hidden_states"])}

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def recorded(layers: Sequence[nn.Module]) -> Iterator[list[tuple[Tensor, dict[str, Any]]]]:
    """Collects each layer's input and keyword arguments while the model runs once."""
    calls: list[tuple[Tensor, dict[str, Any]]] = []

    def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(type(layer).forward).bind(layer, *args, **kwargs).arguments
        keywords = {k: v for k, v in list(given.items())[1:] if k not in ("kwargs", "hidden_states")}
        if "hidden_states" not in given:
            raise InputError(f"{type(layer).__name__} does not call its input hidden_states; it is not supported")
        calls.append((given["hidden_states"], keywords | given.get("kwargs", {})))

    with ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_pre_hook(record, with_kwargs=True)
            stack.callback(handle.remove)
        yield calls


def cut(keywords: Keywords, positions: Int[Tensor, " row"], *, one_each: bool = False) -> dict[str, Any]:
    """The keywords for some positions of one prompt, shared by a batch of any size.

    The prompts of a bucket have no padding and equal lengths, so the first prompt's masks and position tables are
    everyone's. With `one_each`, batch row i is a prompt of one token, which sits at `positions[i]`.

    Raises: InputError for anything but a plain value under a keyword that nobody has told us how to cut.
    """

    def cut_tensor(name: str, value: Tensor) -> Tensor:
        axis = _POSITION_AXIS[name]
        if name != "cache_position" and not torch.equal(value, value[:1].expand_as(value)):
            raise InputError(f"the model gives prompts of one length different {name}; it is not supported")
        shared = value if name == "cache_position" else value[:1]
        rows = shared.index_select(shared.dim() + axis, positions.to(value.device))
        if not one_each or name == "cache_position":
            return rows
        return rows.transpose(0, axis)  # the batch axis had size one

    result: dict[str, Any] = {}
    for name, value in keywords.items():
        if not isinstance(value, bool | int | float | str | None) and name not in _POSITION_AXIS:
            raise InputError(f"a decoder layer takes {name!r}, which circuitdiff cannot cut to a few positions")
        if isinstance(value, Tensor):
            value = cut_tensor(name, value)
        elif isinstance(value, tuple):
            value = tuple(cut_tensor(name, part) for part in value)
        result[name] = value
    return result


def run_layer(
    layer: nn.Module, hidden: Float[Tensor, "batch row d_model"], keywords: Keywords
) -> Float[Tensor, "batch row d_model"]:
    """The layer's output; some architectures wrap it in a tuple.

    Raises: InputError if it is of another form.
    """
    out = layer(hidden, **keywords)
    out = out[0] if isinstance(out, tuple) and out else out
    if not isinstance(out, Tensor) or out.shape != hidden.shape:
        form = f"a {tuple(out.shape)} tensor" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise InputError(f"{type(layer).__name__} gives out {form}, not its residual stream; it is not supported")
    return out


def embed(
    model: Model, tokens: Int[Tensor, "prompt pos"]
) -> tuple[Float[Tensor, "prompt pos d_model"], list[Keywords]]:
    """What enters the first layer, and the keywords of every layer, without running any layer."""
    with recorded(model.layers) as calls, bypassed(model.layers):
        model.forward(tokens)
    return calls[0][0], [keywords for _, keywords in calls]
