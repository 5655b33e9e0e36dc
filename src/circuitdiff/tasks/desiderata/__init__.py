"""Desiderata: from a clean prompt to a base prompt, a source prompt and the answer that patching should bring about."""

from circuitdiff.tasks.desiderata.jsonl import Line, read_triples, triples_of
from circuitdiff.tasks.desiderata.pairing import Pairing
from circuitdiff.tasks.desiderata.sampling import N_TRIPLES, sample_desiderata, sample_triples
from circuitdiff.tasks.desiderata.table import CONFLICTS, DESIDERATA, MAIN, REWORDED, Desideratum, desideratum_named
from circuitdiff.tasks.desiderata.wording import Source, Wording

__all__ = [
    "CONFLICTS",
    "DESIDERATA",
    "MAIN",
    "N_TRIPLES",
    "REWORDED",
    "Desideratum",
    "Line",
    "Pairing",
    "Source",
    "Wording",
    "desideratum_named",
    "read_triples",
    "sample_desiderata",
    "sample_triples",
    "triples_of",
]
