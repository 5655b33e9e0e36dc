"""Runs, ablations and path patching of planted models by plain hooks, apart from the product's engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from circuitdiff.circuit import Head
from circuitdiff.planted import Planted, build_planted
from circuitdiff.planted.heads import D_HEAD
from circuitdiff.planted.space import D_MODEL
from circuitdiff.planted.wiring import N_HEADS
from circuitdiff.prompts import Pairs
from circuitdiff.tasks import entity_tracking


def all_heads(subject: Planted) -> list[Head]:
    return [Head(layer, index) for layer in range(subject.model.config.n_layer) for index in range(N_HEADS)]


class Run(NamedTuple):
    z: Mapping[int, Tensor]  # by layer: what goes into the output projection, heads side by side
    resid_pre: Mapping[int, Tensor]
    resid_final: Tensor
    logits: Tensor  # at the last token


@cache
def planted(name: str, seed: int = 0) -> Planted:
    return build_planted(name, torch.float64, seed)


@cache
def pairs_of(n_prompts: int) -> Pairs:
    """The same prompts for all planted models, which share their vocabulary."""
    return entity_tracking(7).sample(planted("planted-base").tokenizer, n_prompts, seed=0, split="evaluation")


@torch.no_grad()
def run(
    subject: Planted,
    tokens: Tensor,
    edit_z: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
    edit_qkv: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
) -> Run:
    """A forward pass in which some layers' z, or q, k and v side by side, are edited."""
    z, resid, final = {}, {}, []
    edit_z, edit_qkv = edit_z or {}, edit_qkv or {}
    transformer = subject.model.transformer
    with ExitStack() as stack:
        for i, block in enumerate(transformer.h):

            def keep_z(_, args, i=i):
                z[i] = edit_z.get(i, torch.clone)(args[0])
                return (z[i],)

            def keep_resid(_, args, i=i):
                resid[i] = args[0]

            def keep_qkv(_, args, out, i=i):
                return edit_qkv.get(i, torch.clone)(out)

            stack.callback(block.attn.c_proj.register_forward_pre_hook(keep_z).remove)
            stack.callback(block.register_forward_pre_hook(keep_resid).remove)
            stack.callback(block.attn.c_attn.register_forward_hook(keep_qkv).remove)
        keep_final = transformer.ln_f.register_forward_pre_hook(lambda _, args: final.append(args[0]))
        stack.callback(keep_final.remove)
        logits = subject.model(tokens, use_cache=False, logits_to_keep=1).logits[:, -1]
    return Run(z, resid, final[0], logits)


@cache
def clean_run(name: str, n_prompts: int) -> Run:
    return run(planted(name), pairs_of(n_prompts).clean)


@cache
def counterfactual_run(name: str, n_prompts: int) -> Run:
    return run(planted(name), pairs_of(n_prompts).counterfactual)


def columns(head: Head, part: int = 0) -> slice:
    start = part * D_MODEL + head.index * D_HEAD
    return slice(start, start + D_HEAD)


def logit_difference(logits: Tensor, pairs: Pairs) -> Tensor:
    """The answer against the best other object of the prompt."""
    return logits.gather(1, pairs.answers[:, None])[:, 0] - logits.gather(1, pairs.foils).max(1).values


def accuracy(logits: Tensor, pairs: Pairs) -> float:
    return float((logits.argmax(1) == pairs.answers).double().mean())


def ablated(name: str, n_prompts: int, heads: Sequence[Head], at: str, by: str = "resample") -> Tensor:
    """Logits with `heads` giving at one role what they give in the counterfactual prompts ("resample"), what they give
    there on average ("mean"), or nothing ("zero")."""
    pairs, source = pairs_of(n_prompts), counterfactual_run(name, n_prompts).z
    rows, here, there = torch.arange(n_prompts), pairs.positions[at], pairs.counterfactual_positions[at]

    def replaced(layer: int) -> Callable[[Tensor], Tensor]:
        def edit(z: Tensor) -> Tensor:
            z = z.clone()
            for head in (h for h in heads if h.layer == layer):
                theirs = source[layer][rows, there, columns(head)]
                z[rows, here, columns(head)] = {"resample": theirs, "mean": theirs.mean(0), "zero": 0 * theirs}[by]
            return z

        return edit

    return run(planted(name), pairs.clean, {layer: replaced(layer) for layer in {h.layer for h in heads}}).logits


@torch.no_grad()
def path_effects(
    name: str, n_prompts: int, at: str, receivers: Sequence[Head] = (), part: int = 0
) -> Mapping[Head, float]:
    """Mean change of the logit difference by each sender, to the receivers' q (0) or v (2), or straight to the logits.

    MLPs are zero, so with all other heads frozen a sender changes the stream by what it writes and nothing else.
    """
    subject, pairs, clean = planted(name), pairs_of(n_prompts), clean_run(name, n_prompts)
    rows, here, there = torch.arange(n_prompts), pairs.positions[at], pairs.counterfactual_positions[at]
    normal = logit_difference(clean.logits, pairs)

    def straight(change: Tensor, _: Head) -> Tensor:
        return subject.model.lm_head(subject.model.transformer.ln_f(clean.resid_final[rows, here] + change))

    def through_receivers(change: Tensor, sender: Head) -> Tensor:
        def edit(layer: int) -> Callable[[Tensor], Tensor]:
            block = subject.model.transformer.h[layer]
            received = block.attn.c_attn(block.ln_1(clean.resid_pre[layer][rows, here] + change))

            def replace(qkv: Tensor) -> Tensor:
                qkv = qkv.clone()
                for receiver in (r for r in receivers if r.layer == layer):
                    qkv[rows, here, columns(receiver, part)] = received[:, columns(receiver, part)]
                return qkv

            return replace

        reached = {r.layer for r in receivers if r.layer > sender.layer}
        return run(subject, pairs.clean, edit_qkv={layer: edit(layer) for layer in reached}).logits

    effects = dict.fromkeys(all_heads(subject), 0.0)
    for sender in effects:
        if receivers and sender.layer >= max(r.layer for r in receivers):
            continue
        source, own = counterfactual_run(name, n_prompts).z[sender.layer], clean.z[sender.layer]
        change = source[rows, there, columns(sender)] - own[rows, here, columns(sender)]
        written = change @ subject.model.transformer.h[sender.layer].attn.c_proj.weight[columns(sender)]
        logits = (through_receivers if receivers else straight)(written, sender)
        effects[sender] = float((logit_difference(logits, pairs) - normal).mean())
    return effects


def head_weights(subject: Planted, head: Head) -> list[Tensor]:
    """The head's q, k, v and o, and the bias of q."""
    attention = subject.model.transformer.h[head.layer].attn
    qkv = [attention.c_attn.weight[:, columns(head, part)] for part in range(3)]
    return [*qkv, attention.c_proj.weight[columns(head)], attention.c_attn.bias[columns(head)]]


def decoys_of(subject: Planted) -> set[Head]:
    return set(all_heads(subject)) - {head for heads in subject.parts.values() for head in heads}


def stands_out(effects: Mapping[Head, float], group: Sequence[Head], decoys: set[Head], factor: float) -> bool:
    """All of the group help (their effect is negative), each `factor` times as much as any decoy does anything."""
    largest = max(abs(effects[head]) for head in decoys)
    return all(effects[head] < -factor * largest for head in group)
