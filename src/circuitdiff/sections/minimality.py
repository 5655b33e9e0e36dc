"""Which heads a circuit needs, and what is left of its faithfulness without the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from circuitdiff.cache.store import Record
from circuitdiff.circuit import Circuit
from circuitdiff.evaluation import Evaluation, Means
from circuitdiff.methods.minimality import HeadCost, MinimalityResult, minimality
from circuitdiff.sections.circuit_settings import MinimalitySettings
from circuitdiff.sections.entries import heads_entry, interval_entry, ratio_entry, with_heads
from circuitdiff.sections.further_prompts import further_prompts
from circuitdiff.stats.intervals import ratio_interval
from circuitdiff.workbench import Subject, Workbench


def minimality_section(
    bench: Workbench, model: str, name: str, circuit: Circuit, settings: MinimalitySettings
) -> dict[str, Any]:
    """Each head's cost in one circuit, in the model where it was found, and the pruned circuit's faithfulness.

    Costs are measured on prompts of their own; faithfulness before and after on the evaluation prompts, which had no
    part in the pruning. Groups without heads are left out.

    Raises: InputError if the circuit has no heads at all.
    """
    subject, tested = bench.subject(model), with_heads(circuit)
    means = subject.means["slot"]
    entry = _costs(bench, subject, name, tested, means, settings)
    pruned = Circuit.from_dict(entry["kept"])
    title = f"circuit {name} before and after pruning"
    both = subject.stages.circuits(title, [tested, pruned], subject.splits.evaluation, means)
    whole = subject.stages.answers(subject.splits.evaluation)
    entry |= {
        "faithfulness_before": _faithfulness(both[0], whole),
        "faithfulness_pruned": _faithfulness(both[1], whole),
        "n_heads": {"before": len(tested), "pruned": len(pruned)},
    }
    entry["n_prompts"] |= {"fresh": len(whole.hits)}
    return {"minimality": {name: {"model": model} | entry}}


def _costs(
    bench: Workbench, subject: Subject, name: str, circuit: Circuit, means: Means, settings: MinimalitySettings
) -> dict[str, Any]:
    title = f"minimality of circuit {name}"

    pairs = further_prompts(bench, subject, settings.prompts)

    def compute() -> Record:
        result = minimality(
            subject.model,
            circuit,
            pairs,
            means,
            settings.rule(),
            bench.settings.executor,
            lambda done, total: bench.monitor(title, done, total),
            shared=subject.stages.shared,
            memory_gb=bench.settings.memory_gb,
        )
        return minimality_record(result)

    arguments = {"circuit": circuit.to_dict(), "rule": asdict(settings.rule())}
    key = subject.stages.key("minimality", pairs, means=subject.stages.means_prompts, **arguments)
    record = subject.stages.kept(title, key, compute)
    return dict(record.data)


def minimality_record(result: MinimalityResult) -> Record:
    """Pair tables and costs per prompt as tensors; beside them the section's entry, without faithfulness."""
    tensors = {f"{name}.pair_table": group.table.scores for name, group in result.groups.items()}
    tensors |= {f"{name}.cost_per_prompt": group.per_prompt for name, group in result.groups.items()}
    entry = {
        "groups": {name: [_cost_entry(cost) for cost in group.costs] for name, group in result.groups.items()},
        "kept": result.pruned.to_dict(),
        "rule": asdict(result.rule),
        "n_prompts": {"choosing": result.n_choosing, "testing": len(result.scenarios)},
    }
    return Record(tensors | {"scenarios": result.scenarios}, entry)


def _cost_entry(entry: HeadCost) -> Mapping[str, Any]:
    cost, hits = interval_entry(entry.cost), interval_entry(entry.cost_in_hits)
    return {
        "head": [entry.head.layer, entry.head.index],
        "cost": cost["value"],
        "low": cost["low"],
        "high": cost["high"],
        "adjusted_p": entry.adjusted_p,
        "kept": entry.kept,
        "removed_with": heads_entry(entry.removed_with),
        "before": entry.before,
        "after": entry.after,
        "cost_in_hits": hits,
    }


def _faithfulness(circuit: Evaluation, model: Evaluation) -> dict[str, Any]:
    return ratio_entry(ratio_interval(circuit.hits.numpy(), model.hits.numpy(), model.scenarios.numpy()))
