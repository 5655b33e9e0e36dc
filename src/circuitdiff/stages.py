"""The costly parts of a study, each kept in the run folder under a key of all that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from circuitdiff import results as form
from circuitdiff.circuit import Circuit
from circuitdiff.discovery import Measure, Plan, Stage, StageResult, measure_with
from circuitdiff.engine import Model
from circuitdiff.evaluation import (
    Evaluation,
    Means,
    Replacement,
    Shared,
    evaluate_circuits,
    evaluate_model,
    slot_sums,
)
from circuitdiff.heads import Head
from circuitdiff.methods.path_patching import PathEffects
from circuitdiff.models.checks import Check
from circuitdiff.prompts import Pairs
from circuitdiff.settings import StudySettings
from circuitdiff.store import Record, Store
from circuitdiff.study_checks import check_ablation, check_stage

Monitor = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


@dataclass(frozen=True)
class Stages:
    """What a study computes on one model; what the run folder has already is not computed again."""

    settings: StudySettings
    store: Store
    monitor: Monitor
    model: Model
    shared: Shared = field(default_factory=Shared)  # what all evaluations on this model have in common

    def sweeps(self, splits: Mapping[str, Pairs], plan: Plan) -> Measure:
        """Path patching, for a discovery plan."""
        metric, title = plan.metric, ""
        run = measure_with(
            self.model,
            splits,
            metric=metric,
            executor=self.settings.executor,
            memory_gb=self.settings.memory_gb,
            progress=lambda done, total: self.monitor(title, done, total),
            roles=plan.roles,
        )

        def measure(stage: Stage, receivers: Sequence[Head] | None, split: str) -> PathEffects:
            nonlocal title
            title = f"{stage.name} ({split})"
            key = self.key(split) | form.path_key(stage, receivers, metric)
            name = f"path-{self.model.name}-{stage.at}-{stage.via or 'direct'}"
            record = self.store.stage(name, key, lambda: form.effects_record(run(stage, receivers, split)))
            self.monitor(title, 1, 1)
            return form.effects_from(record)

        return measure

    def check_sweep(self, result: StageResult, pairs: Pairs, metric: str) -> Check:
        """Check 3 on a finished sweep."""
        key = self.key("discovery") | form.path_key(result.stage, result.receivers, metric)
        strongest = [str(head) for head in result.selection.helping[:1]]
        return self._check(
            f"check of {result.stage.name}",
            key | {"strongest": strongest},
            lambda: check_stage(self.model, result, pairs, metric),
        )

    def check_circuit(self, name: str, circuits: Sequence[Circuit], pairs: Pairs, means: Means) -> Check:
        """Check 3 on circuits alone."""
        key = self.key("evaluation") | {"circuits": [circuit.to_dict() for circuit in circuits]}
        key["means"] = self.settings.prompts.means
        return self._check(f"check of circuit {name}", key, lambda: check_ablation(self.model, circuits, pairs, means))

    def answers(self, pairs: Pairs) -> Evaluation:
        """What the model answers to the evaluation prompts."""
        title, key = f"accuracy of {self.model.name}", self.key("evaluation") | {"n": len(pairs), "what": {}}
        record = self.kept(title, key, lambda: form.evaluations_record([evaluate_model(self.model, pairs)]))
        return form.evaluations_from(record)[0]

    def circuits(
        self, title: str, circuits: Sequence[Circuit], pairs: Pairs, replacement: Replacement
    ) -> list[Evaluation]:
        """What circuits alone answer to the evaluation prompts. Each is kept by itself: sections ask for the same."""
        self.monitor(title, 0, 1)
        keys = [self._circuit_key(pairs, replacement) | {"circuit": circuit.to_dict()} for circuit in circuits]

        def compute(missing: list[int]) -> list[Record]:
            found = self._evaluated(title, [circuits[i] for i in missing], pairs, replacement)
            return [form.evaluations_record([each]) for each in found]

        records = self.store.stages(f"circuit alone in {self.model.name}", keys, compute)
        self.monitor(title, 1, 1)
        return [evaluation for record in records for evaluation in form.evaluations_from(record)]

    def random_circuits(self, title: str, circuits: Sequence[Circuit], pairs: Pairs, means: Means) -> list[Evaluation]:
        """The same of many circuits that nobody else asks for, kept together."""
        key = self._circuit_key(pairs, means) | {"circuits": [circuit.to_dict() for circuit in circuits]}
        record = self.kept(title, key, lambda: form.evaluations_record(self._evaluated(title, circuits, pairs, means)))
        return form.evaluations_from(record)

    def _circuit_key(self, pairs: Pairs, replacement: Replacement) -> dict[str, Any]:
        by = replacement.by if isinstance(replacement, Means) else replacement
        return self.key("evaluation") | {"n": len(pairs), "replaced": [by, self.settings.prompts.means]}

    def _evaluated(
        self, title: str, circuits: Sequence[Circuit], pairs: Pairs, replacement: Replacement
    ) -> list[Evaluation]:
        return evaluate_circuits(
            self.model,
            circuits,
            pairs,
            replacement,
            self.settings.executor,
            progress=lambda done, total: self.monitor(title, done, total),
            shared=self.shared,
            memory_gb=self.settings.memory_gb,
        )

    def means(self, pairs: Pairs) -> dict[str, Means]:
        """Means by slot and by kind over the prompts for means, on the model's device."""

        def compute() -> Record:
            sums = slot_sums(self.model, pairs)
            return Record({by: sums.means(by, self.model.dtype).values.cpu() for by in ("slot", "kind")}, None)

        record = self.kept(f"means of {self.model.name}", self.key("means"), compute)
        return {by: Means(record.tensors[by].to(self.model.device), by) for by in ("slot", "kind")}

    def _check(self, title: str, key: Mapping[str, Any], compute: Callable[[], Check]) -> Check:
        return Check(**self.kept(title, key, lambda: Record({}, compute().to_dict())).data)

    def kept(self, title: str, key: Mapping[str, Any], compute: Callable[[], Record]) -> Record:
        """The stage's record, from the run folder or computed now; `key` is all that it depends on."""
        self.monitor(title, 0, 1)
        record = self.store.stage(title, key, compute)
        self.monitor(title, 1, 1)
        return record

    def key(self, split: str) -> dict[str, Any]:
        """What everything on this model and split depends on."""
        settings, wanted = self.settings, self.settings.prompts
        return {
            "version": form.versions(),
            "model": self.model.provenance["fingerprint"],
            "dtype": settings.dtype,
            "device": settings.device,
            "executor": settings.executor,
            "memory_gb": settings.memory_gb,
            "task": settings.task.model_dump(),
            "prompts": [split, getattr(wanted, split), wanted.queries_per_scenario, wanted.counterfactual],
            "seed": settings.seed,
        }
