"""Which circuit a plan finds in a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from circuitdiff import results as form
from circuitdiff.circuit import Circuit
from circuitdiff.config.names import file_name
from circuitdiff.methods.discovery import Plan, StageResult, circuit_of, discover, gaps
from circuitdiff.study_checks import check_noise
from circuitdiff.workbench import Workbench


class Found(NamedTuple):
    """A circuit, and the stages that it was found in."""

    circuit: Circuit
    stages: Sequence[StageResult]


def discovery_section(
    bench: Workbench, model: str, name: str, plan_name: str, plan: Plan
) -> tuple[Found, dict[str, Any]]:
    """Runs the plan's sweeps on a model, each with checks 3 and 7; the circuit goes by `name`."""
    subject = bench.subject(model)
    splits = {"discovery": subject.splits.discovery, "replication": subject.splits.replication}
    found = discover(plan, subject.stages.sweeps(splits, plan))
    for result in found:
        bench.keep([subject.stages.check_sweep(result, subject.splits.discovery, plan.metric)])
        bench.keep([check_noise(subject.model, result)])
    circuit = circuit_of(found, plan.shared)
    of_variant = "" if model == bench.base else f"@{file_name(model)}"
    for gap in gaps(plan, found):
        bench.warn(f"circuit {name}: {gap}")
    bench.store.write_json(f"circuit-{file_name(plan_name)}{of_variant}.json", circuit.to_dict())
    return Found(circuit, found), {
        "circuits": {name: {"model": model, **circuit.to_dict()}},
        "discovery": {name: form.discovery_entry(model, plan_name, plan.metric, found)},
    }
