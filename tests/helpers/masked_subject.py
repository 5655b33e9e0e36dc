"""Some heads of a tiny model, to be masked."""

from __future__ import annotations

from circuitdiff.circuit import Group, Head
from circuitdiff.methods.component_mask.patching import Patching, SharedRuns
from circuitdiff.triples import Triples
from helpers.tiny_models import Subject

HEADS = (Head(2, 4), Head(1, 0), Head(1, 5), Head(3, 2))


def patching_of(chosen: Subject, triples: Triples, at: str, **options) -> Patching:
    return SharedRuns(chosen.model, {"group": Group(at, HEADS)}, triples.base, **options).patching("group", triples)
