"""Which heads of a circuit it needs."""

from circuitdiff.methods.minimality.measure import minimality
from circuitdiff.methods.minimality.result import GroupMinimality, HeadCost, MinimalityResult
from circuitdiff.methods.minimality.rules import (
    PUBLISHED,
    MinimalityRule,
    PairTable,
    Ranked,
    Significance,
    keep,
    needed,
    pair_removal,
    ranking,
    removal_set,
)

__all__ = [
    "PUBLISHED",
    "GroupMinimality",
    "HeadCost",
    "MinimalityResult",
    "MinimalityRule",
    "PairTable",
    "Ranked",
    "Significance",
    "keep",
    "minimality",
    "needed",
    "pair_removal",
    "ranking",
    "removal_set",
]
