"""A study: which stages there are, in which order, and what each depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from circuitdiff import results as form
from circuitdiff.circuit import Circuit
from circuitdiff.discovery import Measure, Plan, Stage, StageResult, circuit_of, discover, measure_with
from circuitdiff.engine import Model
from circuitdiff.evaluation import (
    Evaluation,
    Means,
    all_heads,
    evaluate_circuits,
    evaluate_model,
    moved,
    random_circuit,
    slot_sums,
)
from circuitdiff.heads import Head
from circuitdiff.methods.path_patching import PathEffects
from circuitdiff.models import load_model
from circuitdiff.models.checks import Check, refuse_failures
from circuitdiff.plans import default_plans
from circuitdiff.prompts import Pairs
from circuitdiff.report import write_report
from circuitdiff.settings import ModelSettings, StudySettings
from circuitdiff.store import Record, Store
from circuitdiff.study_checks import check_ablation, check_batching, check_noise, check_same_shape, check_stage
from circuitdiff.tasks import get_task

Monitor = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


@dataclass(frozen=True)
class Splits:
    """Prompts for each purpose; no two share a scenario."""

    discovery: Pairs
    replication: Pairs
    evaluation: Pairs
    means: Pairs


def sample_splits(settings: StudySettings, model: Model) -> Splits:
    """The study's prompts in this model's tokens."""
    task, wanted = get_task(settings.task.name, **settings.task.options), settings.prompts

    def sample(split: str, n_prompts: int, counterfactual: str, seed: int) -> Pairs:
        return task.sample(
            model.tokenizer, n_prompts, seed, split, wanted.queries_per_scenario, counterfactual=counterfactual
        )

    return Splits(
        discovery=sample("discovery", wanted.discovery, wanted.counterfactual, settings.seed),
        replication=sample("replication", wanted.replication, wanted.counterfactual, settings.seed),
        evaluation=sample("evaluation", wanted.evaluation, wanted.counterfactual, settings.seed),
        means=sample("mask", wanted.means, "unrelated", settings.seed),
    )


def plans_of(settings: StudySettings) -> dict[str, Plan]:
    """The study's plans, or the task's own; the first one is the study's main plan.

    Raises: InputError if a plan names a role that the task lacks.
    """
    plans = {name: plan.plan() for name, plan in settings.plans.items()} or default_plans(settings.task.name)
    roles = get_task(settings.task.name, **settings.task.options).roles
    for plan in plans.values():
        plan.check(roles)
    return plans


def run_study(settings: StudySettings, folder: str | Path, monitor: Monitor) -> Path:
    """Runs what is not in the run folder yet, and writes results.json and report.html. The report's path.

    Raises: InputError for settings that cannot work; CheckError if a self-check fails, with nothing lost.
    """
    plans = plans_of(settings)
    store = Store.open(folder)
    store.write_json("settings.json", settings.model_dump(mode="json"))
    study = _Study(settings, store, monitor)
    base_name, *variant_names = settings.models
    base = study.load(base_name)
    splits = sample_splits(settings, base)
    study.keep_checks(base, check_batching(base, splits.evaluation))
    study.measure_model(base, splits)
    found = {_circuit_name(base_name, plans, plan): study.discover(base, plan, plans[plan], splits) for plan in plans}
    circuits = {name: circuit_of(results, plans[plan].shared) for (name, results), plan in zip(found.items(), plans, strict=True)}
    study.keep_discovery(base_name, dict(zip(found, plans, strict=True)), plans, found, circuits)
    study.evaluate(base, circuits, splits)
    for name in variant_names:
        variant = study.load(name)
        own = sample_splits(settings, variant)
        study.keep_checks(variant, [check_same_shape(base, variant, splits.evaluation, own.evaluation)])
        study.keep_checks(variant, check_batching(variant, own.evaluation))
        study.measure_model(variant, own)
        study.evaluate(variant, circuits, own)
    study.results["example"] = form.example(splits.evaluation, 0, base.tokenizer)
    store.write_json("results.json", study.results)
    return write_report(study.results, store.folder / "report.html")


def _circuit_name(model: str, plans: Mapping[str, Plan], plan: str) -> str:
    """The main plan's circuit has the model's name."""
    return model if plan == next(iter(plans)) else f"{model} ({plan})"


class _Study:
    """The stages of one run, each under a key of all that it depends on."""

    def __init__(self, settings: StudySettings, store: Store, monitor: Monitor) -> None:
        self.settings, self.store, self.monitor = settings, store, monitor
        self.results: dict[str, Any] = form.header(settings)

    def load(self, name: str) -> Model:
        wanted: ModelSettings = self.settings.models[name]
        self.monitor(f"load {name}", 0, 1)
        model = load_model(wanted.source, wanted.adapters, self.settings.dtype, self.settings.device, name=name)
        self.monitor(f"load {name}", 1, 1)
        self.results["models"][name] = form.model_entry(model, wanted.source)
        self.keep_checks(model, [])
        self.results["checks"] += model.provenance["checks"]
        return model

    def keep_checks(self, model: Model, checks: Sequence[Check]) -> None:
        """Failed checks end the study."""
        self.results["checks"] += [check.to_dict() for check in checks]
        refuse_failures(list(checks))

    def measure_model(self, model: Model, splits: Splits) -> Evaluation:
        self.monitor(f"accuracy of {model.name}", 0, 1)
        evaluation = self._kept_evaluations(
            f"accuracy-{model.name}", model, splits, {}, lambda: [evaluate_model(model, splits.evaluation)]
        )[0]
        self.monitor(f"accuracy of {model.name}", 1, 1)
        self.results["models"][model.name] |= form.accuracy_entry(evaluation, splits.evaluation)
        self.results["warnings"] += form.warnings_about(model.name, evaluation)
        return evaluation

    def discover(self, model: Model, plan_name: str, plan: Plan, splits: Splits) -> list[StageResult]:
        pairs = {"discovery": splits.discovery, "replication": splits.replication}
        results = discover(plan, self._measure(model, pairs, plan.metric))
        for result in results:
            self.monitor(f"check {result.stage.name}", 0, 1)
            check = self._kept_check(model, result, splits.discovery, plan.metric)
            self.keep_checks(model, [check, check_noise(model, result)])
            self.monitor(f"check {result.stage.name}", 1, 1)
        return results

    def _measure(self, model: Model, pairs: Mapping[str, Pairs], metric: str) -> Measure:
        settings = self.settings

        def measure(stage: Stage, receivers: Sequence[Head] | None, split: str) -> PathEffects:
            title = f"{stage.name} ({split})"
            run = measure_with(
                model,
                pairs,
                metric=metric,
                executor=settings.executor,
                memory_gb=settings.memory_gb,
                progress=lambda done, total: self.monitor(title, done, total),
            )
            key = self._key(model, split) | form.path_key(stage, receivers, metric)
            record = self.store.stage(
                f"path-{model.name}-{stage.at}", key, lambda: form.effects_record(run(stage, receivers, split))
            )
            self.monitor(title, 1, 1)
            return form.effects_from(record)

        return measure

    def _kept_check(self, model: Model, result: StageResult, pairs: Pairs, metric: str) -> Check:
        key = self._key(model, "discovery") | form.path_key(result.stage, result.receivers, metric)
        record = self.store.stage(
            f"check-{model.name}-{result.stage.at}",
            key | {"helping": [str(h) for h in result.selection.helping[:1]]},
            lambda: Record({}, check_stage(model, result, pairs, metric).to_dict()),
        )
        return Check(**record.data)

    def keep_discovery(
        self,
        model: str,
        plan_names: Mapping[str, str],
        plans: Mapping[str, Plan],
        found: Mapping[str, list[StageResult]],
        circuits: Mapping[str, Circuit],
    ) -> None:
        for name, circuit in circuits.items():
            plan = plan_names[name]
            self.results["circuits"][name] = {"model": model, **circuit.to_dict()}
            self.results["discovery"][name] = form.discovery_entry(model, plan, plans[plan].metric, found[name])
            circuit.to_json(self.store.folder / f"circuit-{'main' if name == model else plan}.json")

    def evaluate(self, model: Model, circuits: Mapping[str, Circuit], splits: Splits) -> None:
        """Every circuit in this model, with its references and random circuits."""
        means = self._means(model, splits)
        for name, circuit in circuits.items():
            if not circuit.roles:
                self.results["warnings"].append(f"circuit {name} has no heads, so it was not evaluated")
                continue
            rows = self._rows(model, name, circuit, splits, means)
            self.results |= form.merged(self.results, form.evaluation_entries(name, model.name, rows))

    def _means(self, model: Model, splits: Splits) -> dict[str, Means]:
        def compute() -> Record:
            sums = slot_sums(model, splits.means)
            return Record({by: sums.means(by, model.dtype).values.cpu() for by in ("slot", "kind")}, None)

        self.monitor(f"means of {model.name}", 0, 1)
        record = self.store.stage(f"means-{model.name}", self._key(model, "means"), compute)
        self.monitor(f"means of {model.name}", 1, 1)
        return {by: Means(record.tensors[by].to(model.device), by) for by in ("slot", "kind")}

    def _rows(
        self, model: Model, name: str, circuit: Circuit, splits: Splits, means: Mapping[str, Means]
    ) -> form.EvaluationRows:
        task = get_task(self.settings.task.name, **self.settings.task.options)
        nothing = Circuit({})
        references = [circuit, all_heads(model, circuit.roles), nothing]
        every, wrong = moved(circuit, task.every_segment), moved(circuit, lambda role: [task.wrong_segment(role)])
        title = f"circuit {name} in {model.name}"
        own = self._evaluations(title, model, references, splits, means["slot"])
        by_kind = self._evaluations(f"{title}, kind means", model, references, splits, means["kind"])
        everywhere = self._evaluations(f"{title}, every segment", model, [every, nothing], splits, means["slot"])
        everywhere_kind = self._evaluations(
            f"{title}, every segment, kind means", model, [every, nothing], splits, means["kind"]
        )
        misplaced = self._evaluations(f"{title}, wrong segment", model, [wrong], splits, means["slot"])
        check = self._ablation_check(model, name, [circuit, nothing], splits, means["slot"])
        self.keep_checks(model, [check])
        return form.EvaluationRows(
            model=self.measure_again(model, splits),
            circuit=own[0],
            all_heads=own[1],
            ablated=own[2],
            circuit_by_kind=by_kind[0],
            all_heads_by_kind=by_kind[1],
            ablated_by_kind=by_kind[2],
            every_segment=everywhere[0],
            every_segment_by_kind=everywhere_kind[0],
            wrong_segment=misplaced[0],
            random=self._random(title, model, circuit, splits, means["slot"]),
        )

    def measure_again(self, model: Model, splits: Splits) -> Evaluation:
        """The model's own answers, from the record."""
        return self._kept_evaluations(
            f"accuracy-{model.name}", model, splits, {}, lambda: [evaluate_model(model, splits.evaluation)]
        )[0]

    def _random(
        self, title: str, model: Model, circuit: Circuit, splits: Splits, means: Means
    ) -> tuple[list[Evaluation], Evaluation] | None:
        """Random circuits of the same shape, and the circuit itself on the same prompts."""
        wanted = self.settings.evaluation
        if wanted.random_circuits == 0:
            return None
        g = torch.Generator().manual_seed(self.settings.seed)
        circuits = [random_circuit(circuit, model.n_heads, g) for _ in range(wanted.random_circuits)]
        few = torch.arange(min(wanted.random_prompts, len(splits.evaluation)))
        part = Splits(splits.discovery, splits.replication, splits.evaluation.select(few), splits.means)
        *drawn, own = self._evaluations(f"{title}, random circuits", model, [*circuits, circuit], part, means)
        return drawn, own

    def _evaluations(
        self, title: str, model: Model, circuits: list[Circuit], splits: Splits, means: Means
    ) -> list[Evaluation]:
        self.monitor(title, 0, 1)
        key = {"circuits": [circuit.to_dict() for circuit in circuits], "means": means.by}

        def compute() -> list[Evaluation]:
            return evaluate_circuits(
                model,
                circuits,
                splits.evaluation,
                means,
                self.settings.executor,
                progress=lambda done, total: self.monitor(title, done, total),
            )

        kept = self._kept_evaluations(title, model, splits, key, compute)
        self.monitor(title, 1, 1)
        return kept

    def _ablation_check(self, model: Model, name: str, circuits: list[Circuit], splits: Splits, means: Means) -> Check:
        key = self._key(model, "evaluation") | {"circuits": [circuit.to_dict() for circuit in circuits]}
        record = self.store.stage(
            f"check-{model.name}-{name}",
            key,
            lambda: Record({}, check_ablation(model, circuits, splits.evaluation, means).to_dict()),
        )
        return Check(**record.data)

    def _kept_evaluations(
        self,
        title: str,
        model: Model,
        splits: Splits,
        key: Mapping[str, Any],
        compute: Callable[[], list[Evaluation]],
    ) -> list[Evaluation]:
        whole = self._key(model, "evaluation") | {"n": len(splits.evaluation), "what": dict(key)}
        record = self.store.stage(title, whole, lambda: form.evaluations_record(compute()))
        return form.evaluations_from(record)

    def _key(self, model: Model, split: str) -> dict[str, Any]:
        """What every stage on this model and split depends on."""
        settings, wanted = self.settings, self.settings.prompts
        return {
            "version": form.versions(),
            "model": model.provenance["fingerprint"],
            "dtype": settings.dtype,
            "device": settings.device,
            "executor": settings.executor,
            "memory_gb": settings.memory_gb,
            "task": settings.task.model_dump(),
            "prompts": [split, getattr(wanted, split), wanted.queries_per_scenario, wanted.counterfactual],
            "seed": settings.seed,
        }
