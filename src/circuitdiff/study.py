"""A study: which sections there are, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from circuitdiff import results as form
from circuitdiff.circuit import Circuit
from circuitdiff.discovery import Plan
from circuitdiff.planning import Estimate, Work, estimate
from circuitdiff.plans import default_plans
from circuitdiff.report import write_report
from circuitdiff.sections.ablations import ablations_section
from circuitdiff.sections.accuracy import accuracy_section
from circuitdiff.sections.completeness import completeness_section
from circuitdiff.sections.costs import study_costs
from circuitdiff.sections.cross_model import Readings, cross_model_section
from circuitdiff.sections.discovery import Found, discovery_section
from circuitdiff.sections.evidence import functions_evidence, similarity_evidence
from circuitdiff.sections.faithfulness import faithfulness_section
from circuitdiff.sections.functions import functions_section
from circuitdiff.sections.given_circuits import given_circuits
from circuitdiff.sections.graft import graft_section
from circuitdiff.sections.inputs import inputs_of
from circuitdiff.sections.knockout import knockout_section
from circuitdiff.sections.matrix import matrix_section
from circuitdiff.sections.minimality import minimality_section
from circuitdiff.sections.overlap import overlap_section
from circuitdiff.sections.preflight import check_study
from circuitdiff.sections.verdict import verdict_section
from circuitdiff.sections.whole_study import WholeStudy
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
    settings: WholeStudy, folder: str | Path, monitor: Monitor, announce: Callable[[Estimate], None] | None = None
) -> Path:
    """Runs what the run folder does not have yet, and writes results.json and report.html. The report's path.

    `announce` is told what the study will cost before the work starts.

    Raises: InputError for settings that cannot work; CheckError if a self-check fails, with nothing lost.
    """
    plans = plans_of(settings)
    inputs = inputs_of(settings)
    if inputs is not None and Store(Path(folder)).is_finished(inputs):
        return write_report(read_results(folder), Path(folder) / "report.html")
    check_study(settings)
    store = Store.open(folder)
    store.write_json("settings.json", settings.model_dump(mode="json"))
    bench = Workbench(settings, store, monitor)
    given, entries = given_circuits(bench)
    _introduce(bench, settings, plans, announce)
    found = _measure_and_discover(bench, plans)
    bench.add(entries)
    circuits = {name: each.circuit for name, each in found.items() if each.circuit.roles}
    for model in settings.models:
        _evaluate(bench, model, circuits | given)
        _examine(bench, settings, model, circuits)
    bench.add(matrix_section(bench.results))
    readings = Readings()
    for variant in bench.variants:
        _compare(bench, settings, variant, found, circuits, readings)
    store.finish(inputs_of(settings), bench.results)
    return write_report(read_results(store.folder), store.folder / "report.html")


def _introduce(
    bench: Workbench, study: WholeStudy, plans: Mapping[str, Plan], announce: Callable[[Estimate], None] | None
) -> None:
    """What the study will cost, and one of its prompts."""
    base = bench.subject(bench.base)
    if announce:
        work = Work(base.model, base.splits.evaluation)
        announce(estimate(study_costs(study, plans, work), study, work))
    bench.add({"example": form.example(base.splits.evaluation, 0, base.model.tokenizer)})


def _measure_and_discover(bench: Workbench, plans: Mapping[str, Plan]) -> dict[str, Found]:
    """All plans in the base, the main one in its variants. A model's main circuit goes by the model's name."""
    found: dict[str, Found] = {}
    main = next(iter(plans))
    for model in bench.settings.models:
        bench.add(accuracy_section(bench, model))
        for plan_name, plan in plans.items():
            if model == bench.base or (plan_name == main and model in bench.settings.searched):
                name = model if plan_name == main else f"{model} ({plan_name})"
                found[name], sections = discovery_section(bench, model, name, plan_name, plan)
                bench.add(sections)
                if not found[name].circuit.roles:
                    bench.warn(f"circuit {name} has no heads, so it was not evaluated")
    return found


def _evaluate(bench: Workbench, model: str, circuits: Mapping[str, Circuit]) -> None:
    """Every circuit in one model."""
    for name, circuit in circuits.items():
        bench.add(faithfulness_section(bench, model, name, circuit))


def _examine(bench: Workbench, study: WholeStudy, model: str, circuits: Mapping[str, Circuit]) -> None:
    """Is a model's main circuit the circuit, in its own model; and what do the base's groups do in it?"""
    if model in circuits:
        if study.minimality:
            bench.add(minimality_section(bench, model, model, circuits[model], study.minimality))
        if study.completeness:
            bench.add(completeness_section(bench, model, model, circuits[model], study.completeness))
        if study.ablations:
            bench.add(ablations_section(bench, model, model, circuits[model], study.ablations))
    if bench.base in circuits:
        if study.functions:
            bench.add(functions_section(bench, model, bench.base, circuits[bench.base], study.functions))
        if study.knockout:
            bench.add(knockout_section(bench, model, circuits[bench.base], study.knockout))


def _compare(
    bench: Workbench,
    study: WholeStudy,
    variant: str,
    found: Mapping[str, Found],
    circuits: Mapping[str, Circuit],
    readings: Readings,
) -> None:
    """A variant against the base, and what may be said of it."""
    if study.overlap:
        bench.add(overlap_section(bench, variant, {name: each for name, each in found.items() if name in study.models}))
    if bench.base not in circuits:
        return
    if study.cross_model:
        bench.add(cross_model_section(bench, variant, circuits[bench.base], study.cross_model, readings))
    if study.graft:
        bench.add(graft_section(bench, variant, circuits[bench.base], study.graft))
    similarity = similarity_evidence(bench.results, variant)
    functions = functions_evidence(bench.results, bench.base, variant)
    said = verdict_section(
        bench, variant, circuits, study.verdict, similarity=similarity or None, functions=functions or None
    )
    bench.add(said)
