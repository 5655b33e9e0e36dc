"""Runs of one model with another's weights in some places. Mixtures that are alike so far share their run.

Each mixture is written as which entries of which parameters come from the other model, layer by layer, where the two
differ at all. Mixtures with the same entries in all layers below have the same residual stream there, so a layer is run
once for each distinct beginning, not once for each mixture.

Prompts that begin alike share a row (`Pack`): the tokens that they share once, then each prompt's own. Questions about
one scenario have most of their tokens in common, so a row of several costs little more than one prompt. Each token sees
those of its own prompt, at the positions that they have there: what comes out is what the prompts give one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdiff.engine.attention import AttentionCall, attend, handled_by
from circuitdiff.engine.executor import Progress, Readout
from circuitdiff.engine.fits import check_prompts, prompts_at_once
from circuitdiff.engine.model import Model
from circuitdiff.engine.replay import Keywords, cut, embed, run_layer
from circuitdiff.engine.weights import Slice, swapped
from circuitdiff.prompts import PromptSet, buckets

_ENOUGH_PROMPTS = 32
_OUTSIDE = -1  # the place of what belongs to no layer: embeddings, the last norm, the unembedding

Entries = tuple[tuple[str, bytes], ...]  # by parameter, which of its rows or columns come from the other model

LONGEST = 2  # a row, in lengths of a prompt: attention grows with its square
_MOST = 4  # prompts in rows that run together, in `at_once`: each has logits


@dataclass(frozen=True)
class Mixture:
    """The other model's weights in `slices`, and the model's own elsewhere; the other way round if `inverted`."""

    slices: tuple[Slice, ...]
    inverted: bool = False


@dataclass(frozen=True)
class Mixtures:
    """What of each mixture comes from the other model, by place: a layer, or -1 for what belongs to none."""

    model: Model
    other: Model
    axes: Mapping[str, int | None]
    differs: Mapping[str, Bool[Tensor, " entry"]]  # of every parameter that is not the same in both models
    entries: tuple[Mapping[int, Entries], ...]

    def slices(self, entries: Entries) -> list[Slice]:
        """The same entries as slices, whole parameters where nothing else differs."""
        found = []
        for name, mask in entries:
            chosen, axis = torch.frombuffer(bytearray(mask), dtype=torch.bool), self.axes[name]
            whole = axis is None or torch.equal(chosen, self.differs[name])
            found.append(Slice(name) if whole else Slice(name, axis, tuple(chosen.nonzero()[:, 0].tolist())))
        return found


def mixtures_of(model: Model, other: Model, wanted: Sequence[Mixture]) -> Mixtures:
    """The mixtures, place by place. All slices of one parameter lie along one axis."""
    axes: dict[str, int] = {}
    for piece in (piece for mixture in wanted for piece in mixture.slices):
        if piece.axis is not None:
            axis = axes.setdefault(piece.parameter, piece.axis)
            assert axis == piece.axis, "the heads of one layer lie along one axis of a parameter"
    differs = _differences(model, other, axes)
    layer_of = {id(p): i for i, layer in enumerate(model.layers) for p in layer.parameters()}
    places = {name: layer_of.get(id(p), _OUTSIDE) for name, p in model.module.named_parameters()}
    entries = tuple(_entries(mixture, differs, places) for mixture in wanted)
    return Mixtures(model, other, {name: axes.get(name) for name in differs}, differs, entries)


@torch.no_grad()
def run_mixtures(
    mixtures: Mixtures,
    prompts: PromptSet,
    readout: Readout,
    progress: Progress | None = None,
) -> Float[Tensor, "mixture prompt value"]:
    """What `readout` says of each mixture's logits after each prompt. The model is afterwards what it was."""
    check_prompts(mixtures.model, prompts)
    found: Tensor | None = None
    done, n = 0, len(mixtures.entries)
    # Each layer's residual stream is there while the layers above it run; rows are longer than prompts.
    held = mixtures.model.module.config.get_text_config().hidden_size
    most = prompts_at_once(mixtures.model, LONGEST * int(prompts.lengths.max()), held=held)
    for pack in packs(prompts, min(_ENOUGH_PROMPTS, most)):
        mine = pack.prompts.flatten()

        def keep(
            some: Sequence[int], final: Float[Tensor, "row place d_model"], pack: Pack = pack, mine: Tensor = mine
        ) -> None:
            nonlocal found
            logits = mixtures.model.unembed(final[:, pack.ends].flatten(0, 1))
            values = readout(logits, mine.to(logits.device)).cpu()
            found = values.new_empty(n, len(prompts), values.shape[-1]) if found is None else found
            found[torch.tensor(some)[:, None], mine] = values

        for outside, some in _alike(mixtures, list(range(n)), _OUTSIDE):
            with swapped(mixtures.model, mixtures.slices(outside), mixtures.other), handled_by(pack.attend):
                each, keywords = embed(mixtures.model, prompts.tokens[mine, : pack.length])
                _go_on(mixtures, some, 0, pack.join(each), [cut(layer, pack.positions) for layer in keywords], keep)
        done += len(mine)
        if progress:
            progress(n * done, n * len(prompts))
    assert found is not None, "there is a mixture and a prompt"
    return found


def _go_on(
    mixtures: Mixtures,
    some: list[int],
    layer: int,
    hidden: Float[Tensor, "row place d_model"],
    keywords: Sequence[Keywords],
    keep: Callable[[Sequence[int], Tensor], None],
) -> None:
    """From `layer` to the end, for mixtures that are alike below it."""
    model = mixtures.model
    if layer == model.n_layers:
        keep(some, hidden)
        return
    for entries, alike in _alike(mixtures, some, layer):
        with swapped(model, mixtures.slices(entries), mixtures.other):
            after = run_layer(model.layers[layer], hidden, keywords[layer])
        _go_on(mixtures, alike, layer + 1, after, keywords, keep)


