"""Low-rank adapters (LoRA): on which linear layers, in which layers, and for which heads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuitdiff.errors import InputError
from circuitdiff.heads import Head
from circuitdiff.models.head_slices import OUTPUT, PROJECTIONS, channels_of


@dataclass(frozen=True)
class Lora:
    """Which linear layers get a low-rank delta: module names such as `o_proj`, in all decoder layers or in `layers`.

    With `heads`, only what these heads compute may change: targets are then projections of attention. A key or value
    that several query heads share changes for all of them.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    layers: tuple[int, ...] | None = None
    heads: tuple[Head, ...] | None = None


def add_lora(model: PreTrainedModel, lora: Lora, seed: int, silenced: Sequence[Head] = ()) -> PeftModel:
    """`model` with low-rank deltas that are zero so far; only they take gradients. `silenced` heads stay silent.

    Raises: InputError if the model lacks a target, layer or head, or the rank is not positive.
    """
    _check(model, lora)
    layers = lora.layers if lora.heads is None else sorted({head.layer for head in lora.heads})
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=list(lora.targets),
        layers_to_transform=None if layers is None else list(layers),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # peft draws from the global generator
        warnings.simplefilter("ignore", FutureWarning)  # of peft and transformers about each other
        torch.manual_seed(seed)
        adapted: PeftModel = get_peft_model(model, config).eval()  # pyright: ignore[reportAssignmentType]
    if lora.heads is not None:
        _only(adapted, model, lora.heads)
    _keep_silent(adapted, model, silenced)
    return adapted


def _check(model: PreTrainedModel, lora: Lora) -> None:
    if lora.rank < 1:
        raise InputError(f"the rank of a LoRA must be at least 1; got {lora.rank}")
    known = {name.rpartition(".")[2] for name, part in model.named_modules() if _takes_lora(part)}
    if missing := [target for target in lora.targets if target not in known]:
        raise InputError(f"the model has no linear layer {missing[0]!r}; targets can be {', '.join(sorted(known))}")
    n_layers = model.config.get_text_config().num_hidden_layers
    if beyond := [layer for layer in lora.layers or () if not 0 <= layer < n_layers]:
        raise InputError(f"the model has no layer {beyond[0]}; its layers are 0 to {n_layers - 1}")
    if lora.heads is None:
        return
    if lora.layers is not None:
        raise InputError("give a LoRA either layers or heads; heads name their layers")
    if others := [target for target in lora.targets if target not in PROJECTIONS]:
        raise InputError(f"a LoRA of some heads has targets among {', '.join(PROJECTIONS)}; got {others[0]!r}")
    channels_of(model, OUTPUT, 0, lora.heads)  # which refuses heads that the model lacks


def _takes_lora(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D"  # GPT-2's linear layer


def _only(adapted: PeftModel, model: PreTrainedModel, heads: Sequence[Head]) -> None:
    """Holds every part of the deltas that other heads would see at zero."""
    for layer, projection, part in _adapted_projections(adapted):
        channels = channels_of(model, projection, layer, heads)
        if projection == OUTPUT:
            _hold(part.lora_A["default"].weight, channels[None, :])  # pyright: ignore
        else:
            _hold(part.lora_B["default"].weight, channels[:, None])  # pyright: ignore


def _keep_silent(adapted: PeftModel, model: PreTrainedModel, silenced: Sequence[Head]) -> None:
    """No delta of an output projection may read what a silenced head computes."""
    for layer, projection, part in _adapted_projections(adapted):
        if projection == OUTPUT and silenced:
            _hold(part.lora_A["default"].weight, ~channels_of(model, OUTPUT, layer, silenced)[None, :])  # pyright: ignore


def _adapted_projections(adapted: PeftModel) -> Iterator[tuple[int, str, nn.Module]]:
    for path, part in adapted.named_modules():
        parts = path.split(".")
        if parts[-1] in PROJECTIONS and hasattr(part, "lora_A"):
            yield next(int(p) for p in reversed(parts) if p.isdigit()), parts[-1], part


def _hold(parameter: nn.Parameter, free: Bool[Tensor, "#row #column"]) -> None:
    """Only where `free` can `parameter` be other than 0: AdamW never moves a zero whose gradient is zero."""
    free = free.to(parameter.device)
    with torch.no_grad():
        parameter.mul_(free)
    parameter.register_hook(lambda gradient: gradient * free)
