"""The residual stream of a planted model: which coordinates hold what, and what tokens and positions put there.

Everything is wired in *features*, coordinates with a meaning. `Space.basis` turns them into the stream that the model
really has, in which no coordinate means anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from circuitdiff.planted.vocabulary import LABEL_IDS, N_OBJECTS, OBJECT_IDS, TOKENS
from circuitdiff.planted.wiring import normal, orthogonal, unit_rows
from circuitdiff.vocabulary import LABELS

N_BOXES = 7
SEGMENT = ("article", "object", "is", "in", "box", "label", "punctuation")  # the tokens of one box's clause
OBJECT_AT, LABEL_AT = SEGMENT.index("object"), SEGMENT.index("label")
QUERY_LABEL_AT = N_BOXES * len(SEGMENT) + 1  # after the query's "Box"
LAST_AT = QUERY_LABEL_AT + 2  # "contains the"
N_POSITIONS = 64

# LayerNorm divides by sqrt((constant^2 + |other features|^2) / d_model): of a feature norm of 3, a constant of 100
# makes a relative difference of 9 / (2 * 100^2) = 0.05 %.
CONSTANT = 100.0

# Sizes of the subspaces, in order. The first two are the mean, which LayerNorm removes, and the constant.
SIZES = {
    "mean": 1,
    "constant": 1,
    "name": 48,  # of the token's object
    "salience": 4,  # of the token's object: how much it draws attention, whatever is asked
    "object": 1,  # flag
    "label": 20,  # code of the label
    "place": N_BOXES,  # address of an object, at the object
    "segment": N_BOXES,  # which segment a label closes, at the label
    "label_address": N_BOXES,  # written by structure readers, at labels
    "query_address": N_BOXES,  # written by position detectors, at the query label
    "last_address": N_BOXES,  # written by position transmitters, at the last token
    "output": 48,  # what the unembedding reads: names
    "start": 1,  # flags of positions
    "context_label": 1,
    "query_label": 1,
    "last": 1,
    "wave": 12,  # sines and cosines of the position
    "word": 12,  # code of a token that is neither object nor label
    "written": 1,  # how much of names is in the output; only where there is a backup
    "spare": 5,
}
D_MODEL = sum(SIZES.values())


@dataclass(frozen=True)
class Space:
    """Subspaces by name, the codes in them, and the basis of the residual stream."""

    basis: Float[Tensor, "d_model d_model"]  # column = where a feature points
    names: Float[Tensor, "object d_name"]
    saliences: Float[Tensor, "object d_salience"]  # the first is what the average fetcher sees
    labels: Float[Tensor, "label d_label"]

    def of(self, subspace: str) -> Float[Tensor, "d_model n"]:
        """The subspace's features, one a column."""
        return torch.eye(D_MODEL, dtype=torch.float64)[:, span(subspace)]


def span(subspace: str) -> slice:
    """Where the subspace's features are."""
    names = list(SIZES)
    start = sum(SIZES[name] for name in names[: names.index(subspace)])
    return slice(start, start + SIZES[subspace])


def make_space(seed: int) -> Space:
    """Random codes (objects overlap by about 1 / sqrt(48)) in a random basis."""
    uniform = torch.special.ndtr(normal(N_OBJECTS, SIZES["salience"], key=(seed, "salience")))
    return Space(
        basis=_basis(seed),
        names=unit_rows(N_OBJECTS, SIZES["name"], key=(seed, "names")),
        saliences=(uniform - 0.5) * 12**0.5,  # variance 1, and never beyond 1.73
        labels=unit_rows(len(LABELS), SIZES["label"], key=(seed, "labels")),
    )


def _basis(seed: int) -> Float[Tensor, "d_model d_model"]:
    """Orthogonal; first the mean, then the constant, a pair of coordinates of opposite sign."""
    start = orthogonal(D_MODEL, key=(seed, "basis"))
    start[:, 0] = 1.0
    start[:, 1] = 0.0
    start[0, 1], start[1, 1] = 1.0, -1.0
    q, r = torch.linalg.qr(start)
    return q * r.diagonal().sign()


def token_features(space: Space, seed: int) -> Float[Tensor, "d_vocab d_model"]:
    """What each token puts into the stream."""
    features = torch.zeros(len(TOKENS), D_MODEL, dtype=torch.float64)
    features[:, span("constant")] = CONSTANT
    features[:, span("word")] = unit_rows(len(TOKENS), SIZES["word"], key=(seed, "words"))
    features[OBJECT_IDS, span("word")] = 0.0
    features[LABEL_IDS, span("word")] = 0.0
    features[OBJECT_IDS, span("name")] = space.names
    features[OBJECT_IDS, span("salience")] = space.saliences
    features[OBJECT_IDS, span("object")] = 1.0
    features[LABEL_IDS, span("label")] = space.labels
    return features


def position_features() -> Float[Tensor, "pos d_model"]:
    """What each position puts into the stream: one-hot addresses, flags and waves."""
    features = torch.zeros(N_POSITIONS, D_MODEL, dtype=torch.float64)
    starts, addresses = torch.arange(N_BOXES) * len(SEGMENT), torch.eye(N_BOXES, dtype=torch.float64)
    features[starts + OBJECT_AT, span("place")] = addresses
    features[starts + LABEL_AT, span("segment")] = addresses
    features[starts + LABEL_AT, span("context_label")] = 1.0
    features[0, span("start")] = 1.0
    features[QUERY_LABEL_AT, span("query_label")] = 1.0
    features[LAST_AT, span("last")] = 1.0
    features[:, span("wave")] = waves(torch.arange(N_POSITIONS))
    return features


def waves(positions: Tensor) -> Float[Tensor, "pos wave"]:
    """Cosines and sines of six wavelengths, of length 1 together."""
    n_waves = SIZES["wave"] // 2
    lengths = 3.0 * 1.8 ** torch.arange(n_waves, dtype=torch.float64)
    angles = 2 * torch.pi * positions[:, None] / lengths
    return torch.cat([angles.cos(), angles.sin()], dim=1) / n_waves**0.5


def neighbour_leak(leak: float) -> Float[Tensor, "box box"]:
    """Maps an address to itself, less `leak`, which goes to its neighbours (rows sum to 1)."""
    apart = (torch.arange(N_BOXES)[:, None] - torch.arange(N_BOXES)).abs()
    beside = (apart == 1).to(torch.float64)
    return (1 - leak) * torch.eye(N_BOXES, dtype=torch.float64) + leak * beside / beside.sum(1, keepdim=True)


def grid_codes() -> tuple[Float[Tensor, "box box"], Float[Tensor, "box box"]]:
    """Addresses as row and column of a 3 x 3 grid: the maps to the row's code and to the column's."""
    assert N_BOXES <= 9
    boxes = torch.arange(N_BOXES)
    return one_hot(boxes // 3, N_BOXES).double(), one_hot(3 + boxes % 3, N_BOXES).double()
