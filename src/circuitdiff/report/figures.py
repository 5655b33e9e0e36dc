"""Every figure of a run's results, by key."""

from __future__ import annotations

from circuitdiff.report.accuracy import among_random, by_queried
from circuitdiff.report.drawing import circuit_drawing
from circuitdiff.report.effects import effect_map
from circuitdiff.report.look import Figure, circuit_key, random_key, stage_key
from circuitdiff.report.numbers import finite
from circuitdiff.report.scene import scene

ACCURACY_BY_QUERIED = "accuracy_by_queried"


def figures(results: dict) -> dict[str, Figure]:
    """The figures that `results` has numbers for, in the page's order, without drawing any.

    A section that is missing has no figure.
    """
    accuracy = by_queried(results.get("models") or {})
    return {
        **({ACCURACY_BY_QUERIED: accuracy} if accuracy else {}),
        **_circuits(results),
        **_effects(results),
        **_random(results),
    }


def _circuits(results: dict) -> dict[str, Figure]:
    scenes = {name: scene(results, name) for name in results.get("circuits") or {}}
    return {circuit_key(name): circuit_drawing(name, found) for name, found in scenes.items() if found}


def _effects(results: dict) -> dict[str, Figure]:
    return {
        stage_key(circuit, number, stage["name"]): effect_map(stage)
        for circuit, found in (results.get("discovery") or {}).items()
        for number, stage in enumerate(found.get("stages") or [], start=1)
        if any(stage.get("effects") or [])
    }


def _random(results: dict) -> dict[str, Figure]:
    drawn = {}
    for circuit, models in (results.get("random") or {}).items():
        for model, random in models.items():
            accuracies = [a for a in map(finite, random.get("accuracies") or []) if a is not None]
            if accuracies:
                title, references = f"{circuit} among random circuits, {model}", _references(results, circuit, model)
                drawn[random_key(circuit, model)] = among_random(title, accuracies, references)
    return drawn


def _references(results: dict, circuit: str, model: str) -> dict[str, object]:
    """What random circuits are compared with, by its name in the legend."""
    measured = ((results.get("faithfulness") or {}).get(circuit) or {}).get(model) or {}
    everything = ((results.get("all_heads_at_roles") or {}).get(circuit) or {}).get(model) or {}
    return {
        "this circuit": (measured.get("circuit_accuracy") or {}).get("value"),
        "whole model": (measured.get("model_accuracy") or {}).get("value"),
        "every head ablated": (measured.get("ablated_accuracy") or {}).get("value"),
        "all heads at its roles": everything.get("value"),
    }
