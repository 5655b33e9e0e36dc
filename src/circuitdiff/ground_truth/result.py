"""All that was checked on planted models, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from circuitdiff.ground_truth.attribution_rows import Comparison
from circuitdiff.ground_truth.plantings import Planting
from circuitdiff.ground_truth.rows import Row
from circuitdiff.ground_truth.subjects import MINIMUM, Sizes


@dataclass(frozen=True)
class GroundTruth:
    """All that was checked."""

    sizes: Sizes
    rows: tuple[Row, ...]
    plantings: tuple[Planting, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        return {
            "minimum": MINIMUM,
            "sizes": asdict(self.sizes),
            "passed": self.passed,
            "rows": [row.to_dict() for row in self.rows],
            "plantings": [planting.to_dict() for planting in self.plantings],
            "attribution": [comparison.to_dict() for comparison in self.comparisons],
        }