def _alike(mixtures: Mixtures, some: Sequence[int], place: int) -> list[tuple[Entries, list[int]]]:
    """The mixtures by what of them comes from the other model in one place."""
    found: dict[Entries, list[int]] = {}
    for i in some:
        found.setdefault(mixtures.entries[i].get(place, ()), []).append(i)
    return list(found.items())


def _differences(model: Model, other: Model, axes: Mapping[str, int]) -> dict[str, Bool[Tensor, " entry"]]:
    """Of every parameter that differs, which of its rows or columns do; as a whole where it has no axis."""
    theirs, found = dict(other.module.named_parameters()), {}
    for name, own in model.module.named_parameters():
        if own.shape != theirs[name].shape and name not in axes:  # a larger vocabulary
            found[name] = torch.ones(1, dtype=torch.bool)
            continue
        unequal, axis = own.data != theirs[name].data.to(own.device), axes.get(name)
        if not unequal.any():
            continue
        rows = unequal.any()[None] if axis is None else unequal.movedim(axis, 0).reshape(unequal.shape[axis], -1).any(1)
        found[name] = rows.cpu()
    return found


def _entries(
    mixture: Mixture, differs: Mapping[str, Bool[Tensor, " entry"]], places: Mapping[str, int]
) -> dict[int, Entries]:
    taken: dict[str, Tensor] = {name: torch.zeros_like(rows) for name, rows in differs.items()}
    for piece in mixture.slices:
        if piece.parameter in taken:
            taken[piece.parameter][list(piece.index) if piece.axis is not None else slice(None)] = True
    found: dict[int, list[tuple[str, bytes]]] = {}
    for name, rows in taken.items():
        chosen = (~rows if mixture.inverted else rows) & differs[name]
        if chosen.any():
            found.setdefault(places[name], []).append((name, chosen.numpy().tobytes()))
    return {place: tuple(entries) for place, entries in found.items()}


@dataclass(frozen=True)
class Pack:
    """Rows of one shape: prompts of one length, equally many to a row, with equally many tokens in common."""

    prompts: Int[Tensor, "row member"]  # which prompts of the set
    length: int
    n_shared: int  # less than the length: the last token is each prompt's own

    @cached_property
    def positions(self) -> Int[Tensor, " place"]:
        """Where the token in each place of a row sits in its prompt."""
        own = torch.arange(self.n_shared, self.length)
        return torch.cat([torch.arange(self.n_shared), own.repeat(self.prompts.shape[1])])

    @cached_property
    def ends(self) -> Int[Tensor, " member"]:
        """The place of each prompt's last token."""
        members = torch.arange(1, self.prompts.shape[1] + 1)
        return self.n_shared + members * (self.length - self.n_shared) - 1

    def join(self, each: Float[Tensor, "prompt pos d_model"]) -> Float[Tensor, "row place d_model"]:
        """Rows from the prompts one by one, in the order of `prompts`."""
        rows = each.unflatten(0, self.prompts.shape)
        return torch.cat([rows[:, 0, : self.n_shared], rows[:, :, self.n_shared :].flatten(1, 2)], dim=1)

    def attend(self, call: AttentionCall) -> Float[Tensor, "row place head d_head"]:
        """z, where each token sees those of its own prompt only; `call.allowed` is by places and positions."""
        keys = self.positions.to(call.allowed.device)
        return attend(replace(call, allowed=call.allowed[..., keys] & self._together.to(call.allowed.device)))

    @cached_property
    def _together(self) -> Bool[Tensor, "place place"]:
        """The key belongs to the query's prompt, as shared ones do to all. What comes later the model's mask bars."""
        members = torch.arange(self.prompts.shape[1]).repeat_interleave(self.length - self.n_shared)
        shared = torch.full((self.n_shared,), -1)
        member = torch.cat([shared, members])
        return (member == -1) | (member[:, None] == member)


def packs(prompts: PromptSet, at_once: int) -> Iterator[Pack]:
    """Every prompt once; as many rows together as have the tokens of `at_once` prompts, and few times so many prompts.

    Prompts that agree in the first half of their tokens share a row, as long as it stays short.
    """
    for bucket in buckets(prompts, []):
        rows: dict[tuple[int, int], list[Tensor]] = {}
        for alike, n_shared in _beginning_alike(prompts.tokens[bucket.prompts, : bucket.length]):
            n_members = min(_MOST * at_once, (LONGEST * bucket.length - n_shared) // (bucket.length - n_shared))
            for members in alike.split(n_members):
                rows.setdefault((len(members), n_shared), []).append(bucket.prompts[members])
        for (n_members, n_shared), some in rows.items():
            whole = Pack(torch.stack(some), bucket.length, n_shared)
            n_rows = min(at_once * bucket.length // len(whole.positions), _MOST * at_once // n_members)
            for part in whole.prompts.split(max(1, n_rows)):
                yield replace(whole, prompts=part)


def _beginning_alike(tokens: Int[Tensor, "prompt pos"]) -> Iterator[tuple[Int[Tensor, " some"], int]]:
    """Prompts that begin alike, and in how many tokens they do."""
    length = tokens.shape[1]
    _, kind = torch.unique(tokens[:, : max(1, length // 2)], dim=0, return_inverse=True)
    for i in range(int(kind.max()) + 1):
        some = (kind == i).nonzero()[:, 0]
        agree = (tokens[some] == tokens[some[0]]).all(0)
        yield some, min(int(agree.long().cumprod(0).sum()), length - 1)
