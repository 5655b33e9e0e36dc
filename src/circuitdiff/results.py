"""The form of results.json, and of what a stage keeps: from objects to JSON and tensors, and back."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuitdiff.cache.code_digest import digest_of_computation
from circuitdiff.cache.store import Record
from circuitdiff.circuit import Head
from circuitdiff.engine import Model
from circuitdiff.evaluation import Evaluation
from circuitdiff.methods.discovery import Stage, StageResult
from circuitdiff.methods.path_patching import PathEffects
from circuitdiff.prompts import Pairs
from circuitdiff.settings import StudySettings
from circuitdiff.stats.intervals import (
    Interval,
    RatioInterval,
    accuracy_interval,
    mean_interval,
    normalised_ratio_interval,
    ratio_interval,
)
from circuitdiff.tasks.describe import describe_pair

_FEW_SCENARIOS = 50


def versions() -> dict[str, str]:
    """What computes our numbers: packages, and our own code by what is in it."""
    packages = ("circuitdiff", "torch", "transformers", "peft", "numpy", "scipy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found, "code": digest_of_computation()}


def header(settings: StudySettings) -> dict[str, Any]:
    """Results without any result yet."""
    empty = ("models", "discovery", "circuits", "faithfulness", "faithfulness_rows", "random", "all_heads_at_roles")
    study = {"name": settings.name, "task": settings.task.name, "seed": settings.seed}
    return {
        "study": study | {"settings": settings.model_dump(mode="json")},
        "versions": versions(),
        "warnings": [],
        "checks": [],
        **{section: {} for section in empty},
    }


def model_entry(model: Model, source: str, adapters: Sequence[str]) -> dict[str, Any]:
    return {
        "source": source,
        "adapters": list(adapters),
        "fingerprint": model.provenance["fingerprint"],
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "n_kv_heads": model.n_kv_heads,
        "d_head": model.d_head,
    }


def share(hits: torch.Tensor, scenarios: torch.Tensor) -> dict[str, Any]:
    """A share of prompts with its interval and the counts behind it."""
    interval = accuracy_interval(hits.numpy(), scenarios.numpy())
    return interval._asdict() | {"hits": int(hits.sum()), "n": len(hits)}


def accuracy_entry(evaluation: Evaluation, pairs: Pairs) -> dict[str, Any]:
    """In all, by queried item, and what is answered instead."""
    by_queried = [
        {"queried": queried} | share(evaluation.hits[rows], evaluation.scenarios[rows])
        for queried in pairs.queried.unique().tolist()
        for rows in [pairs.queried == queried]
    ]
    return {
        "accuracy": share(evaluation.hits, evaluation.scenarios),
        "accuracy_by_queried": by_queried,
        "errors": [
            {"kind": kind} | share(rows, evaluation.scenarios) for kind, rows in _errors(evaluation, pairs).items()
        ],
    }


def _errors(evaluation: Evaluation, pairs: Pairs) -> dict[str, Bool[Tensor, " prompt"]]:
    """The wrong answers by kind; neighbours in the list where there are more than two others."""
    said = pairs.alternatives == evaluation.predictions[:, None]
    listed, place = said.any(1), said.int().argmax(1)
    before, after = (listed & (place == pairs.queried + step) for step in (-1, 0))  # the answer is not among them
    neighbours = {"the one listed before it": before, "the one listed after it": after}
    rest = {"none of those listed": ~evaluation.hits & ~listed}
    if said.shape[1] <= 2:
        return {"another listed one": listed} | rest
    return neighbours | {"another listed one": listed & ~before & ~after} | rest


def warnings_about(model: str, evaluation: Evaluation) -> list[str]:
    n_scenarios = len(evaluation.scenarios.unique())
    if n_scenarios >= _FEW_SCENARIOS:
        return []
    return [f"{model} was evaluated on {n_scenarios} scenarios only; below {_FEW_SCENARIOS} intervals are too narrow"]


def path_key(stage: Stage, receivers: Sequence[Head] | None, metric: str) -> dict[str, Any]:
    """What a stage's effects depend on; the rule that chooses from them is not part of it."""
    return {
        "at": stage.at,
        "via": stage.via,
        "receivers": sorted(str(head) for head in receivers or ()),
        "receivers_at": stage.receivers_at,
        "metric": metric,
    }


