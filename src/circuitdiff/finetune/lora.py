"""Low-rank adapters (LoRA): on which linear layers, in which layers, and for which heads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Bool
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuitdiff.circuit import Head
from circuitdiff.errors import InputError

OUTPUT = "o_proj"
SHARED = ("k_proj", "v_proj")  # of several query heads, where there are fewer key/value heads
PROJECTIONS = ("q_proj", *SHARED, OUTPUT)


def channels_of(model: PreTrainedModel, projection: str, layer: int, heads: Sequence[Head]) -> Bool[Tensor, " channel"]:
    """Which of a projection's outputs (of o_proj: inputs) in one layer belong to some of `heads`.

    Of k_proj and v_proj those of the key/value head that the query heads read, which others may read, too.

    Raises: InputError if a head does not exist, or the model's projections are not layers of their own.
    """
    config = model.config.get_text_config()
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    if beyond := [head for head in heads if not (0 <= head.layer < config.num_hidden_layers and head.index < n_heads)]:
        raise InputError(f"the model has no head {beyond[0]}; it has {config.num_hidden_layers} layers of {n_heads}")
    here = {head.index for head in heads if head.layer == layer}
    n = n_kv_heads if projection in SHARED else n_heads
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[[index * n // n_heads for index in here]] = True
    return chosen.repeat_interleave(d_head)


@torch.no_grad()
def silence(model: PreTrainedModel, heads: Sequence[Head]) -> None:
    """Takes heads out of a model for good: what they write is multiplied by 0.

    Raises: InputError if a head does not exist, or the output projection is not called o_proj.
    """
    projections = {layer: part for layer, name, part in _projections(model) if name == OUTPUT}
    for layer in {head.layer for head in heads}:
        if layer not in projections:
            raise InputError(
                f"heads can be ablated where a layer has an {OUTPUT}; layer {layer} of this model has none"
            )
        projections[layer].weight[:, channels_of(model, OUTPUT, layer, heads)] = 0


def _projections(model: nn.Module) -> Iterator[tuple[int, str, Any]]:
    """Every q, k, v and o projection that is a layer of its own, after its decoder layer's number and its name."""
    for path, part in model.named_modules():
        parts = path.split(".")
        if parts[-1] in PROJECTIONS and isinstance(getattr(part, "weight", None), Tensor):
            yield next(int(p) for p in reversed(parts) if p.isdigit()), parts[-1], part


@dataclass(frozen=True)
class Lora:
    """Which linear layers get a low-rank delta: module names such as `o_proj`, in all decoder layers or in `layers`.

    With `heads`, only what these heads compute may change: targets are then projections of attention. A key or value
    that several query heads share changes for all of them.
    """

    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    rank: Annotated[int, Field(ge=1, le=10_000)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16
    layers: tuple[int, ...] | None = None
    heads: tuple[Head, ...] | None = None


def add_lora(model: PreTrainedModel, lora: Lora, seed: int, silenced: Sequence[Head] = ()) -> PeftModel:
    """`model` with low-rank deltas that are zero so far; only they take gradients. `silenced` heads stay silent.

    Raises: InputError if the model lacks a target, layer or head.
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
    for layer, projection, part in _projections(adapted):
        if not hasattr(part, "lora_A"):
            continue
        reads, writes = part.lora_A["default"].weight, part.lora_B["default"].weight
        if lora.heads is not None:  # every part of a delta that other heads would see stays at zero
            channels = channels_of(model, projection, layer, lora.heads)
            if projection == OUTPUT:
                _hold(reads, channels[None, :])
            else:
                _hold(writes, channels[:, None])
        if projection == OUTPUT and silenced:  # no delta may read what a silenced head computes
            _hold(reads, ~channels_of(model, OUTPUT, layer, silenced)[None, :])
    return adapted


def _check(model: PreTrainedModel, lora: Lora) -> None:
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


@torch.no_grad()
def _hold(parameter: nn.Parameter, free: Bool[Tensor, "#row #column"]) -> None:
    """Only where `free` can `parameter` be other than 0: AdamW never moves a zero whose gradient is zero."""
    free = free.to(parameter.device)
    parameter.mul_(free)
    parameter.register_hook(lambda gradient: gradient * free)
