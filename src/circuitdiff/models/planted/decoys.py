"""Heads that are busy with something else: they attend somewhere, and a little of what they write lands everywhere."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.heads import Head
from circuitdiff.models.planted.head_weights import D_HEAD, HeadWeights, Move, Score, wire
from circuitdiff.models.planted.randomness import generator, normal
from circuitdiff.models.planted.space import D_MODEL, SIZES, Space, span, waves

_KINDS = ("earlier token", "objects", "same label", "start", "diffuse")
_SCALE = 0.002  # length of what a decoy writes for each unit that it reads, in one feature
_ADDRESSES = ("label_address", "query_address", "last_address")
# Sharp attention multiplies what is left of an address. At 3 some decoys move the answer by 0.26 logits, which is no
# decoy any more; at 0.5 none by more than 0.03 (through addresses, 70 prompts of the most sensitive models).
_ON_ADDRESSES = 0.5


def decoy(space: Space, head: Head, gain: float, seed: int) -> HeadWeights:
    """A head of a random kind, which reads all features and writes a little to all of them."""
    key = (seed, "decoy", head)
    g = generator(*key)
    kind = _KINDS[int(torch.randint(len(_KINDS), (1,), generator=g))]
    back = int(torch.randint(6, (1,), generator=g))
    write = gain * _SCALE * normal(D_HEAD, D_MODEL, key=(*key, "o"))
    write[:, : span("constant").stop] = 0.0
    for addresses in _ADDRESSES:
        write[:, span(addresses)] *= _ON_ADDRESSES
    if kind == "objects":  # writes names to the logits, of all objects alike
        part = normal(SIZES["name"], D_HEAD, key=(*key, "names")) / D_HEAD**0.5
        write[:, span("output")] += gain * _SCALE * part.T
        return wire(_scores(space, kind, back, key), [Move(space.of("name") @ part, write)])
    read = normal(D_MODEL, D_HEAD, key=(*key, "v")) / D_HEAD**0.5
    read[: span("constant").stop] = 0.0
    return wire(_scores(space, kind, back, key), [Move(read, write)])


def _scores(space: Space, kind: str, back: int, key: tuple[object, ...]) -> list[Score]:
    diffuse = _random_features((*key, "k"))
    if kind == "earlier token":
        return [Score(12.0, space.of("wave"), space.of("wave") @ _shift(back))]
    if kind == "objects":
        return [Score(4.0, None, space.of("object")), Score(1.0, _random_features((*key, "q")), diffuse)]
    if kind == "same label":
        return [Score(5.0, space.of("label"), space.of("label"))]
    if kind == "start":
        return [Score(5.0, None, space.of("start")), Score(1.0, None, diffuse[:, :1])]
    return [Score(1.0, _random_features((*key, "q")), diffuse)]


def _random_features(key: tuple[object, ...]) -> Float[Tensor, "d_model n"]:
    """Four random mixtures of all features, about as large as the features."""
    mixture = normal(D_MODEL, 4, key=key) / 2
    mixture[: span("constant").stop] = 0.0
    return mixture


def _shift(back: int) -> Float[Tensor, "wave wave"]:
    """Turns the wave of a position into that of the position `back` later."""
    n_waves = SIZES["wave"] // 2
    cos, sin = (waves(torch.tensor([back]))[0] * n_waves**0.5).split(n_waves)
    return torch.cat([torch.cat([cos.diag(), sin.diag()], 1), torch.cat([-sin.diag(), cos.diag()], 1)])
