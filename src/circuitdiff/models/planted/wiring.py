"""The planted models as a table: one set of numbers for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from circuitdiff.models.planted.placement import N_LAYERS


@dataclass(frozen=True)
class Wiring:
    """How strong, sharp and clear each part is.

    A gain is what a part's heads write together, relative to a clean copy of what they read. A sharpness is the score
    of a perfect match before the softmax, where no match is 0.
    """

    n_heads: Mapping[str, int]  # of each part; all other heads are decoys
    n_layers: int = N_LAYERS  # more where many heads are planted: at least five decoys for each head of the circuit
    reader_gain: float = 1.0
    detector_sharpness: float = 3.0
    detector_gain: float = 1.0
    transmitter_gain: float = 1.0
    transmitter_leak: float = 0.3  # the share of an address that goes to its neighbours
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
    decoy_gain: float = 1.0
    permute_heads: bool = False
    rotate_values: bool = False


@dataclass(frozen=True)
class Entry:
    """A planted model: its numbers, what it is compared with, and what a comparison must say."""

    wiring: Wiring
    base: str
    improved_part: str | None  # a group, "negative", "mlp" or "unembedding"; None: no one part got better
    same_circuit: bool
    note: str
