"""Lone tokens in which every head is constant: their keys and values, each computed once.

Where no head is kept all heads are constants, so a residual stream depends on its token and position only: prompts,
circuits and calls share it. Constants that each prompt has of its own are shared by circuits only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.engine.attention import AttentionCall, handled_by
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB
from circuitdiff.engine.model import Model
from circuitdiff.engine.replay import Keywords, cut, run_layer
from circuitdiff.engine.window_attention import Prefix

ROWS = 64  # tokens that are run at once
_SHARE = 0.25  # of the memory may hold what is remembered


@dataclass(frozen=True)
class ConstantColumns:
    """Keys and values of a batch of prompts at positions where every head is constant."""

    columns: Int[Tensor, " column"]  # the positions
    member: Int[Tensor, "prompt column"]  # which of the distinct tokens each prompt has there
    k: Sequence[Float[Tensor, "distinct kv_head d_query"]]  # per layer
    v: Sequence[Float[Tensor, "distinct kv_head d_head"]]

    def prefix(self, layer: int) -> Prefix:
        k, v = (kv[layer][self.member].transpose(1, 2) for kv in (self.k, self.v))
        return Prefix(k, v)


class ConstantTokens:
    """Remembers what it has computed, for prompts of one length on a model whose weights stay as they are."""

    def __init__(
        self,
        model: Model,
        constants: Float[Tensor, " layer #prompt pos head d_head"],
        memory_gb: float = DEFAULT_MEMORY_GB,
    ):
        self.model = model
        self.constants = constants
        width = model.d_query + model.d_head
        self._gb_per_token = model.n_layers * model.n_kv_heads * width * model.dtype.itemsize / 2**30
        self._most = int(_SHARE * memory_gb / self._gb_per_token)
        self._forget()

    @property
    def shared(self) -> bool:
        """Whether all prompts have the same constants, so that what is remembered serves other prompts, too."""
        return self.constants.shape[1] == 1

    @property
    def size_gb(self) -> float:
        """The memory that the remembered keys and values take."""
        return len(self._keys) * self._gb_per_token

    def columns(
        self,
        columns: Int[Tensor, " column"],
        tokens: Int[Tensor, "prompt pos"],
        resid: Float[Tensor, "prompt pos d_model"],
        keywords: Sequence[Keywords],
    ) -> ConstantColumns:
        """What a batch has at `columns`; `resid` and `keywords` are what enters its layers (see `replay.embed`)."""
        here, prompts = tokens.to(resid.device)[:, columns], torch.arange(len(tokens), device=resid.device)
        owner = here if self.shared else prompts[:, None].expand_as(here)
        keys = owner * self.constants.shape[2] + columns  # one number for each owner and position
        self._add_missing(keys, columns, resid, keywords)
        order = self._keys.argsort()
        member = order[torch.searchsorted(self._keys[order], keys)] if keys.numel() else keys
        return ConstantColumns(columns, member, self._k, self._v)

    def _forget(self) -> None:
        model = self.model
        self._keys = torch.empty(0, dtype=torch.long, device=model.device)
        self._k, self._v = (
            [torch.empty(0, model.n_kv_heads, width, dtype=model.dtype, device=model.device)] * model.n_layers
            for width in (model.d_query, model.d_head)
        )

    def _add_missing(self, keys: Tensor, columns: Tensor, resid: Tensor, keywords: Sequence[Keywords]) -> None:
        distinct, member = torch.unique(keys, return_inverse=True)
        if len(distinct) + len(self._keys) > self._most:
            self._forget()
        example = torch.empty_like(distinct)  # some place of the batch that has this key
        example[member.flatten()] = torch.arange(keys.numel(), device=keys.device)
        example = example[~torch.isin(distinct, self._keys)]
        for places in example.split(ROWS) if len(example) else ():
            # A product of another number of rows is rounded otherwise, so that what is known already, which is what ran
            # before in this process, would show in the last digits: it is always the same number.
            rows = places.repeat(-(-ROWS // len(places)))[:ROWS]
            prompt, position = rows // len(columns), columns[rows % len(columns)]
            constants = self.constants[:, torch.zeros_like(prompt) if self.shared else prompt, position]
            k, v = run_constant(self.model, resid[prompt, position], position, constants, keywords)
            self._k = [torch.cat([known, new[: len(places)]]) for known, new in zip(self._k, k, strict=True)]
            self._v = [torch.cat([known, new[: len(places)]]) for known, new in zip(self._v, v, strict=True)]
            self._keys = torch.cat([self._keys, keys.flatten()[places]])


def run_constant(
    model: Model,
    resid: Float[Tensor, "row d_model"],
    position: Int[Tensor, " row"],
    constants: Float[Tensor, " layer row head d_head"],
    keywords: Sequence[Keywords],
) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of every layer, each [row kv_head d_head], of lone tokens whose heads are all constant."""
    k, v = [], []
    hidden = resid[:, None]

    def handler(call: AttentionCall) -> Tensor:
        k.append(call.k[:, :, 0])
        v.append(call.v[:, :, 0])
        return constants[call.layer][:, None]

    with handled_by(handler):
        for layer, module in enumerate(model.layers):
            hidden = run_layer(module, hidden, cut(keywords[layer], position, one_each=True))
    return k, v
