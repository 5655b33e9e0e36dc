"""Claims about a whole study's verdict: the same circuit where only a part got better, another where the route is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from circuitdiff.circuit import Circuit
from circuitdiff.ground_truth.rows import Row, exactly
from circuitdiff.ground_truth.subjects import NAME_BINDERS, PLAN, Sizes
from circuitdiff.models.planted import build_planted
from circuitdiff.sections.circuit_settings import OverlapSettings
from circuitdiff.sections.cross_settings import VerdictSettings
from circuitdiff.sections.discovery import Found, discovery_section
from circuitdiff.sections.evidence import similarity_evidence
from circuitdiff.sections.overlap import overlap_section
from circuitdiff.sections.verdict import verdict_section
from circuitdiff.sections.whole_study import WholeStudy
from circuitdiff.settings import parse_settings
from circuitdiff.store import Store
from circuitdiff.workbench import Workbench

# The variants that are better than the base, and its circuit or another one.
JUDGED = ("planted-sharper-fetchers", "planted-clearer-addresses", "planted-new-route")


def same_circuit_rows(names: Sequence[str], sizes: Sizes, folder: Path) -> list[Row]:
    """What the verdict of a study of these variants says about their circuits."""
    study = study_of(names, sizes)
    bench = Workbench(study, Store.open(folder), lambda title, done, total: None)
    found = {model: _found(bench, model) for model in study.models}
    circuits = {model: each.circuit for model, each in found.items()}
    # Without circuits the section compares effect maps alone, which is what the verdict asks it for.
    maps = {model: Found(Circuit({}), each.stages) for model, each in found.items()}
    for name in names:
        bench.add(overlap_section(bench, name, maps, OverlapSettings()))
        similarity = similarity_evidence(bench.results, name)
        bench.add(verdict_section(bench, name, circuits, study.verdict or VerdictSettings(), similarity=similarity))
    return [same_circuit_row(name, bench.results["verdict"][name]["sentences"]) for name in names]


def _found(bench: Workbench, model: str) -> Found:
    found, sections = discovery_section(bench, model, model, "main", bench.settings.plans["main"].plan())
    bench.add(sections)
    return found


def study_of(names: Sequence[str], sizes: Sizes) -> WholeStudy:
    """Discovery with name binders as one stage more, so that either route is found whole; then circuits alone.

    In float64: in the base the stage of name binders has effects of 7e-6 logits, which is float32's own noise.
    """
    base = build_planted(names[0]).base
    data: dict[str, Any] = {
        "name": "planted",
        "base": base,
        "task": "entity_tracking",
        "variants": {name: name for name in names},
        "plans": {"main": {"stages": [_settings(stage) for stage in (*PLAN.stages, NAME_BINDERS)]}},
        "prompts": {
            "discovery": sizes.discovery,
            "replication": sizes.discovery,
            "evaluation": sizes.evaluation,
            "means": sizes.evaluation,
        },
        "dtype": "float64",
    }
    return parse_settings(data, "planted", WholeStudy)


def _settings(stage: Any) -> dict[str, Any]:
    """A stage as a study's settings name it."""
    data = asdict(stage)
    return {key: data[key] for key in ("name", "at", "via", "receivers_from", "receivers_at")} | {
        "select": data["rule"]
    }


def same_circuit_row(name: str, sentences: Sequence[dict[str, Any]]) -> Row:
    """The verdict says that the circuit is the same, or that it is not, as it is by the wiring."""
    sentence = next(each for each in sentences if each["claim"] == "same_circuit")
    same = build_planted(name).same_circuit
    claim = f"verdict: {'the same circuit' if same else 'a different circuit'}"
    return exactly(name, claim, float(sentence["answer"] == ("yes" if same else "no")), 1, sentence["text"])
