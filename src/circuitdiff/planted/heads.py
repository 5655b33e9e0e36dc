"""The heads of a planted model, from features to weights: those that do something, and decoys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def structure_reader(space: Space, wiring: Wiring, member: Member) -> HeadWeights:
    """At a label: looks at the object of the same segment and writes down its address."""
    copy = member.share * space.of("label_address").T
    return wire(_own_object(space), [Move(space.of("place"), copy)])


def name_binder(space: Space, wiring: Wiring, member: Member) -> HeadWeights:
    """At a label: looks at the object of the same segment and copies its name and salience."""
    names = _copy_names(space, member, 20, "name", 1.0)
    salience = Move(space.of("salience"), member.share * space.of("salience").T)
    return wire(_own_object(space), [names, salience])


def position_detector(space: Space, wiring: Wiring, member: Member) -> HeadWeights:
    """At the query label: looks at the same label in the context and takes over the address found there."""
    return wire(_same_label(space, wiring.detector_sharpness), [_detected(space, wiring, member)])


def position_transmitter(space: Space, wiring: Wiring, member: Member) -> HeadWeights:
    """At the last token: looks at the query label and fetches the address."""
    return wire(_query_label(space), [_transmitted(space, wiring, member)])


def detecting_transmitter(space: Space, wiring: Wiring, detector: Member, transmitter: Member) -> HeadWeights:
    """A detector at the query label, and at the last token a transmitter."""
    last = Score(2 * _SURE, space.of("last"), space.of("query_label"))
    moves = [_detected(space, wiring, detector), _transmitted(space, wiring, transmitter)]
    return wire([*_same_label(space, wiring.detector_sharpness), last], moves)


def label_transmitter(space: Space, wiring: Wiring, member: Member) -> HeadWeights:
    """At the last token: looks at the query label and fetches the label itself."""
    return wire(_query_label(space), [Move(space.of("label"), member.share * space.of("label").T)])


def canceller(space: Space, wiring: Wiring, member: Member) -> HeadWeights:
    """A transmitter of the next box's address: the first adds it, the second takes it away."""
    sign = 1.0 if member.index == 0 else -1.0
    read = space.of("query_address").roll(1, dims=1)
    write = sign * wiring.cancelling * space.of("last_address").T
    return wire(_query_label(space), [Move(read, write)])


def value_fetcher(space: Space, wiring: Wiring, member: Member) -> HeadWeights:
    """At the last token: looks for the object at the address and writes its name to the logits."""
    scores = [
        Score(wiring.fetcher_sharpness, space.of("last_address"), _place(space, wiring)),
        Score(_SURE / 2, None, space.of("object")),
        _salience(space, wiring, member),
    ]
    return wire(scores, [_copy_names(space, member, 24, "output", wiring.fetcher_gain)])


def negative(space: Space, wiring: Wiring, member: Member) -> HeadWeights:
    """Looks for the object at the address as the backup does, whatever else draws attention; takes its name away.

    Drawn by salience, or as soft as the fetchers, it would take wrong names away where they win, and help.
    """
    scores = [
        Score(wiring.negative_sharpness, space.of("last_address"), _place(space, wiring)),
        Score(_SURE / 2, None, space.of("object")),
    ]
    return wire(scores, [_copy_names(space, member, 24, "output", -wiring.negative_gain)])


def backup(space: Space, wiring: Wiring, member: Member) -> HeadWeights:
    """A value fetcher that looks nowhere while any name is written, whichever (an MLP says how much)."""
    scores = [
        Score(wiring.backup_sharpness, space.of("last_address"), _place(space, wiring)),
        Score(wiring.backup_restraint, space.of("written"), space.of("start")),
        Score(wiring.backup_sink, None, space.of("start")),
    ]
    return wire(scores, [_copy_names(space, member, 24, "output", wiring.backup_gain)])


def label_fetcher(space: Space, wiring: Wiring, member: Member) -> HeadWeights:
    """At the last token: looks for the label in the context and writes the name bound to it to the logits."""
    scores = [*_same_label(space, wiring.label_fetcher_sharpness), _salience(space, wiring, member)]
    return wire(scores, [_copy_names(space, member, 24, "output", wiring.label_fetcher_gain)])


_PARTS = (structure_reader, name_binder, position_detector, position_transmitter, label_transmitter)
WIRED: Mapping[str, Callable[[Space, Wiring, Member], HeadWeights]] = {
    part.__name__: part for part in (*_PARTS, canceller, value_fetcher, label_fetcher, negative, backup)
}


def _own_object(space: Space) -> list[Score]:
    return [Score(_SURE, space.of("segment"), space.of("place")), Score(_SINK, None, space.of("start"))]


def _same_label(space: Space, sharpness: float) -> list[Score]:
    """Not the query label itself: it is no label of the context."""
    return [Score(sharpness, space.of("label"), space.of("label")), Score(_SURE / 2, None, space.of("context_label"))]


def _query_label(space: Space) -> list[Score]:
    return [Score(_SURE, space.of("last"), space.of("query_label")), Score(_SINK, None, space.of("start"))]


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


def _detected(space: Space, wiring: Wiring, member: Member) -> Move:
    return Move(space.of("label_address"), member.share * wiring.detector_gain * space.of("query_address").T)


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
