"""Invented sections on whether the circuit is the circuit."""

from __future__ import annotations

from typing import Any

CIRCUIT, MODEL = "ours", "tiny"


def estimate(value: float | None, spread: float = 0.05) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": value - spread, "high": value + spread}


def _head(layer: int, index: int, cost: float, *, kept: bool, removed: list[list[int]] | None = None) -> dict[str, Any]:
    return {
        "head": [layer, index],
        "cost": cost,
        "low": cost - 0.02,
        "high": cost + 0.03,
        "adjusted_p": 0.004 if kept else 0.6,
        "kept": kept,
        "removed_with": removed or [],
        "before": 0.5,
        "after": 0.5 - cost,
        "cost_in_hits": estimate(cost / 2),
    }


def minimality_entry() -> dict[str, Any]:
    groups = {
        "value_fetcher": [
            _head(3, 0, 0.001, kept=False),
            _head(4, 1, 0.25, kept=True, removed=[[3, 0], [2, 2]]),
            _head(2, 2, -0.01, kept=False),
        ],
        "structure_reader": [_head(1, 0, 0.125, kept=True)],
        "nothing": [],
    }
    return {
        "model": MODEL,
        "groups": groups,
        "kept": {"groups": {"value_fetcher": {"at": "last", "heads": [[4, 1]]}}},
        "rule": {"score": "probability", "held_out": True, "decision": "credible", "threshold": 0.0},
        "n_prompts": {"choosing": 100, "testing": 98, "fresh": 300},
        "n_heads": {"before": 4, "pruned": 2},
        "faithfulness_before": estimate(0.75),
        "faithfulness_pruned": estimate(0.625),
    }


def _part(n_removed: int, model: float, circuit: float) -> dict[str, Any]:
    terms = {"model": estimate(model), "circuit": estimate(circuit), "difference": estimate(model - circuit)}
    return {"n_removed": n_removed} | terms | {"absolute_difference": estimate(abs(model - circuit), 0.0625)}


def completeness_entry() -> dict[str, Any]:
    return {
        "quantity": "probability",
        "n_prompts": 100,
        "random": [_part(2, 0.5, 0.25), _part(1, 0.625, 0.5)],
        "groups": [
            {"group": "value_fetcher"} | _part(3, 0.25, 0.0625),
            {"group": "structure_reader"} | _part(1, 0.5, 0.5),
        ],
        "nothing_removed": _part(0, 0.75, 0.625),
        "everything_removed": _part(4, 0.125, 0.03125),
        "greedy": _part(2, 0.5, 0.125) | {"removed": {"groups": {}}, "search": []},
        "correlation": {"value": 0.8125, "low": 0.5, "high": 0.9375},
    }


def ablations_entry() -> dict[str, Any]:
    def scores(circuit: float, ratio: float | None, note: str | None = None) -> dict[str, Any]:
        return {
            "circuit": estimate(circuit),
            "model": estimate(0.8),
            "ablated": estimate(0.1),
            "ratio": estimate(ratio) | {"note": note},
            "normalised": estimate(ratio) | {"note": note},
        }

    return {
        "mean_by_slot": {
            "n_prompts": 90,
            "accuracy": scores(0.5, 0.625),
            "logit_difference": scores(0.25, None, "why"),
        },
        "zero": {"n_prompts": 90, "accuracy": scores(0.2, 0.25)},
    }
