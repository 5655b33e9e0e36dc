"""The window executor for circuits alone: a circuit costs one token per position at which it can differ.

1. Positions without a kept head hold constants only: their keys and values are computed once per distinct token
   (`constant_tokens`).
2. The *trunk* keeps the heads that most circuits keep. It runs once, at all positions that have kept heads.
3. A circuit is a *branch*: it begins at the first layer and position where it differs from the trunk, and takes
   everything before from there. Circuits that differ at the last position only cost one token each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdiff.engine.attention import AttentionCall, handled_by
from circuitdiff.engine.constant_tokens import ConstantColumns, ConstantTokens
from circuitdiff.engine.executor import Ablation, Batch, Readout, Values, read_out
from circuitdiff.engine.fits import ROWS_SHARE, rows_at_once
from circuitdiff.engine.replay import Keywords, cut, embed, run_layer
from circuitdiff.engine.window_attention import Prefix, Window, attend_window


@dataclass(frozen=True)
class _Scene:
    """One batch of prompts with what its circuits share."""

    batch: Batch
    ablation: Ablation
    resid: Float[Tensor, "prompt at d_model"]  # what enters the first layer at the ablation's positions
    keywords: list[Keywords]
    constant: ConstantColumns


@dataclass(frozen=True)
class _Trunk:
    """The circuit from which the others branch off; lists have an entry per layer."""

    kept: Bool[Tensor, "layer at head"]
    resid_pre: list[Float[Tensor, "prompt at d_model"]]
    k: list[Float[Tensor, "prompt kv_head at d_query"]]
    v: list[Float[Tensor, "prompt kv_head at d_head"]]
    final: Float[Tensor, "prompt d_model"]


@dataclass(frozen=True)
class _Branches:
    """Circuits that begin at one position, those of lower layers first."""

    variants: Int[Tensor, " branch"]
    begin: Int[Tensor, " branch"]  # the first layer that differs
    first: int  # the first place of `Ablation.positions` that differs


def ablated_in_window(batch: Batch, ablation: Ablation, readout: Readout) -> Values:
    """Each variant's circuit alone; see `Executor.ablated`."""
    assert ablation.positions[-1] == batch.length - 1, "the last position is where the logits are read"
    scene = _open(batch, ablation)
    trunk = _run_trunk(scene)
    shared = read_out(batch.model, trunk.final[None], readout)
    values = shared.expand(len(ablation.kept), *shared.shape[1:])
    for branches in _branches(scene, trunk):
        final = _run_branches(scene, trunk, branches)
        values = values.index_copy(0, branches.variants.to(values.device), read_out(batch.model, final, readout))
    return values


def _open(batch: Batch, ablation: Ablation) -> _Scene:
    resid, keywords = embed(batch.model, batch.tokens)
    free = [p for p in range(batch.length) if p not in ablation.positions]
    columns = torch.tensor(free, dtype=torch.long, device=resid.device)
    tokens = ablation.remembered or ConstantTokens(batch.model, ablation.constants, ablation.memory_gb)
    assert tokens.model is batch.model, "what is remembered is another model's"
    constant = tokens.columns(columns, batch.tokens, resid, keywords)
    return _Scene(batch, ablation, resid[:, list(ablation.positions)], keywords, constant)


def _run_trunk(scene: _Scene) -> _Trunk:
    """Step 2."""
    kept = scene.ablation.kept.double().mean(0) > 0.5
    hidden, resid_pre, k, v = scene.resid, [], [], []
    for layer in range(scene.batch.model.n_layers):
        resid_pre.append(hidden)
        calls: list[AttentionCall] = []
        hidden = _run_layer(scene, layer, hidden[None], kept[None, layer], scene.constant.prefix(layer), calls)[0]
        k.append(calls[0].k)
        v.append(calls[0].v)
    return _Trunk(kept, resid_pre, k, v, hidden[:, -1])


def _branches(scene: _Scene, trunk: _Trunk) -> Iterator[_Branches]:
    """The circuits that differ from the trunk, each once, as many together as the memory takes."""
    differs = (scene.ablation.kept != trunk.kept).any(-1).long()
    begin, first = differs.amax(2).argmax(1), differs.amax(1).argmax(1)
    memory_gb, batch = ROWS_SHARE * scene.ablation.memory_gb, scene.batch
    most = rows_at_once(batch.model, memory_gb, batch.length) // batch.n_prompts
    for place in first.unique().tolist():
        mine = ((first == place) & differs.any(-1).any(-1)).nonzero()[:, 0]
        mine = mine[begin[mine].argsort(stable=True)]
        for variants in mine.split(max(1, most // (len(scene.ablation.positions) - place))):
            if len(variants):
                yield _Branches(variants, begin[variants], place)


def _run_branches(scene: _Scene, trunk: _Trunk, branches: _Branches) -> Float[Tensor, "branch prompt d_model"]:
    """Step 3: the final residual stream at the last position."""
    first, n_layers = branches.first, scene.batch.model.n_layers
    hidden = trunk.resid_pre[0][None, :, first:][:0]
    for layer in range(int(branches.begin[0]), n_layers):
        n_new = int((branches.begin <= layer).sum()) - len(hidden)
        joining = trunk.resid_pre[layer][:, first:]
        hidden = torch.cat([hidden, joining.expand(n_new, *joining.shape)])
        constant = scene.constant.prefix(layer)
        prefix = Prefix(
            torch.cat([constant.k, trunk.k[layer][:, :, :first]], dim=2),
            torch.cat([constant.v, trunk.v[layer][:, :, :first]], dim=2),
        )
        kept = scene.ablation.kept[branches.variants[: len(hidden)], layer, first:]
        hidden = _run_layer(scene, layer, hidden, kept, prefix)
    return hidden[:, :, -1]


def _run_layer(
    scene: _Scene,
    layer: int,
    hidden: Float[Tensor, "variant prompt row d_model"],
    kept: Bool[Tensor, "variant row head"],
    prefix: Prefix,
    calls: list[AttentionCall] | None = None,
) -> Float[Tensor, "variant prompt row d_model"]:
    """One layer at the last of the ablation's positions, over a prefix of all others; its call is added to `calls`."""
    everywhere = torch.tensor(scene.ablation.positions, device=hidden.device)
    rows = everywhere[-hidden.shape[2] :]
    order = torch.cat([scene.constant.columns, everywhere])
    constants = scene.ablation.constants[layer][:, rows]
    keep = kept[:, None, :, :, None].to(hidden.device)

    def handler(call: AttentionCall) -> Tensor:
        z = attend_window(Window.of(call, len(hidden), prefix, call.allowed[0, 0][:, order]))
        if calls is not None:
            calls.append(call)
        return torch.where(keep, z, constants).flatten(0, 1)

    with handled_by(handler):
        out = run_layer(scene.batch.model.layers[layer], hidden.flatten(0, 1), cut(scene.keywords[layer], rows))
    return out.unflatten(0, hidden.shape[:2])
