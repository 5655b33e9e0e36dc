"""The window executor for circuits alone: a circuit costs one token per position at which it has heads.

Where no head is kept, all heads are constants, so a residual stream depends on token and position only: its keys and
values are computed once per distinct pair, not per prompt, and shared by all circuits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdiff.engine.attention import AttentionCall, handled_by
from circuitdiff.engine.executor import Ablation, Batch, Readout, read_out
from circuitdiff.engine.model import Model
from circuitdiff.engine.replay import Keywords, cut, embed, run_layer
from circuitdiff.engine.window_attention import Prefix, Window, attend_window

_MAX_ROWS = 2048  # variants x prompts x positions in one layer call: bounds the memory, and fills the cores


@dataclass(frozen=True)
class _Constant:
    """Keys and values at the positions where every head is constant, per distinct (token, position)."""

    columns: Int[Tensor, " column"]  # the positions
    member: Int[Tensor, "prompt column"]  # which distinct pair each prompt has there
    k: list[Float[Tensor, "distinct kv_head d_head"]]
    v: list[Float[Tensor, "distinct kv_head d_head"]]

    def prefix(self, layer: int) -> Prefix:
        k, v = (kv[layer][self.member].transpose(1, 2) for kv in (self.k, self.v))
        return Prefix(k, v)


def ablated_in_window(batch: Batch, ablation: Ablation, readout: Readout) -> Float[Tensor, "variant prompt value"]:
    """Each variant's circuit alone; see `Executor.ablated`."""
    assert ablation.positions[-1] == batch.length - 1, "the last position is where the logits are read"
    model = batch.model
    resid, keywords = embed(model, batch.tokens)
    positions = torch.tensor(ablation.positions, device=resid.device)
    constant = _run_constant(batch, ablation, resid, keywords)
    at_once = max(1, _MAX_ROWS // (batch.n_prompts * len(positions)))
    parts = []
    for kept in ablation.kept.split(at_once):
        final = _run_kept(batch, ablation, kept, resid[:, positions], keywords, constant)
        parts.append(read_out(model, final, readout))
    return torch.cat(parts)


def _run_constant(batch: Batch, ablation: Ablation, resid: Tensor, keywords: list[Keywords]) -> _Constant:
    columns = torch.tensor(
        [p for p in range(batch.length) if p not in ablation.positions],
        dtype=torch.long,
        device=resid.device,
    )
    shared = ablation.constants.shape[1] == 1
    tokens = batch.tokens.to(resid.device)[:, columns]
    owner = tokens if shared else torch.arange(batch.n_prompts, device=resid.device)[:, None].expand_as(tokens)
    pair = torch.stack([owner, columns.expand_as(tokens)], dim=-1).flatten(0, 1)
    distinct, member = torch.unique(pair, dim=0, return_inverse=True)
    example = torch.empty(len(distinct), dtype=torch.long, device=resid.device)
    example[member] = torch.arange(len(pair), device=resid.device)  # some prompt and column that has this pair
    prompt, position = example // max(len(columns), 1), distinct[:, 1]
    constants = ablation.constants[:, torch.zeros_like(prompt) if shared else prompt, position]
    k, v = _run_rows(batch.model, resid[prompt, position], position, constants, keywords)
    return _Constant(columns, member.unflatten(0, tokens.shape), k, v)


def _run_rows(
    model: Model,
    resid: Float[Tensor, "row d_model"],
    position: Int[Tensor, " row"],
    constants: Float[Tensor, "layer row head d_head"],
    keywords: list[Keywords],
) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of every layer for lone tokens whose heads are all constant."""
    if len(resid) == 0:  # no layer can run on nothing
        nothing = [resid.new_empty(0, model.n_kv_heads, model.d_head)] * model.n_layers
        return nothing, nothing
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


def _run_kept(
    batch: Batch,
    ablation: Ablation,
    kept: Bool[Tensor, "variant layer at head"],
    resid: Float[Tensor, "prompt at d_model"],
    keywords: list[Keywords],
    constant: _Constant,
) -> Float[Tensor, "variant prompt d_model"]:
    """The final residual stream at the last of the positions.

    Below the first layer in which circuits differ, all variants are one.
    """
    positions = torch.tensor(ablation.positions, device=resid.device)
    order = torch.cat([constant.columns, positions])
    differ = (kept != kept[:1]).flatten(2).any(dim=(0, 2))
    hidden = resid[None]
    for layer, module in enumerate(batch.model.layers):
        if differ[layer] and len(hidden) == 1:
            hidden = hidden.expand(len(kept), *resid.shape)
        keep_here = kept[: len(hidden), layer, :, :, None][:, None].to(resid.device)
        constants = ablation.constants[layer][:, positions]

        def handler(call: AttentionCall, shape=hidden.shape[:2], keep=keep_here, constants=constants) -> Tensor:
            window = Window(*(x.unflatten(0, shape) for x in (call.q, call.k, call.v)))
            allowed = call.allowed[0, 0][:, order]
            z = attend_window(window, constant.prefix(call.layer), allowed, call.scaling, call.softcap)
            return torch.where(keep, z, constants).flatten(0, 1)

        with handled_by(handler):
            out = run_layer(module, hidden.flatten(0, 1), cut(keywords[layer], positions))
        hidden = out.unflatten(0, hidden.shape[:2])
    return hidden.expand(len(kept), *resid.shape)[:, :, -1]
