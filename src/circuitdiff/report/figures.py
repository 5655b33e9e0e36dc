"""Every figure of a run's results, by key."""

from __future__ import annotations

from collections.abc import Sequence

from circuitdiff.report.accuracy import among_random, by_queried
from circuitdiff.report.drawing import circuit_drawing
from circuitdiff.report.effects import effect_map
from circuitdiff.report.look import Figure, circuit_key, random_key, stage_key
from circuitdiff.report.numbers import finite
from circuitdiff.report.parts import Part, parts
from circuitdiff.report.scene import scene

ACCURACY_BY_QUERIED = "accuracy_by_queried"


def circuit_names(results: dict) -> list[str]:
    """Every circuit that the results have a section on, each once."""
    sections = (results.get(section) or {} for section in ("circuits", "discovery", "random"))
    return list(dict.fromkeys(name for section in sections for name in section))


def figures(results: dict, shown: Sequence[Part] | None = None) -> dict[str, Figure]:
    """The figures that `results` has numbers for, in the page's order; `shown`: its parts, if they are there already.

    A section that is missing has no figure.
    """
    accuracy = by_queried(results)
    drawn = {ACCURACY_BY_QUERIED: accuracy} if accuracy else {}
    for circuit in circuit_names(results):
        drawn |= _drawing(results, circuit) | _effects(results, circuit) | _random(results, circuit)
    for part in parts(results) if shown is None else shown:
        drawn |= part.figures
    return drawn


def _drawing(results: dict, circuit: str) -> dict[str, Figure]:
    found = scene(results, circuit) if circuit in (results.get("circuits") or {}) else None
    return {circuit_key(circuit): circuit_drawing(circuit, found)} if found else {}


def _effects(results: dict, circuit: str) -> dict[str, Figure]:
    stages = ((results.get("discovery") or {}).get(circuit) or {}).get("stages") or []
    return {
        stage_key(circuit, number, stage["name"]): effect_map(stage)
        for number, stage in enumerate(stages, start=1)
        if any(stage.get("effects") or [])
    }


def _random(results: dict, circuit: str) -> dict[str, Figure]:
    drawn = {}
    for model, random in ((results.get("random") or {}).get(circuit) or {}).items():
        accuracies = [a for a in map(finite, random.get("accuracies") or []) if a is not None]
        if accuracies:
            title, references = (
                f"{circuit} among random circuits, {model}",
                _references(results, circuit, model, random),
            )
            drawn[random_key(circuit, model)] = among_random(title, accuracies, references, random.get("n_prompts"))
    return drawn


def _references(results: dict, circuit: str, model: str, random: dict) -> dict[str, object]:
    """What random circuits are compared with, by its name in the legend; the circuit itself on their prompts."""
    measured = ((results.get("faithfulness") or {}).get(circuit) or {}).get(model) or {}
    everything = ((results.get("all_heads_at_roles") or {}).get(circuit) or {}).get(model) or {}
    whole = measured.get("model_accuracy") or {}
    where = "" if random.get("n_prompts") in (None, whole.get("n")) else f", all {whole.get('n')} prompts"
    return {
        "this circuit": random.get("circuit", (measured.get("circuit_accuracy") or {}).get("value")),
        f"whole model{where}": whole.get("value"),
        f"every head ablated{where}": (measured.get("ablated_accuracy") or {}).get("value"),
        f"all heads at its roles{where}": everything.get("value"),
    }
