"""Every circuit in every model, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_RANDOM = ("mean", "low", "high", "circuit", "percentile", "n_prompts")  # circuit: its accuracy on the same prompts


def matrix_section(results: Mapping[str, Any]) -> dict[str, Any]:
    """Of each circuit in each model, what was measured already: faithfulness, accuracies, random circuits.

    `found_in` says whose circuit it is, so that a variant's circuit in the base, the control, is found by it.
    """
    cells = [
        _cell(results, circuit, model, entry)
        for circuit, models in results["faithfulness"].items()
        for model, entry in models.items()
    ]
    return {"matrix": {"circuits": list(results["faithfulness"]), "models": list(results["models"]), "cells": cells}}


def _cell(results: Mapping[str, Any], circuit: str, model: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    drawn = results["random"].get(circuit, {}).get(model)
    bounds = {key: entry[key] for key in ("value", "low", "high", "note")}
    return {
        "circuit": circuit,
        "found_in": results["circuits"][circuit]["model"],
        "model": model,
        "faithfulness": bounds,
        "normalised": entry["normalised"],
        "circuit_accuracy": entry["circuit_accuracy"],
        "model_accuracy": entry["model_accuracy"],
        "random": None if drawn is None else {key: drawn[key] for key in _OF_RANDOM},
    }
