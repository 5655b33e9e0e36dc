"""A study: which sections there are, and in which order."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from circuitdiff import results as form
from circuitdiff.assistants import Assistants, threads_shared_by
from circuitdiff.cache.store import REPORT, RESULTS, Notify, Store, json_bytes
from circuitdiff.circuit import Circuit
from circuitdiff.config.reading import read_json
from circuitdiff.errors import InputError
from circuitdiff.methods.discovery import Plan
from circuitdiff.planning import Estimate, Work, estimate
from circuitdiff.report import report_page
from circuitdiff.sections.ablations import ablations_section
from circuitdiff.sections.accuracy import accuracy_section
from circuitdiff.sections.completeness import completeness_section
from circuitdiff.sections.costs import study_costs
from circuitdiff.sections.cross_model import Readings, cross_model_section
from circuitdiff.sections.discovery import Found, discovery_section
from circuitdiff.sections.evidence import functions_evidence, groups_without_function, similarity_evidence
from circuitdiff.sections.faithfulness import faithfulness_section
from circuitdiff.sections.functions import functions_section
from circuitdiff.sections.given_circuits import given_circuits
from circuitdiff.sections.graft import graft_section
from circuitdiff.sections.inputs import files_of, inputs_of
from circuitdiff.sections.knockout import knockout_section
from circuitdiff.sections.matrix import matrix_section
from circuitdiff.sections.minimality import minimality_section
from circuitdiff.sections.overlap import overlap_section
from circuitdiff.sections.preflight import check_study
from circuitdiff.sections.verdict import circuit_numbers, verdict_section
from circuitdiff.sections.whole_study import WholeStudy, asked_circuits
from circuitdiff.settings import PlanSettings, StudySettings
from circuitdiff.stages import Monitor
from circuitdiff.tasks import get_task
from circuitdiff.workbench import Workbench

_SETTINGS = "settings.json"


def plans_of(settings: StudySettings) -> dict[str, Plan]:
    """The study's plans, or the task's own; the first one is the main plan.

    Raises: InputError if there is none, or a plan names a role that the task lacks.
    """
    task = get_task(settings.task.name, **settings.task.options)
    written = settings.plans or {name: PlanSettings.model_validate(plan) for name, plan in task.plans.items()}
    if not written:
        raise InputError(f"the task {task.name} has no plan of its own: give `plans`")
    plans = {name: plan.plan() for name, plan in written.items()}
    for plan in plans.values():
        plan.check(task.roles)
    return plans


def run_study(
    settings: WholeStudy,
    folder: str | Path,
    monitor: Monitor,
    announce: Callable[[Estimate], None] | None = None,
    workers: int = 1,
    notify: Notify = warnings.warn,
) -> Path:
    """Runs what the run folder does not have yet, and writes results.json and report.html. The report's path.

    `announce` is told what the study will cost before the work starts. With two `workers` a second process starts at
    the study's other end, and the processor's threads are shared out. `notify` is told, in a line each, of
    damaged records, of long waits for another process, and of a second process that was killed.

    Raises: InputError for settings that cannot work; CheckError if a self-check fails, with nothing lost.
    """
    plans = plans_of(settings)
    files = files_of(settings)
    inputs = inputs_of(settings, files)
    if inputs is not None and (finished := Store(Path(folder)).finished(inputs, RESULTS)) is not None:
        return _reported(Store(Path(folder)), inputs, finished)
    check_study(settings, plans)
    _check_folder(Path(folder), settings.name)
    store, written = Store.open(folder, notify), settings.model_dump(mode="json")
    second = Assistants(workers - 1, _from_the_other_end, settings, store.folder, notify)
    bench = Workbench(settings, store, second.watched(monitor))
    with store.used_by(written), threads_shared_by(workers):
        store.write_json(_SETTINGS, written)
        _introduce(bench, settings, plans, announce, workers)
        with second.at_work():
            found, circuits = _find(bench, plans, list(settings.models))
            for model in settings.models:
                _examine(bench, settings, model, circuits)
            bench.add(matrix_section(bench.results))
            for model in settings.models:
                _ask_functions(bench, settings, model, circuits)
            readings = Readings()
            for variant in bench.variants:
                _compare(bench, settings, variant, found, circuits, readings)
                _judge(bench, settings, variant, circuits)
        results = json_bytes(bench.results)
        store.write(RESULTS, results)
        return _reported(store, inputs or inputs_of(settings, files), results)  # a file may have changed meanwhile


def _check_folder(folder: Path, study: str) -> None:
    """Raises: InputError if the folder holds another study, whose results would be lost."""
    try:
        other = read_json(folder / _SETTINGS).get("name")
    except InputError:
        return  # there are none, or they are damaged, and written anew
    if other != study:
        raise InputError(f"{folder} holds the study {other!r}, and this one is {study!r}: choose another run folder")


def _reported(store: Store, inputs: Any, results: bytes) -> Path:
    """The report on results.json as it was written; drawing it takes seconds, so it is kept, too."""
    if store.finished(inputs, RESULTS) != results or store.finished(inputs, REPORT) is None:
        page = report_page(json.loads(results)).encode()
        store.write(REPORT, page)
        store.finish(inputs, {RESULTS: results, REPORT: page})
    return store.folder / REPORT


def _from_the_other_end(settings: WholeStudy, folder: Path, _: int, notify: Notify) -> None:
    """What an assistant does: the same parts, the last models first. Its results are in the run folder's records.

    Once half of the models are searched, only discoveries that another process runs are left: meanwhile it asks what
    groups do in the last model, as far as the circuits are known.
    """
    bench, plans = Workbench(settings, Store.open(folder, notify), lambda *_: None), plans_of(settings)
    models = list(reversed(settings.models))
    _find(bench, plans, models[: len(models) // 2])
    circuits = _find(bench, plans, [bench.base])[1]
    for model in _asked_models(settings)[-1:]:
        _ask_functions(bench, settings, model, circuits)
    found, circuits = _find(bench, plans, models)
    for model in models:
        _examine(bench, settings, model, circuits, last_first=True)
    readings = Readings()
    for variant in reversed(bench.variants):
        _compare(bench, settings, variant, found, circuits, readings, last_first=True)
    for model in models:
        _ask_functions(bench, settings, model, circuits)


def _find(
    bench: Workbench, plans: Mapping[str, Plan], models: Sequence[str]
) -> tuple[dict[str, Found], dict[str, Circuit]]:
    """Accuracies, and every circuit that has heads: what the plans found, and those that the user gave."""
    given, entries = given_circuits(bench)
    found = _measure_and_discover(bench, plans, models)
    bench.add(entries)
    return found, {name: each.circuit for name, each in found.items() if each.circuit.roles} | given


def _introduce(
    bench: Workbench,
    study: WholeStudy,
    plans: Mapping[str, Plan],
    announce: Callable[[Estimate], None] | None,
    workers: int,
) -> None:
    """What the study will cost, and one of its prompts."""
    base = bench.subject(bench.base)
    if announce:
        work = Work(base.model, base.splits.evaluation)
        kept_gb = study.functions.memory_gb if study.functions else 0.0
        announce(estimate(study_costs(study, plans, work), study, work, workers, kept_gb))
    bench.add({"example": form.example(base.splits.evaluation, 0, base.model.tokenizer)})


def _measure_and_discover(bench: Workbench, plans: Mapping[str, Plan], models: Sequence[str]) -> dict[str, Found]:
    """All plans in the base, the main one in its variants. A model's main circuit goes by the model's name."""
    found: dict[str, Found] = {}
    main = next(iter(plans))
    for model in models:
        bench.add(accuracy_section(bench, model))
        for plan_name, plan in plans.items():
            if model == bench.base or (plan_name == main and model in bench.settings.searched):
                name = model if plan_name == main else f"{model} ({plan_name})"
                found[name], sections = discovery_section(bench, model, name, plan_name, plan)
                bench.add(sections)
                if not found[name].circuit.roles:
                    bench.warn(f"circuit {name} has no heads, so it was not evaluated")
    return found


def _examine(
    bench: Workbench, study: WholeStudy, model: str, circuits: Mapping[str, Circuit], *, last_first: bool = False
) -> None:
    """Every circuit in one model; whether its own main circuit, or one that is given, is the circuit; and knockouts."""
    parts = [partial(faithfulness_section, bench, model, name, circuit) for name, circuit in circuits.items()]
    if study.knockout and (bench.base in circuits or study.knockout.roles):
        known = circuits.get(bench.base, Circuit({}))
        parts.append(partial(knockout_section, bench, model, known, study.knockout))
    for name in (model, *(study.circuits if model == bench.base else ())):
        if name not in circuits:
            continue
        if study.minimality:
            parts.append(partial(minimality_section, bench, model, name, circuits[name], study.minimality))
        if study.completeness:
            parts.append(partial(completeness_section, bench, model, name, circuits[name], study.completeness))
        if study.ablations:
            parts.append(partial(ablations_section, bench, model, name, circuits[name], study.ablations))
    _add(bench, parts, last_first=last_first)


def _add(bench: Workbench, parts: Sequence[Callable[[], dict[str, Any]]], *, last_first: bool) -> None:
    """Two processes that come to the same model begin at either end of what is to be done on it."""
    for part in reversed(parts) if last_first else parts:
        bench.add(part())


def _asked_models(study: WholeStudy) -> tuple[str, ...]:
    """The models in which groups are asked what they do."""
    return tuple(study.functions.models or study.models) if study.functions else ()


def _ask_functions(bench: Workbench, study: WholeStudy, model: str, circuits: Mapping[str, Circuit]) -> None:
    """What each chosen circuit's groups encode in one model."""
    if not study.functions or model not in _asked_models(study):
        return
    for name in asked_circuits(study):
        if name in circuits:
            bench.add(functions_section(bench, model, name, circuits[name], study.functions))


