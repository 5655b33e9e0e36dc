"""A study: which stages there are, in which order, and what of them goes into the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from circuitdiff import results as form
from circuitdiff.circuit import Circuit
from circuitdiff.discovery import Plan, StageResult, circuit_of, discover
from circuitdiff.engine import Model
from circuitdiff.evaluation import Evaluation, Means, all_heads, moved, random_circuit
from circuitdiff.models import load_model
from circuitdiff.models.checks import Check, refuse_failures
from circuitdiff.planning import Estimate, estimate
from circuitdiff.plans import default_plans
from circuitdiff.prompts import Pairs
from circuitdiff.report import write_report
from circuitdiff.settings import StudySettings
from circuitdiff.stages import Monitor, Stages
from circuitdiff.store import Store, read_results
from circuitdiff.study_checks import check_batching, check_noise, check_same_shape
from circuitdiff.tasks import get_task


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

    def sample(split: str, n_prompts: int, counterfactual: str) -> Pairs:
        return task.sample(
            model.tokenizer,
            n_prompts,
            settings.seed,
            split,
            wanted.queries_per_scenario,
            counterfactual=counterfactual,
        )

    return Splits(
        discovery=sample("discovery", wanted.discovery, wanted.counterfactual),
        replication=sample("replication", wanted.replication, wanted.counterfactual),
        evaluation=sample("evaluation", wanted.evaluation, wanted.counterfactual),
        means=sample("mask", wanted.means, "unrelated"),
    )


def plans_of(settings: StudySettings) -> dict[str, Plan]:
    """The study's plans, or the task's own; the first one is the main plan.

    Raises: InputError if a plan names a role that the task lacks.
    """
    plans = {name: plan.plan() for name, plan in settings.plans.items()} or default_plans(settings.task.name)
    roles = get_task(settings.task.name, **settings.task.options).roles
    for plan in plans.values():
        plan.check(roles)
    return plans


def run_study(
    settings: StudySettings, folder: str | Path, monitor: Monitor, announce: Callable[[Estimate], None] | None = None
) -> Path:
    """Runs what the run folder does not have yet, and writes results.json and report.html. The report's path.

    `announce` is told what the study will cost before the work starts.

    Raises: InputError for settings that cannot work; CheckError if a self-check fails, with nothing lost.
    """
    plans = plans_of(settings)
    store = Store.open(folder)
    store.write_json("settings.json", settings.model_dump(mode="json"))
    study = _Study(settings, store, monitor)
    base_name, *variant_names = settings.models
    base = study.load(base_name)
    if announce:
        announce(estimate(settings, plans, base.model, base.splits.evaluation))
    study.measure(base)
    circuits = {}
    for plan_name, plan in plans.items():
        name = base_name if plan is next(iter(plans.values())) else f"{base_name} ({plan_name})"
        circuits[name] = study.discover(base, name, plan_name, plan)
    study.evaluate(base, circuits)
    for variant_name in variant_names:
        variant = study.load(variant_name)
        study.compare_shapes(base, variant)
        study.measure(variant)
        study.evaluate(variant, circuits)
    study.results["example"] = form.example(base.splits.evaluation, 0, base.model.tokenizer)
    store.write_json("results.json", study.results)
    return write_report(read_results(store.folder), store.folder / "report.html")


@dataclass(frozen=True)
class _Subject:
    """A model with its prompts and what is computed on it."""

    model: Model
    splits: Splits
    stages: Stages


class _Study:
    """Runs the stages and gathers their results."""

    def __init__(self, settings: StudySettings, store: Store, monitor: Monitor) -> None:
        self._settings, self._store, self._monitor = settings, store, monitor
        self._task = get_task(settings.task.name, **settings.task.options)
        self.results: dict[str, Any] = form.header(settings)

    def load(self, name: str) -> _Subject:
        """Loads a model, which runs the checks at load, and samples its prompts."""
        wanted = self._settings.models[name]
        self._monitor(f"load {name}", 0, 1)
        model = load_model(wanted.source, wanted.adapters, self._settings.dtype, self._settings.device, name=name)
        self._monitor(f"load {name}", 1, 1)
        self.results["checks"] += model.provenance["checks"]
        self.results["models"][name] = form.model_entry(model, wanted)
        stages = Stages(self._settings, self._store, self._monitor, model)
        return _Subject(model, sample_splits(self._settings, model), stages)

    def compare_shapes(self, base: _Subject, variant: _Subject) -> None:
        """Check 6."""
        ours, theirs = base.splits.evaluation, variant.splits.evaluation
        self._keep([check_same_shape(base.model, variant.model, ours, theirs)])

    def measure(self, subject: _Subject) -> None:
        """Check 4, then the model's own accuracy."""
        name, pairs = subject.model.name, subject.splits.evaluation
        self._keep(check_batching(subject.model, pairs))
        answers = subject.stages.answers(pairs)
        self.results["models"][name] |= form.accuracy_entry(answers, pairs)
        self.results["warnings"] += form.warnings_about(name, answers)

    def discover(self, subject: _Subject, name: str, plan_name: str, plan: Plan) -> Circuit:
        """Runs a plan's sweeps; the circuit goes by `name`."""
        splits = {"discovery": subject.splits.discovery, "replication": subject.splits.replication}
        found: Sequence[StageResult] = discover(plan, subject.stages.sweeps(splits, plan.metric))
        for result in found:
            self._keep([subject.stages.check_sweep(result, subject.splits.discovery, plan.metric)])
            self._keep([check_noise(subject.model, result)])
        circuit = circuit_of(found, plan.shared)
        self.results["circuits"][name] = {"model": subject.model.name, **circuit.to_dict()}
        self.results["discovery"][name] = form.discovery_entry(subject.model.name, plan_name, plan.metric, found)
        circuit.to_json(self._store.folder / f"circuit-{plan_name}.json")
        return circuit

    def evaluate(self, subject: _Subject, circuits: Mapping[str, Circuit]) -> None:
        """Every circuit in this model, with its references and random circuits."""
        means = subject.stages.means(subject.splits.means)
        for name, circuit in circuits.items():
            if not circuit.roles:
                self.results["warnings"].append(f"circuit {name} has no heads, so it was not evaluated")
                continue
            rows = self._rows(subject, name, circuit, means)
            self.results = form.merged(self.results, form.evaluation_entries(name, subject.model.name, rows))

    def _rows(self, subject: _Subject, name: str, circuit: Circuit, means: Mapping[str, Means]) -> form.EvaluationRows:
        pairs, title, nothing = subject.splits.evaluation, f"circuit {name} in {subject.model.name}", Circuit({})
        references = [circuit, all_heads(subject.model, circuit.roles), nothing]
        everywhere = [moved(circuit, self._task.every_segment)]
        misplaced = [moved(circuit, lambda role: [self._task.wrong_segment(role)])]

        def run(what: str, circuits: Sequence[Circuit], by: str) -> list[Evaluation]:
            return subject.stages.circuits(f"{title}{what}, {by} means", circuits, pairs, means[by])

        self._keep([subject.stages.check_circuit(name, [circuit, nothing], pairs, means["slot"])])
        by_slot, by_kind = run("", references, "slot"), run("", references, "kind")
        return form.EvaluationRows(
            model=subject.stages.answers(pairs),
            circuit=by_slot[0],
            all_heads=by_slot[1],
            ablated=by_slot[2],
            circuit_by_kind=by_kind[0],
            all_heads_by_kind=by_kind[1],
            ablated_by_kind=by_kind[2],
            every_segment=run(", every segment", everywhere, "slot")[0],
            every_segment_by_kind=run(", every segment", everywhere, "kind")[0],
            wrong_segment=run(", wrong segment", misplaced, "slot")[0],
            random=self._random(subject, title, circuit, means["slot"]),
        )

    def _random(
        self, subject: _Subject, title: str, circuit: Circuit, means: Means
    ) -> tuple[list[Evaluation], Evaluation] | None:
        """Random circuits of the same shape, and the circuit itself on the same prompts."""
        wanted, pairs = self._settings.evaluation, subject.splits.evaluation
        if wanted.random_circuits == 0:
            return None
        g = torch.Generator().manual_seed(self._settings.seed)
        drawn = [random_circuit(circuit, subject.model.n_heads, g) for _ in range(wanted.random_circuits)]
        few = pairs.select(torch.arange(min(wanted.random_prompts, len(pairs))))
        *random, own = subject.stages.circuits(f"{title}, random circuits", [*drawn, circuit], few, means)
        return random, own

    def _keep(self, checks: Sequence[Check]) -> None:
        """Failed checks end the study."""
        self.results["checks"] += [check.to_dict() for check in checks]
        refuse_failures(list(checks))
