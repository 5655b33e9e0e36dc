"""The numbers of a planted model: its strengths, which head plays which part, and randomness for each part.

Each part has a generator of its own, so that changing one part redraws no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Head


def generator(*key: object) -> torch.Generator:
    """A random generator of its own for `key`, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def normal(*shape: int, key: tuple[object, ...]) -> Float[Tensor, "*shape"]:
    """Standard normal numbers that depend on `key` alone."""
    return torch.randn(*shape, generator=generator(*key), dtype=torch.float64)


def unit_rows(n_rows: int, n_columns: int, key: tuple[object, ...]) -> Float[Tensor, "n_rows n_columns"]:
    """Random directions, one a row, of length 1."""
    return torch.nn.functional.normalize(normal(n_rows, n_columns, key=key), dim=1)


def orthogonal(n: int, key: tuple[object, ...]) -> Float[Tensor, "n n"]:
    """A random orthogonal matrix."""
    return torch.linalg.qr(normal(n, n, key=key)).Q


N_LAYERS, N_HEADS = 10, 8  # of the usual shape

# How many heads each part may use and the layers where they may be, in the order in which they are placed. What a
# part reads is written in earlier layers: only the backup needs to come after all fetchers of the usual number.
PARTS: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    ("structure_reader", 3, (0, 1)),
    ("name_binder", 3, (0, 1)),
    ("position_detector", 3, (2, 3)),
    ("position_transmitter", 1, (4,)),  # this one may be a detector for the next
    ("position_transmitter", 2, (5,)),
    ("label_transmitter", 3, (2, 3, 4, 5)),
    ("value_fetcher", 3, (6, 7, 8)),
    ("label_fetcher", 3, (6, 7, 8)),
    ("backup", 1, (9,)),
    ("negative", 2, (8, 9)),
    ("value_fetcher", 17, (6, 7, 8, 9)),  # those of the wiring that spreads the work
    ("canceller", 2, (5,)),
)


def place_heads(seed: int, n_layers: int = N_LAYERS) -> Mapping[str, tuple[Head, ...]]:
    """For each part the heads that it may use, no head twice; a wiring uses the first of them.

    In a deeper model the same heads lie further apart, in the same order; the layers between them hold decoys.
    """
    g = generator(seed, "placement")
    free = {(layer, index) for layer in range(N_LAYERS) for index in range(N_HEADS)}
    placed: dict[str, tuple[Head, ...]] = {}
    for part, n_heads, layers in PARTS:
        allowed = sorted(place for place in free if place[0] in layers)
        chosen = [allowed[i] for i in torch.randperm(len(allowed), generator=g)[:n_heads].tolist()]
        free -= set(chosen)
        placed[part] = (*placed.get(part, ()), *(Head(layer * n_layers // N_LAYERS, index) for layer, index in chosen))
    return placed


def place_apart(seed: int, n_heads: Mapping[str, int]) -> Mapping[str, tuple[Head, ...]]:
    """One head a layer, in the order of `PARTS`, of each part as many as are named."""
    g, order = generator(seed, "placement", "apart"), dict.fromkeys(part for part, *_ in PARTS if part in n_heads)
    layers = iter(range(sum(n_heads.values())))

    def placed() -> Head:
        return Head(next(layers), int(torch.randint(N_HEADS, (1,), generator=g)))

    return {part: tuple(placed() for _ in range(n_heads[part])) for part in order}


@dataclass(frozen=True)
class Wiring:
    """How strong, sharp and clear each part is.

    A gain is what a part's heads write together, relative to a clean copy of what they read. A sharpness is the score
    of a perfect match before the softmax, where no match is 0.
    """

    n_heads: Mapping[str, int]  # of each part; all other heads are decoys
    n_layers: int = N_LAYERS  # more where many heads are planted: at least five decoys for each head of the circuit
    detector_sharpness: float = 3.0
    detector_gain: float = 1.0
    transmitter_leak: float = 0.3  # the share of an address that goes to its neighbours
    recoded: bool = False  # transmitters write each address in another's place, and fetchers look for it there
    cancelling: float = 1.0  # how much of the next box's address one canceller writes, and the other takes away
    grid_addresses: bool = False  # the first transmitter carries the address's row, the second its column
    fetcher_sharpness: float = 4.6
    fetcher_gain: float = 1.0
    salience: float = 1.0  # score that an object draws by itself, whatever is asked: its standard deviation
    negative_gain: float = 0.04
    negative_sharpness: float = 24.0  # the object at the address, surely: so they hurt on every prompt
    backup_gain: float = 0.7
    backup_sharpness: float = 24.0
    backup_restraint: float = 100.0  # score that looking nowhere gains for a name written in full
    backup_sink: float = 2.0  # score of looking nowhere when nothing is written
    label_fetcher_gain: float = 1.0
    label_fetcher_sharpness: float = 2.1
    shared_head: bool = False  # one of the transmitters is a detector, too
    unembedding_correction: float = 0.0  # share of the salience that the unembedding takes out again
    mlp_correction: float = 0.0  # share of the salience that the last MLP takes out again
    permute_heads: bool = False
    rotate_values: bool = False
    harmless: bool = False  # weights of every kind moved that do not matter; see planted/harmless.py
    shared_kv: bool = False  # all heads of a layer read the same keys and values; one head a layer plays a part
    noise: bool = False  # every number moved a little at random


@dataclass(frozen=True)
class Entry:
    """A planted model: its numbers, what it is compared with, and what a comparison must say."""

    wiring: Wiring
    base: str  # the planted model that this one is compared with
    improved_parts: tuple[str, ...]  # groups, "negative", "mlp" or "unembedding"
    same_circuit: bool  # as in `base`
    note: str
