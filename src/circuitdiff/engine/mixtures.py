"""Runs of one model with another's weights in some places. Mixtures that are alike so far share their run.

Each mixture is written as which entries of which parameters come from the other model, layer by layer, where the two
differ at all. Mixtures with the same entries in all layers below have the same residual stream there, so a layer is run
once for each distinct beginning, not once for each mixture. Prompts that begin alike share their first tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdiff.engine.attention import handled_by
from circuitdiff.engine.executor import Readout
from circuitdiff.engine.fits import check_prompts
from circuitdiff.engine.memory import prompts_at_once
from circuitdiff.engine.model import Model
from circuitdiff.engine.packing import LONGEST, Pack, packs
from circuitdiff.engine.replay import Keywords, cut, embed, run_layer
from circuitdiff.engine.weights import Slice, swapped
from circuitdiff.prompts import PromptSet

_ENOUGH_PROMPTS = 32
_OUTSIDE = -1  # the place of what belongs to no layer: embeddings, the last norm, the unembedding

Entries = tuple[tuple[str, bytes], ...]  # by parameter, which of its rows or columns come from the other model


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

    @property
    def n_layer_runs(self) -> int:
        """How many layers are run on each prompt."""
        beginnings = {
            tuple(each.get(place, ()) for place in range(_OUTSIDE, layer + 1))
            for each in self.entries
            for layer in range(self.model.n_layers)
        }
        return len(beginnings)

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
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "mixture prompt value"]:
    """What `readout` says of each mixture's logits after each prompt. The model is afterwards what it was."""
    check_prompts(mixtures.model, prompts)
    found: Tensor | None = None
    done, n = 0, len(mixtures.entries)
    for pack in packs(prompts, min(_ENOUGH_PROMPTS, _most(mixtures.model, prompts))):
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


def _most(model: Model, prompts: PromptSet) -> int:
    """Each layer's residual stream is there while the layers above it run; rows are longer than prompts."""
    d_model = model.module.config.get_text_config().hidden_size
    return prompts_at_once(model, LONGEST * int(prompts.lengths.max()), held=d_model)


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
