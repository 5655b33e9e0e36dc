"""The heads of a planted model, from features to weights: those that do something, and decoys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Head
from circuitdiff.planted.space import D_MODEL, SIZES, Space, grid_codes, neighbour_leak, span, waves
from circuitdiff.planted.wiring import Wiring, generator, normal, orthogonal, unit_rows

D_HEAD = 24


@dataclass(frozen=True)
class HeadWeights:
    """One head's weights; queries have a bias."""

    q: Float[Tensor, "d_model d_head"]
    q_bias: Float[Tensor, " d_head"]
    k: Float[Tensor, "d_model d_head"]
    v: Float[Tensor, "d_model d_head"]
    o: Float[Tensor, "d_head d_model"]


@dataclass(frozen=True)
class Score:
    """A part of the attention score: `gain` times the product of query and key features.

    Without a `query`, `gain` times the key's feature, from every position.
    """

    gain: float
    query: Float[Tensor, "d_model n"] | None
    key: Float[Tensor, "d_model n"]


@dataclass(frozen=True)
class Move:
    """A part of the output: the features read at the attended position, written elsewhere."""

    read: Float[Tensor, "d_model n"]
    write: Float[Tensor, "n d_model"]


def wire(scores: Sequence[Score], moves: Sequence[Move]) -> HeadWeights:
    """The head whose scores and outputs are the sums of these parts."""
    q, q_bias, k = zip(*(_query_and_key(score) for score in scores), strict=True)
    return HeadWeights(
        q=_padded(torch.cat(q, dim=1)),
        q_bias=_padded(torch.cat(q_bias)[None])[0],
        k=_padded(torch.cat(k, dim=1)),
        v=_padded(torch.cat([move.read for move in moves], dim=1)),
        o=_padded(torch.cat([move.write for move in moves]).T).T,
    )


def _query_and_key(score: Score) -> tuple[Tensor, Tensor, Tensor]:
    gain = score.gain * D_HEAD**0.5  # attention divides by sqrt(d_head)
    n = score.key.shape[1]
    if score.query is None:
        return torch.zeros(D_MODEL, n, dtype=torch.float64), torch.full((n,), gain, dtype=torch.float64), score.key
    return gain * score.query, torch.zeros(n, dtype=torch.float64), score.key


def _padded(columns: Float[Tensor, "rows n"]) -> Float[Tensor, "rows d_head"]:
    missing = D_HEAD - columns.shape[1]
    assert missing >= 0, f"a planted head has {D_HEAD} dimensions; its parts need {columns.shape[1]}"
    return torch.nn.functional.pad(columns, (0, missing))


def rotated(head: HeadWeights, rotation: Float[Tensor, "d_head d_head"]) -> HeadWeights:
    """The same function with z in another basis."""
    return HeadWeights(head.q, head.q_bias, head.k, head.v @ rotation, rotation.T @ head.o)


_SURE = 12.0  # a score that no sum over 53 tokens beats: exp(12) / 53 = 3000
_SINK = 5.0  # where a head looks that finds nothing: exp(5) = 148, of 53 other tokens


@dataclass(frozen=True)
class Member:
    """One head among those of its group."""

    index: int
    n_heads: int
    share: float  # of what the group writes; shares add up to 1
    seed: int
    group: str

    def part_of_name(self, n_dimensions: int) -> Float[Tensor, "d_name n"]:
        """The dimensions of a name's code that fit through this head: the group's heads cover all of them evenly."""
        whole = orthogonal(SIZES["name"], key=(self.seed, self.group, "names"))
        start = self.index * SIZES["name"] // self.n_heads
        return whole[:, (start + torch.arange(n_dimensions)) % SIZES["name"]]


def members(group: str, n_heads: int, seed: int) -> list[Member]:
    """Heads of unequal strength, the strongest first."""
    raw = 0.75 + 0.5 * torch.rand(n_heads, generator=generator(seed, group, "strengths"), dtype=torch.float64)
    shares = (raw / raw.sum()).sort(descending=True).values.tolist()
    return [Member(i, n_heads, share, seed, group) for i, share in enumerate(shares)]


