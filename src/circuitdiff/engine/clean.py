"""The clean run: what both executors compare with and build on."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitdiff.engine.attention import AttentionCall, attend, handled_by
from circuitdiff.engine.model import Model
from circuitdiff.engine.replay import Keywords, recorded


@dataclass(frozen=True)
class CleanRun:
    """One forward pass of a bucket; lists have an entry per layer.

    Only positions >= `start` are kept, but for keys and values, which later positions read.
    """

    tokens: Int[Tensor, "prompt pos"]
    start: int
    resid_pre: list[Float[Tensor, "prompt kept d_model"]]
    q: list[Float[Tensor, "prompt head kept d_head"]]
    k: list[Float[Tensor, "prompt kv_head pos d_head"]]
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
