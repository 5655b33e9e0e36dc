"""What each layer's MLP adds to the residual stream, found without knowing any module by name.

With its attention's output held fixed, a layer that is taken computes

    output = input + what its attention adds + scale * w,

where w is the output of one of its modules, and what the attention adds depends on the attention alone. `mlp_out` is
scale * w: what enters the residual stream, after a norm that follows the MLP and after a residual multiplier; with w
zero the layer adds nothing but its attention's part. So it is for MLPs after attention and beside it, and for mixtures
of experts. Of several such modules (an MLP, the projection and the dropout it ends in) the last to finish is taken.
They are all the same, but for a constant that only the attention decides.

Where no module does, as in layers that normalise or scale the sum, `mlp_out` can be neither read nor replaced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from dataclasses import replace as with_fields
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitdiff.engine.attention import edited_output
from circuitdiff.engine.edits import MlpEdit, replace_residual
from circuitdiff.engine.model import Model, replaced_forward
from circuitdiff.engine.replay import Keywords, embed, run_layer
from circuitdiff.errors import InputError


@dataclass(frozen=True)
class Mlp:
    """The module whose output, times `scale`, is what a layer's MLP adds to the residual stream."""

    module: nn.Module
    scale: float


_ROWS = 3  # random residual streams that are given to a layer at once
_SLACK = 16  # roundings
_found: WeakKeyDictionary[nn.Module, tuple[Mlp, ...]] = WeakKeyDictionary()  # a module's form does not change


def mlps_of(model: Model) -> Sequence[Mlp]:
    """An entry per layer.

    Raises: InputError if a layer has no such module.
    """
    if model.module not in _found:
        hidden, keywords = embed(model, torch.zeros(1, _ROWS, dtype=torch.long))
        _found[model.module] = tuple(_mlp(model, layer, hidden, keywords[layer]) for layer in range(model.n_layers))
    return _found[model.module]


@torch.no_grad()
def _mlp(model: Model, layer: int, like: Float[Tensor, "1 row d_model"], keywords: Keywords) -> Mlp:
    """Holds every module that could be the one against the definition, on random numbers of size 1."""
    module, g = model.layers[layer], torch.Generator().manual_seed(layer)
    attended, one, other, w = (torch.randn(like.shape, generator=g).to(like) for _ in range(4))
    slack = _SLACK * torch.finfo(like.dtype).eps

    def alike(a: Tensor, b: Tensor) -> bool:
        return bool((a - b).norm() <= slack * b.norm())

    with replaced_forward(model.attentions[layer], lambda *_, **__: (attended, None)):
        for part, shape in _candidates(module, one, keywords):

            def output(hidden: Tensor, w: Tensor, part: nn.Module = part, shape: torch.Size = shape) -> Tensor:
                with replaced_forward(part, lambda *_, **__: w.reshape(shape)):
                    return run_layer(module, hidden, keywords).double()

            without = output(one, torch.zeros_like(w))
            added = output(one, w) - without
            scale = float((added * w).sum() / w.double().square().sum())
            scale = 1.0 if abs(scale - 1) < torch.finfo(like.dtype).eps else scale
            passed_on = output(other, torch.zeros_like(w)) - without
            if scale != 0 and alike(added, scale * w.double()) and alike(passed_on, other.double() - one.double()):
                return Mlp(part, scale)
    raise InputError(
        f"what the MLP of layer {layer} of {model.name} adds to the residual stream cannot be told apart: no module's "
        f"output is added to the layer's input and its attention (a norm or a scale of the sum?); MLPs of this "
        f"architecture can be neither read nor replaced"
    )


def _candidates(
    layer: nn.Module, hidden: Float[Tensor, "1 row d_model"], keywords: Keywords
) -> list[tuple[nn.Module, torch.Size]]:
    """Modules of a layer that are called once and give out a residual stream, with its shape.

    The last one first: most often it is the one.
    """
    calls: list[tuple[nn.Module, torch.Size]] = []

    def keep(part: nn.Module, _: object, output: object) -> None:
        size = output.shape if isinstance(output, Tensor) and output.numel() == hidden.numel() else torch.Size()
        calls.append((part, size))

    with ExitStack() as stack:
        for part in {*layer.modules()} - {layer}:
            stack.callback(part.register_forward_hook(keep).remove)
        run_layer(layer, hidden, keywords)
    n_calls = Counter(part for part, _ in calls)
    return [(part, size) for part, size in reversed(calls) if size and n_calls[part] == 1]


def edited_mlp(
    model: Model, edit: MlpEdit, shape: Sequence[int], rows: Int[Tensor, " some"], at: int
) -> AbstractContextManager[None]:
    """While this lasts, the layer's MLP adds what the edit says.

    `shape`: variant, prompt, position and d_model of what runs; `rows` and `at` say where in it the edit's variants and
    its position are.
    """
    mlp = mlps_of(model)[edit.layer]
    unscaled = with_fields(edit, replacement=edit.replacement / mlp.scale)

    def edited(written: Tensor) -> Tensor:
        return replace_residual(written.reshape(*shape), unscaled, rows, at).reshape(written.shape)

    return edited_output(mlp.module, edited)