def effects_record(effects: PathEffects) -> Record:
    tensors = {"per_prompt": effects.per_prompt, "scenarios": effects.scenarios}
    if effects.on_counterfactual_answer is not None:
        tensors["on_counterfactual_answer"] = effects.on_counterfactual_answer
    return Record(tensors, {"noise_floor": effects.noise_floor, "metric": effects.metric})


def effects_from(record: Record) -> PathEffects:
    return PathEffects(
        per_prompt=record.tensors["per_prompt"],
        on_counterfactual_answer=record.tensors.get("on_counterfactual_answer"),
        noise_floor=record.data["noise_floor"],
        scenarios=record.tensors["scenarios"],
        metric=record.data["metric"],
    )


def evaluations_record(evaluations: Sequence[Evaluation]) -> Record:
    tensors = {
        f"{i}.{name}": getattr(evaluation, name)
        for i, evaluation in enumerate(evaluations)
        for name in ("hits", "predictions", "logit_differences", "log_probs", "scenarios")
    }
    return Record(tensors, len(evaluations))


def evaluations_from(record: Record) -> list[Evaluation]:
    names = ("hits", "predictions", "logit_differences", "log_probs", "scenarios")
    return [Evaluation(*(record.tensors[f"{i}.{name}"] for name in names)) for i in range(record.data)]


def discovery_entry(model: str, plan: str, metric: str, found: Sequence[StageResult]) -> dict[str, Any]:
    return {"model": model, "plan": plan, "metric": metric, "stages": [_stage_entry(result) for result in found]}


def _stage_entry(result: StageResult) -> dict[str, Any]:
    stage, found = result.stage, result.found
    _, low, high = found.intervals()
    return {
        "name": stage.name,
        "at": stage.at,
        "via": stage.via,
        "receivers": _pairs(result.receivers),
        "receivers_from": stage.receivers_from,
        "receivers_at": stage.receivers_at,
        "metric": found.metric,
        "n_prompts": len(found.scenarios),
        "noise_floor": found.noise_floor,
        "effects": found.effects.tolist(),
        "low": np.asarray(low).tolist(),
        "high": np.asarray(high).tolist(),
        "adjusted_p": result.selection.adjusted_p.tolist(),
        "selected": _pairs(result.selection.helping),
        "hurting": _pairs(result.selection.hurting),
        "rule": f"{type(stage.rule).__name__} " + ", ".join(f"{k}={v}" for k, v in asdict(stage.rule).items()),
    }


def _pairs(heads: Sequence[Head]) -> list[list[int]]:
    return [[head.layer, head.index] for head in heads]


@dataclass(frozen=True)
class EvaluationRows:
    """One circuit in one model, with all that it is compared with, on the same prompts."""

    model: Evaluation
    circuit: Evaluation
    all_heads: Evaluation
    ablated: Evaluation
    circuit_by_kind: Evaluation
    all_heads_by_kind: Evaluation
    ablated_by_kind: Evaluation
    every_segment: Evaluation | None
    every_segment_by_kind: Evaluation | None
    wrong_segment: Evaluation | None
    random: tuple[list[Evaluation], Evaluation] | None  # random circuits; the circuit itself on their prompts


def evaluation_entries(circuit: str, model: str, rows: EvaluationRows, pairs: Pairs) -> dict[str, Any]:
    """The sections of results.json that one circuit in one model fills."""
    sections: dict[str, Any] = {
        "faithfulness": _faithfulness(rows) | {"circuit_answers": accuracy_entry(rows.circuit, pairs)},
        "faithfulness_rows": _rows(rows),
        "all_heads_at_roles": share(rows.all_heads.hits, rows.all_heads.scenarios),
    }
    if rows.random is not None:
        sections["random"] = _random(*rows.random)
    return {section: {circuit: {model: entry}} for section, entry in sections.items()}


