"""Desiderata: from a clean prompt to a base prompt, a source prompt and the answer that patching should bring about."""

from circuitdiff.tasks.desiderata.source_prompts import Pairing, Source, Wording
from circuitdiff.tasks.desiderata.table import CONFLICTS, DESIDERATA, MAIN, REWORDED, Desideratum, desideratum_named
from circuitdiff.tasks.desiderata.triples import (
    N_TRIPLES,
    Line,
    read_triples,
    sample_desiderata,
    sample_triples,
    triples_of,
)

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
