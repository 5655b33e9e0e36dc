"""A study: which sections there are, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from circuitdiff import results as form
from circuitdiff.circuit import Circuit
from circuitdiff.discovery import Plan
from circuitdiff.planning import Estimate, estimate
from circuitdiff.plans import default_plans
from circuitdiff.report import write_report
from circuitdiff.sections.accuracy import accuracy_section
from circuitdiff.sections.discovery import discovery_section
from circuitdiff.sections.faithfulness import faithfulness_section
from circuitdiff.settings import StudySettings
from circuitdiff.stages import Monitor
from circuitdiff.store import Store, read_results
from circuitdiff.tasks import get_task
from circuitdiff.workbench import Workbench


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
    bench = Workbench(settings, store, monitor)
    _introduce(bench, plans, announce)
    circuits = _measure_and_discover(bench, plans)
    _evaluate(bench, circuits)
    store.write_json("results.json", bench.results)
    return write_report(read_results(store.folder), store.folder / "report.html")


def _introduce(bench: Workbench, plans: Mapping[str, Plan], announce: Callable[[Estimate], None] | None) -> None:
    """What the study will cost, and one of its prompts."""
    base = bench.subject(bench.base)
    if announce:
        announce(estimate(bench.settings, plans, base.model, base.splits.evaluation))
    bench.add({"example": form.example(base.splits.evaluation, 0, base.model.tokenizer)})


def _measure_and_discover(bench: Workbench, plans: Mapping[str, Plan]) -> dict[str, Circuit]:
    """All plans in the base, the main one in each variant. A model's main circuit goes by the model's name."""
    circuits: dict[str, Circuit] = {}
    main = next(iter(plans))
    for model in bench.settings.models:
        bench.add(accuracy_section(bench, model))
        for plan_name, plan in plans.items():
            if model == bench.base or (plan_name == main and bench.settings.discover_in_variants):
                name = model if plan_name == main else f"{model} ({plan_name})"
                circuits[name], sections = discovery_section(bench, model, name, plan_name, plan)
                bench.add(sections)
    return circuits


def _evaluate(bench: Workbench, circuits: Mapping[str, Circuit]) -> None:
    """Every circuit in every model."""
    for model in bench.settings.models:
        for name, circuit in circuits.items():
            if circuit.roles:
                bench.add(faithfulness_section(bench, model, name, circuit))
            else:
                bench.warn(f"circuit {name} has no heads, so it was not evaluated")
