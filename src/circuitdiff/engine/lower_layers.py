"""Runs of a model whose upper layers were changed, on what its unchanged lower layers gave."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.engine.attention import attend, handled_by
from circuitdiff.engine.executor import Readout
from circuitdiff.engine.model import Model
from circuitdiff.engine.replay import embed, recorded, run_layer
from circuitdiff.prompts import PromptSet, buckets

_PROMPTS_AT_ONCE = 32


@dataclass(frozen=True)
class LowerLayers:
    """What entered some layers in a model's own runs, and what a readout said of their logits."""

    model: Model
    prompts: PromptSet
    entering: Mapping[int, Float[Tensor, "prompt pos d_model"]]  # by layer; 0 on padding
    ends: Float[Tensor, "prompt value"]

    @torch.no_grad()
    def read_again(self, changed_from: int, readout: Readout) -> Float[Tensor, "prompt value"]:
        """What `readout` says of the model as it is now, if only layers from `changed_from` on, or what comes after
        all layers, have changed since."""
        begin = max((layer for layer in self.entering if layer <= changed_from), default=0)
        ends = torch.empty_like(self.ends)
        for bucket in buckets(self.prompts, [], _PROMPTS_AT_ONCE):
            tokens = self.prompts.tokens[bucket.prompts, : bucket.length]
            logits = self._logits(begin, bucket.prompts, tokens) if begin else self.model.forward(tokens)
            ends[bucket.prompts] = readout(logits, bucket.prompts.to(logits.device)).cpu()
        return ends

    def _logits(self, begin: int, prompts: Tensor, tokens: Tensor) -> Float[Tensor, "prompt d_vocab"]:
        _, keywords = embed(self.model, tokens)
        hidden = self.entering[begin][prompts.to(self.model.device), : tokens.shape[1]]
        with handled_by(attend):
            for layer in range(begin, self.model.n_layers):
                hidden = run_layer(self.model.layers[layer], hidden, keywords[layer])
        return self.model.unembed(hidden[:, -1])


@torch.no_grad()
def keep_lower_layers(model: Model, prompts: PromptSet, layers: Collection[int], readout: Readout) -> LowerLayers:
    """Runs the model as it is, and keeps what enters these layers."""
    entering: dict[int, Tensor] = {}
    values, order = [], []
    for bucket in buckets(prompts, [], _PROMPTS_AT_ONCE):
        with recorded(model.layers) as calls:
            logits = model.forward(prompts.tokens[bucket.prompts, : bucket.length])
        for layer in layers:
            hidden = calls[layer][0]
            room = entering.setdefault(layer, hidden.new_zeros(*prompts.tokens.shape, hidden.shape[-1]))
            room[bucket.prompts.to(room.device), : bucket.length] = hidden
        values.append(readout(logits, bucket.prompts.to(logits.device)).cpu())
        order.append(bucket.prompts)
    return LowerLayers(model, prompts, entering, torch.cat(values)[torch.cat(order).argsort()])