def wired(space: Space, wiring: Wiring, member: Member) -> HeadWeights:
    """A head that does something, by its group."""
    return wire(_looks(space, wiring, member), _moves(space, wiring, member))


def detecting_transmitter(space: Space, wiring: Wiring, detector: Member, transmitter: Member) -> HeadWeights:
    """A detector at the query label, and at the last token a transmitter."""
    last = Score(2 * _SURE, space.of("last"), space.of("query_label"))
    moves = [*_moves(space, wiring, detector), *_moves(space, wiring, transmitter)]
    return wire([*_looks(space, wiring, detector), last], moves)


def _looks(space: Space, wiring: Wiring, member: Member) -> list[Score]:
    """Where the heads of each group look."""
    of, nowhere, at_object = space.of, space.of("start"), Score(_SURE / 2, None, space.of("object"))
    address = of("last_address"), _place(space, wiring)
    match member.group:
        case "structure_reader" | "name_binder":  # at a label, at the object of the same segment
            return [Score(_SURE, of("segment"), of("place")), Score(_SINK, None, nowhere)]
        case "position_detector":  # at the query label, at the same label in the context
            return _same_label(space, wiring.detector_sharpness)
        case "position_transmitter" | "label_transmitter" | "canceller":  # at the last token, at the query label
            return [Score(_SURE, of("last"), of("query_label")), Score(_SINK, None, nowhere)]
        case "label_fetcher":  # at the last token, at the label in the context
            return [*_same_label(space, wiring.label_fetcher_sharpness), _salience(space, wiring, member)]
        case "value_fetcher":  # at the last token, at the object at the address
            return [Score(wiring.fetcher_sharpness, *address), at_object, _salience(space, wiring, member)]
        case "negative":
            # As the backup does, whatever else draws attention: drawn by salience, or as soft as the fetchers, it would
            # take wrong names away where they win, and help.
            return [Score(wiring.negative_sharpness, *address), at_object]
        case "backup" | _:  # at the address, but nowhere while any name is written, whichever (an MLP says how much)
            restraint = Score(wiring.backup_restraint, of("written"), nowhere)
            return [Score(wiring.backup_sharpness, *address), restraint, Score(wiring.backup_sink, None, nowhere)]


def _moves(space: Space, wiring: Wiring, member: Member) -> list[Move]:
    """What the heads of each group write of what they see there."""
    of = space.of
    match member.group:
        case "structure_reader":  # the object's address
            return [Move(of("place"), member.share * of("label_address").T)]
        case "name_binder":  # the object's name and salience
            salience = Move(of("salience"), member.share * of("salience").T)
            return [_copy_names(space, member, 20, "name", 1.0), salience]
        case "position_detector":  # the address found there
            return [Move(of("label_address"), member.share * wiring.detector_gain * of("query_address").T)]
        case "position_transmitter":  # the address
            return [_transmitted(space, wiring, member)]
        case "canceller":  # the next box's address: the first adds it, the second takes it away
            sign = 1.0 if member.index == 0 else -1.0
            return [Move(of("query_address").roll(1, dims=1), sign * wiring.cancelling * of("last_address").T)]
        case "label_transmitter":  # the label itself
            return [Move(of("label"), member.share * of("label").T)]
        case group:  # the object's name, or the name bound to the label, to the logits; negative heads take it away
            gains = {"value_fetcher": wiring.fetcher_gain, "label_fetcher": wiring.label_fetcher_gain}
            gains |= {"negative": -wiring.negative_gain, "backup": wiring.backup_gain}
            return [_copy_names(space, member, 24, "output", gains[group])]


def _same_label(space: Space, sharpness: float) -> list[Score]:
    """Not the query label itself: it is no label of the context."""
    return [Score(sharpness, space.of("label"), space.of("label")), Score(_SURE / 2, None, space.of("context_label"))]


