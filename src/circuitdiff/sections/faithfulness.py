"""How much of the behaviour a circuit does alone, against its references, its control and random circuits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from circuitdiff import results as form
from circuitdiff.circuit import Circuit
from circuitdiff.evaluation import Evaluation, Means, all_heads, moved, random_circuit
from circuitdiff.workbench import Subject, Workbench


def faithfulness_section(bench: Workbench, model: str, name: str, circuit: Circuit) -> dict[str, Any]:
    """One circuit in one model.

    Where it was found also its heads at other segments; there and in the base also random circuits.
    """
    subject = bench.subject(model)
    means = subject.means
    rows = _rows(bench, subject, name, circuit, means)
    return form.evaluation_entries(name, model, rows, subject.splits.evaluation)


def _rows(
    bench: Workbench, subject: Subject, name: str, circuit: Circuit, means: Mapping[str, Means]
) -> form.EvaluationRows:
    pairs, title, nothing = subject.splits.evaluation, f"circuit {name} in {subject.model.name}", Circuit({})
    references = [circuit, all_heads(subject.model, circuit.roles), nothing]
    everywhere = moved(circuit, bench.task.every_segment)
    misplaced = moved(circuit, lambda role: [bench.task.wrong_segment(role)])

    def run(circuits: Sequence[Circuit], by: str) -> list[Evaluation]:
        return subject.stages.circuits(f"{title}, {by} means", circuits, pairs, means[by])

    bench.keep([subject.stages.check_circuit(name, [circuit, nothing], pairs, means["slot"])])
    home = bench.results["circuits"][name]["model"]
    controlled, drawn = subject.model.name == home, subject.model.name in (home, bench.base)
    by_slot = run([*references, *([everywhere, misplaced] if controlled else [])], "slot")
    by_kind = run([*references, *([everywhere] if controlled else [])], "kind")
    return form.EvaluationRows(
        model=subject.stages.answers(pairs),
        circuit=by_slot[0],
        all_heads=by_slot[1],
        ablated=by_slot[2],
        circuit_by_kind=by_kind[0],
        all_heads_by_kind=by_kind[1],
        ablated_by_kind=by_kind[2],
        every_segment=by_slot[3] if controlled else None,
        every_segment_by_kind=by_kind[3] if controlled else None,
        wrong_segment=by_slot[4] if controlled else None,
        random=_random(bench, subject, title, circuit, means["slot"]) if drawn else None,
    )


def _random(
    bench: Workbench, subject: Subject, title: str, circuit: Circuit, means: Means
) -> tuple[list[Evaluation], Evaluation] | None:
    """Random circuits of the same shape, and the circuit itself on the same prompts."""
    wanted, pairs = bench.settings.evaluation, subject.splits.evaluation
    if wanted.random_circuits == 0:
        return None
    g = torch.Generator().manual_seed(bench.settings.seed)
    drawn = [random_circuit(circuit, subject.model.n_heads, g) for _ in range(wanted.random_circuits)]
    few = pairs.select(torch.arange(min(wanted.random_prompts, len(pairs))))
    *random, own = subject.stages.random_circuits(f"{title}, random circuits", [*drawn, circuit], few, means)
    return random, own
