"""Whether a circuit holds all that the model uses: both without the same parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from circuitdiff.cache.store import Record
from circuitdiff.circuit import Circuit
from circuitdiff.evaluation import Means
from circuitdiff.methods.completeness import (
    Completeness,
    GreedyPart,
    completeness,
    greedy_part,
    random_parts,
    whole_groups,
)
from circuitdiff.prompts import Pairs
from circuitdiff.sections.circuit_settings import CompletenessSettings
from circuitdiff.sections.entries import interval_entry, with_heads
from circuitdiff.sections.further_prompts import further_prompts
from circuitdiff.workbench import Subject, Workbench


def completeness_section(
    bench: Workbench, model: str, name: str, circuit: Circuit, settings: CompletenessSettings
) -> dict[str, Any]:
    """Model and circuit without random parts, whole groups, and the worst part that a greedy search finds.

    The search sees prompts of its own; every value here is taken on the evaluation prompts.

    Raises: InputError if the circuit has no heads at all.
    """
    subject, tested = bench.subject(model), with_heads(circuit)
    title = f"completeness of circuit {name} in {model}"
    means = subject.means["slot"]
    n_prompts = min(settings.prompts, len(subject.splits.evaluation))
    pairs = subject.splits.evaluation.select(torch.arange(n_prompts))
    searched = further_prompts(bench, subject, settings.greedy_prompts)
    key = subject.stages.key(
        "completeness",
        pairs,
        searched,
        means=subject.stages.means_prompts,
        circuit=tested.to_dict(),
        options=settings.model_dump(exclude={"prompts", "greedy_prompts"}),
        seed=bench.settings.seed,
    )
    record = subject.stages.kept(
        title, key, lambda: _measured(bench, subject, title, tested, pairs, searched, means, settings)
    )
    return {"completeness": {name: {model: record.data}}}


def _measured(
    bench: Workbench,
    subject: Subject,
    title: str,
    circuit: Circuit,
    pairs: Pairs,
    searched: Pairs,
    means: Means,
    settings: CompletenessSettings,
) -> Record:
    generator = torch.Generator().manual_seed(bench.settings.seed)
    drawn = random_parts(circuit, settings.random_parts, generator)
    worst = _search(bench, subject, title, circuit, searched, means, settings, generator)
    groups = whole_groups(circuit)
    worst_part = [] if worst is None else [worst.removed]
    found = completeness(
        subject.model,
        circuit,
        [*drawn, *groups, Circuit({}), circuit, *worst_part],
        pairs,
        means,
        settings.quantity,
        bench.settings.executor,
        lambda done, total: bench.monitor(title, done, total),
        shared=subject.stages.shared,
        memory_gb=bench.settings.memory_gb,
    )
    tensors = {"model": found.model, "circuit": found.circuit, "scenarios": found.scenarios}
    return Record(tensors, completeness_entry(found, len(drawn), list(circuit.groups), worst, settings.quantity))


def _search(
    bench: Workbench,
    subject: Subject,
    title: str,
    circuit: Circuit,
    pairs: Pairs,
    means: Means,
    settings: CompletenessSettings,
    generator: torch.Generator,
) -> GreedyPart | None:
    if settings.greedy_steps == 0:
        return None
    return greedy_part(
        subject.model,
        circuit,
        pairs,
        means,
        settings.quantity,
        bench.settings.executor,
        lambda done, total: bench.monitor(f"{title}, search", done, total),
        n_steps=settings.greedy_steps,
        n_candidates=settings.greedy_candidates,
        generator=generator,
        shared=subject.stages.shared,
        memory_gb=bench.settings.memory_gb,
    )


def completeness_entry(
    found: Completeness, n_random: int, groups: Sequence[str], worst: GreedyPart | None, quantity: str
) -> dict[str, Any]:
    """The entry of `found`, whose parts are random ones, whole groups, nothing, everything, and the search's if any."""
    rows = _part_entries(found)
    named = rows[n_random : n_random + len(groups)]
    nothing, everything, *searched = rows[n_random + len(groups) :]
    drawn = Completeness(found.removed[:n_random], found.model[:n_random], found.circuit[:n_random], found.scenarios)
    return {
        "quantity": quantity,
        "n_prompts": len(found.scenarios),
        "random": rows[:n_random],
        "groups": [{"group": name} | row for name, row in zip(groups, named, strict=True)],
        "nothing_removed": nothing,
        "everything_removed": everything,
        "greedy": None if worst is None else searched[0] | _search_entry(worst),
        "correlation": interval_entry(drawn.correlation()),
    }


def _part_entries(found: Completeness) -> list[dict[str, Any]]:
    columns = {
        "model": found.of_model(),
        "circuit": found.of_circuit(),
        "difference": found.differences(),
        "absolute_difference": found.absolute_differences(),
    }
    return [
        {"n_removed": len(part)} | {name: interval_entry(interval, i) for name, interval in columns.items()}
        for i, part in enumerate(found.removed)
    ]


def _search_entry(worst: GreedyPart) -> dict[str, Any]:
    steps = [
        {
            "group": step.group,
            "head": [step.head.layer, step.head.index],
            "model": step.model,
            "circuit": step.circuit,
            "difference": step.difference,
        }
        for step in worst.steps
    ]
    return {"removed": worst.removed.to_dict(), "search": steps}
