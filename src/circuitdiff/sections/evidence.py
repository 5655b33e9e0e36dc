"""What the verdict needs of the overlap and functions sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Results = Mapping[str, Any]


def similarity_evidence(results: Results, variant: str) -> dict[str, Any]:
    """By stage: how alike base and variant are, the lower of their retests, and the control, another stage's map.

    A stage that chose heads in neither model has nothing to be alike in.
    """
    entry = (results.get("overlap") or {}).get(variant) or {}
    return {
        f"the correlation of effects, stage {stage['stage']},": {
            "value": stage["correlation"]["between"],
            "retest": _lower(stage["correlation"]["base"], stage["correlation"]["variant"]),
            "different": stage["different"],
        }
        for stage in entry.get("stages") or []
        if any(stage["n_chosen"])
    }


def _lower(first: Mapping[str, float], second: Mapping[str, float]) -> Mapping[str, float]:
    return min(first, second, key=lambda spread: spread["low"])


def functions_evidence(results: Results, base: str, variant: str) -> dict[str, Any]:
    """By group of the base's circuit: its mask, of the desideratum that it carries best, unchanged in the variant."""
    models = (results.get("functions") or {}).get(base) or {}
    found = {}
    for group, cells in (models.get(base) or {}).items():
        carried = [name for name, cell in cells.items() if cell.get("carries")]
        theirs = (models.get(variant) or {}).get(group) or {}
        if not carried:
            continue
        best = max(carried, key=lambda name: cells[name]["above_floor"]["value"])
        cell = theirs.get(best) or {}
        moved = cell.get("transferred") or {}
        found[f"{group} ({best})"] = {
            "difference": moved.get("above_own_mask"),
            "transferred": moved,
            "floor": (cell.get("controls") or {}).get("shuffled"),
        }
    return found
