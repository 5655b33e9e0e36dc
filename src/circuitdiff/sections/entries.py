"""Plain numbers for results.json."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from circuitdiff.circuit import Circuit, Head
from circuitdiff.stats.intervals import Interval, RatioInterval


def interval_entry(interval: Interval, row: int | None = None) -> dict[str, float]:
    """An estimate with its bounds, or one row of many."""
    bounds = (np.asarray(bound) if row is None else np.asarray(bound)[row] for bound in interval)
    return dict(zip(("value", "low", "high"), map(float, bounds), strict=True))


def ratio_entry(ratio: RatioInterval) -> dict[str, Any]:
    """A ratio with its bounds, and why it has none if it is undefined."""
    return {"value": ratio.value, "low": ratio.low, "high": ratio.high, "note": ratio.undefined}


def heads_entry(heads: Iterable[Head]) -> list[list[int]]:
    return [[head.layer, head.index] for head in heads]


def with_heads(circuit: Circuit) -> Circuit:
    """The circuit without groups in which nothing was found."""
    return Circuit({name: group for name, group in circuit.groups.items() if group.heads})
