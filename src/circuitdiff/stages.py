"""The costly parts of a study, each kept in the run folder under a key of all that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from circuitdiff import results as form
from circuitdiff.cache.store import Record, Store
from circuitdiff.circuit import Circuit, Head
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
from circuitdiff.methods.discovery import Measure, Plan, Stage, StageResult, measure_with
from circuitdiff.methods.path_patching import PathEffects
from circuitdiff.models.checks import Check
from circuitdiff.prompts import Pairs, Triples
from circuitdiff.settings import StudySettings
from circuitdiff.study_checks import check_ablation, check_stage

Monitor = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


@dataclass(frozen=True)
class Stages:
    """What a study computes on one model; what the run folder has already is not computed again."""

    settings: StudySettings
    store: Store
    monitor: Monitor
    model: Model
    means_prompts: str  # the fingerprint of the prompts for means
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
            key = self.key("path effects", splits[split], path=form.path_key(stage, receivers, metric))
            record = self.store.stage(title, key, lambda: form.effects_record(run(stage, receivers, split)))
            self.monitor(title, 1, 1)
            return form.effects_from(record)

        return measure

    def check_sweep(self, result: StageResult, pairs: Pairs, metric: str) -> Check:
        """Check 3 on a finished sweep."""
        key = self.key(
            "check of path effects",
            pairs,
            path=form.path_key(result.stage, result.receivers, metric),
            strongest=[str(head) for head in result.selection.helping[:1]],
        )
        return self.check(f"check of {result.stage.name}", key, lambda: check_stage(self.model, result, pairs, metric))

    def check_circuit(self, name: str, circuits: Sequence[Circuit], pairs: Pairs, means: Means) -> Check:
        """Check 3 on circuits alone."""
        key = self._circuit_key("check of circuits", pairs, means, circuits)
        return self.check(f"check of circuit {name}", key, lambda: check_ablation(self.model, circuits, pairs, means))

    def answers(self, pairs: Pairs) -> Evaluation:
        """What the model answers to the evaluation prompts."""
        title, key = f"accuracy of {self.model.name}", self.key("answers", pairs)
        record = self.kept(title, key, lambda: form.evaluations_record([evaluate_model(self.model, pairs)]))
        return form.evaluations_from(record)[0]

    def circuits(
        self, title: str, circuits: Sequence[Circuit], pairs: Pairs, replacement: Replacement
    ) -> list[Evaluation]:
        """What circuits alone answer to the evaluation prompts. Each is kept by itself: sections ask for the same."""
        self.monitor(title, 0, 1)
        keys = [self._circuit_key("circuit alone", pairs, replacement, [circuit]) for circuit in circuits]

        def compute(missing: list[int]) -> list[Record]:
            found = self._evaluated(title, [circuits[i] for i in missing], pairs, replacement)
            return [form.evaluations_record([each]) for each in found]

        records = self.store.stages(f"circuit alone in {self.model.name}", keys, compute)
        self.monitor(title, 1, 1)
        return [evaluation for record in records for evaluation in form.evaluations_from(record)]

    def random_circuits(self, title: str, circuits: Sequence[Circuit], pairs: Pairs, means: Means) -> list[Evaluation]:
        """The same of many circuits that nobody else asks for, kept together."""
        key = self._circuit_key("circuits alone", pairs, means, circuits)
        record = self.kept(title, key, lambda: form.evaluations_record(self._evaluated(title, circuits, pairs, means)))
        return form.evaluations_from(record)

    def _circuit_key(
        self, unit: str, pairs: Pairs, replacement: Replacement, circuits: Sequence[Circuit]
    ) -> dict[str, Any]:
        by = [replacement.by, self.means_prompts] if isinstance(replacement, Means) else [replacement]
        return self.key(unit, pairs, replaced_by=by, circuits=[circuit.to_dict() for circuit in circuits])

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
            values = {by: sums.means(by, self.model.dtype).values.cpu() for by in ("slot", "kind")}
            return Record(values, list(sums.slot_names))

        record = self.kept(f"means of {self.model.name}", self.key("means", pairs), compute)
        names = tuple(record.data)
        return {by: Means(record.tensors[by].to(self.model.device), by, names) for by in ("slot", "kind")}

    def check(self, title: str, key: Mapping[str, Any], compute: Callable[[], Check]) -> Check:
        """A check that is computed once. It says what was checked on which model, so it depends on their names, too."""
        named = {**key, "name": self.model.name, "title": title}
        return Check(**self.kept(title, named, lambda: Record({}, compute().to_dict())).data)

    def kept(self, title: str, key: Mapping[str, Any], compute: Callable[[], Record]) -> Record:
        """The stage's record, from the run folder or computed now; `key` is all that it depends on."""
        self.monitor(title, 0, 1)
        record = self.store.stage(title, key, compute)
        self.monitor(title, 1, 1)
        return record

    def key(self, unit: str, *prompts: Pairs | Triples, **arguments: Any) -> dict[str, Any]:
        """All that a unit of work on this model depends on: its name, the prompts' content, and its arguments."""
        settings = self.settings
        return {
            "unit": unit,
            "arguments": arguments,
            "prompts": [each.fingerprint() for each in prompts],
            "model": self.model.provenance["fingerprint"],
            "versions": form.versions(),
            "dtype": settings.dtype,
            "device": settings.device,
            "executor": settings.executor,
            "memory_gb": settings.memory_gb,
        }
