"""A row of the page: a claim about a planted model, what was expected, and what came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """One claim, checked. The expectation follows from the wiring, never from what came."""

    model: str
    claim: str
    value: float
    expectation: str
    passed: bool
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"value": self.value if np.isfinite(self.value) else None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Row:
        return cls(**{**data, "value": np.nan if data["value"] is None else data["value"]})


def exactly(model: str, claim: str, value: float, expected: float, detail: str = "", why: str = "") -> Row:
    return Row(model, claim, value, f"= {expected:.2f}{why and f': {why}'}", value == expected, detail)


def at_least(model: str, claim: str, value: float, lowest: float, detail: str = "") -> Row:
    return Row(model, claim, value, f"≥ {lowest:.2f}", value >= lowest, detail)


def at_most(model: str, claim: str, value: float, largest: float, detail: str = "") -> Row:
    return Row(model, claim, value, f"≤ {largest:g}", value <= largest, detail)


def between(model: str, claim: str, value: float, low: float, high: float, detail: str = "") -> Row:
    return Row(model, claim, value, f"{low:.3f} to {high:.3f}", low <= value <= high, detail)