def _faithfulness(rows: EvaluationRows) -> dict[str, Any]:
    hits = {name: getattr(rows, name).hits.numpy() for name in ("circuit", "model", "ablated")}
    scenarios = rows.model.scenarios.numpy()
    ratio = ratio_interval(hits["circuit"], hits["model"], scenarios)
    normalised = normalised_ratio_interval(hits["circuit"], hits["ablated"], hits["model"], scenarios)
    agreement = rows.circuit.predictions == rows.model.predictions
    return _bounds(ratio) | {
        "normalised": _bounds(normalised),
        "agreement": share(agreement, rows.model.scenarios),
        "circuit_accuracy": share(rows.circuit.hits, rows.circuit.scenarios),
        "model_accuracy": share(rows.model.hits, rows.model.scenarios),
        "ablated_accuracy": share(rows.ablated.hits, rows.ablated.scenarios),
        "mean_by": "slot",
        "note": ratio.undefined,
    }


def mean_logit_difference(evaluation: Evaluation) -> dict[str, float]:
    """Its mean with a 95 % interval over scenarios."""
    return _bounds(mean_interval(evaluation.logit_differences.double().numpy(), evaluation.scenarios.numpy()))


def _bounds(found: RatioInterval | Interval) -> dict[str, float]:
    return {"value": float(found.value), "low": float(found.low), "high": float(found.high)}


_ROWS = (
    ("the model", "model", None),
    ("circuit, slot means", "circuit", None),
    ("circuit, kind means", "circuit_by_kind", "the segment's address is taken out of the means"),
    ("heads at every segment, slot means", "every_segment", "nothing depends on which segment is asked for"),
    ("heads at every segment, kind means", "every_segment_by_kind", None),
    ("heads at a wrong segment, slot means", "wrong_segment", "control: another segment than the one asked for"),
    ("all heads at the circuit's roles, slot means", "all_heads", "a reference, not a bound"),
    ("all heads at the circuit's roles, kind means", "all_heads_by_kind", None),
    ("every head ablated, slot means", "ablated", None),
    ("every head ablated, kind means", "ablated_by_kind", None),
)


def _rows(rows: EvaluationRows) -> list[dict[str, Any]]:
    model = rows.model
    entries = []
    for title, name, note in _ROWS:
        evaluation: Evaluation | None = getattr(rows, name)
        if evaluation is None:
            continue
        ratio = ratio_interval(evaluation.hits.numpy(), model.hits.numpy(), model.scenarios.numpy())
        entries.append(
            {
                "row": title,
                "accuracy": share(evaluation.hits, evaluation.scenarios),
                "faithfulness": _bounds(ratio),
                "logit_difference": mean_logit_difference(evaluation),
                "note": ratio.undefined or note,
            }
        )
    return entries


def _random(drawn: Sequence[Evaluation], own: Evaluation) -> dict[str, Any]:
    hits = np.stack([evaluation.hits.numpy().astype(float) for evaluation in drawn])
    accuracies = hits.mean(1)
    circuit = float(own.hits.double().mean())
    mean = mean_interval(hits.mean(0), own.scenarios.numpy())  # of these circuits; over scenarios
    below = float((accuracies < circuit).mean() + (accuracies == circuit).mean() / 2)
    return {
        "mean": float(mean.value),
        "low": float(mean.low),
        "high": float(mean.high),
        "percentile": 100 * below,
        "circuit": circuit,
        "n_prompts": len(own.hits),
        "accuracies": accuracies.tolist(),
    }


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with `new` in it, dictionaries inside dictionaries joined."""
    joined = dict(old)
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(joined.get(key), Mapping)
        joined[key] = merged(joined[key], value) if both else value
    return joined


def example(pairs: Pairs, prompt: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """One pair as text, for the report's drawing."""
    described = describe_pair(pairs, prompt, tokenizer)
    return {
        "tokens": list(described.clean.tokens),
        "roles": {role: int(at[prompt]) for role, at in pairs.positions.items()},
        "answer": described.answer,
        "counterfactual_tokens": list(described.counterfactual.tokens),
        "counterfactual_roles": {role: int(at[prompt]) for role, at in pairs.counterfactual_positions.items()},
    }