def _compare(
    bench: Workbench,
    study: WholeStudy,
    variant: str,
    found: Mapping[str, Found],
    circuits: Mapping[str, Circuit],
    readings: Readings,
    *,
    last_first: bool = False,
) -> None:
    """A variant against the base, and what its verdict needs beyond that."""
    parts: list[Callable[[], dict[str, Any]]] = []
    if study.overlap:
        mains = {name: each for name, each in found.items() if name in study.models}
        parts.append(partial(overlap_section, bench, variant, mains, study.overlap))
    base = circuits.get(bench.base)
    if base is not None and study.cross_model:
        parts.append(
            partial(
                cross_model_section,
                bench,
                variant,
                base,
                study.cross_model,
                readings,
                controls_first=last_first,
            )
        )
    if base is not None and study.graft:
        parts.append(partial(graft_section, bench, variant, base, study.graft))
    _add(bench, parts, last_first=last_first)
    if study.verdict:
        circuit_numbers(bench, variant, circuits)  # kept, and read again for the verdict


def _judge(bench: Workbench, study: WholeStudy, variant: str, circuits: Mapping[str, Circuit]) -> None:
    """What may be said of a variant."""
    if not study.verdict:
        return
    said = verdict_section(
        bench,
        variant,
        circuits,
        study.verdict,
        similarity=similarity_evidence(bench.results, variant) or None,
        functions=functions_evidence(bench.results, bench.base, variant) or None,
        unknown=groups_without_function(bench.results, bench.base),
    )
    bench.add(said)