def _salience(space: Space, wiring: Wiring, member: Member) -> Score:
    """Mostly the first coordinate of the salience, which all heads share, and a little of the head's own."""
    own = 0.4 * unit_rows(1, SIZES["salience"] - 1, key=(member.seed, member.group, member.index, "salience"))
    shared = torch.full((1, 1), (1 - 0.4**2) ** 0.5, dtype=torch.float64)
    return Score(wiring.salience, None, space.of("salience") @ torch.cat([shared, own], dim=1).T)


_RECODING = 3  # boxes by which recoded addresses are out of place


def _place(space: Space, wiring: Wiring) -> Float[Tensor, "d_model box"]:
    """The object's address in the code that transmitters write."""
    if wiring.recoded:
        return space.of("place").roll(_RECODING, dims=1)
    if not wiring.grid_addresses:
        return space.of("place")
    row, column = grid_codes()
    return space.of("place") @ (row + column) / 2  # so that row and column together are the perfect match


def _transmitted(space: Space, wiring: Wiring, member: Member) -> Move:
    """What leaks does so on reading (v), so that z carries it."""
    code = neighbour_leak(wiring.transmitter_leak)
    if wiring.grid_addresses:
        code = code @ grid_codes()[member.index]
    share = 1.0 if wiring.grid_addresses else member.share
    addresses = space.of("last_address").roll(-_RECODING if wiring.recoded else 0, dims=1)
    return Move(space.of("query_address") @ code, share * addresses.T)


def _copy_names(space: Space, member: Member, n_dimensions: int, to: str, gain: float) -> Move:
    """Copies the head's part of the name. Heads of equal share give `gain` times the whole name together."""
    part = member.part_of_name(n_dimensions)
    scale = gain * member.share * SIZES["name"] / n_dimensions
    return Move(space.of("name") @ part, scale * (space.of(to) @ part).T)


_KINDS = ("earlier token", "objects", "same label", "start", "diffuse")
_SCALE = 0.002  # length of what a decoy writes for each unit that it reads, in one feature
# Sharp attention multiplies what is left of an address. At 3 some decoys move the answer by 0.26 logits, which is no
# decoy any more; at 0.5 none by more than 0.03 (through addresses, 70 prompts of the most sensitive models).
_ON_ADDRESSES = 0.5


def decoy(space: Space, head: Head, seed: int) -> HeadWeights:
    """A head of a random kind, which reads all features and writes a little to all of them."""
    key = (seed, "decoy", head)
    g = generator(*key)
    kind = _KINDS[int(torch.randint(len(_KINDS), (1,), generator=g))]
    back = int(torch.randint(6, (1,), generator=g))
    write = _SCALE * normal(D_HEAD, D_MODEL, key=(*key, "o"))
    write[:, : span("constant").stop] = 0.0
    for addresses in ("label_address", "query_address", "last_address"):
        write[:, span(addresses)] *= _ON_ADDRESSES
    if kind == "objects":  # writes names to the logits, of all objects alike
        part = normal(SIZES["name"], D_HEAD, key=(*key, "names")) / D_HEAD**0.5
        write[:, span("output")] += _SCALE * part.T
        return wire(_scores(space, kind, back, key), [Move(space.of("name") @ part, write)])
    read = normal(D_MODEL, D_HEAD, key=(*key, "v")) / D_HEAD**0.5
    read[: span("constant").stop] = 0.0
    return wire(_scores(space, kind, back, key), [Move(read, write)])


def sharing(owner: HeadWeights, space: Space, head: Head, seed: int) -> HeadWeights:
    """A decoy that reads another head's keys and values, by queries of its own, and writes as decoys do."""
    own, q = decoy(space, head, seed), normal(D_MODEL, D_HEAD, key=(seed, "sharing", head)) / D_HEAD**0.5
    q[: span("constant").stop] = 0.0
    return HeadWeights(q, torch.zeros_like(own.q_bias), owner.k, owner.v, own.o)


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
