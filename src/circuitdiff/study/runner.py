"""Runs a study: asks all sections at once, lets workers carry their units out, and writes what comes of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from circuitdiff.cache.code_digest import digest_of_code
from circuitdiff.cache.store import RESULTS, Notify, Store
from circuitdiff.config.reading import read_json
from circuitdiff.config.settings import ModelSettings
from circuitdiff.errors import InputError
from circuitdiff.finetune.recipes import is_made, made_by
from circuitdiff.models.fingerprint import origin_of
from circuitdiff.study.common_units import EVALUATION
from circuitdiff.study.context import StudyContext, versions
from circuitdiff.study.estimates import result_of
from circuitdiff.study.plan import PlannedCost, Sizes, planned_cost
from circuitdiff.study.preflight import check_study, outlined
from circuitdiff.study.registry import (
    SECTIONS,
    Results,
    check_discovery,
    options_of,
    planned_parts,
    results_bytes,
)
from circuitdiff.study.results import SCHEMA_VERSION, CommonResults, ModelResult, StudyHeader, example_of
from circuitdiff.study.sections.accuracy import stop_unless_able
from circuitdiff.study.settings import CommonSettings, expected, task_of
from circuitdiff.study.sizes import ever_smaller, note_on_rows
from circuitdiff.study.workers import Monitor, ThisProcess, Worker, Workers

_SETTINGS = "settings.json"


def run_study(
    settings: CommonSettings,
    folder: str | Path,
    monitor: Monitor = lambda *_: None,
    announce: Callable[[PlannedCost], None] | None = None,
    workers: Sequence[Worker] = (),
    notify: Notify = warnings.warn,
) -> Path:
    """Runs what the run folder does not have yet, and writes results.json. Its path.

    `announce` is told what the study will cost before the work starts. `workers`: who carries the units out; none: this
    process. They are ended in any case. `notify` is told, in a line each, of damaged records, of long waits for another
    process that fills the folder, and of workers that were killed.

    Raises: InputError for settings that cannot work; CheckError if a self-check fails. What is computed is kept.
    """
    pool = Workers(workers or [ThisProcess(settings, settings.device[0], monitor)], settings.base.name)
    try:
        files = files_of(settings)
        inputs = inputs_of(settings, files)
        if inputs is not None and Store(Path(folder)).finished(inputs, RESULTS) is not None:
            return Path(folder) / RESULTS
        refuse(settings)
        if note := note_on_rows(settings):
            notify(note)
        _check_folder(Path(folder), settings, notify)
        store, written = Store.open(folder, notify), settings.model_dump(mode="json")
        with store.used_by(written):
            store.write_json(_SETTINGS, written)
            study = StudyContext(settings, store, pool, monitor)
            results = results_bytes(_completed(study, _results(study, announce, len(pool))))
            store.write(RESULTS, results)
            inputs = inputs or inputs_of(settings, files)  # a file may have changed meanwhile
            store.finish(inputs, {RESULTS: results})
            return store.folder / RESULTS
    finally:
        pool.end()


def refuse(settings: CommonSettings) -> None:
    """Raises: InputError for what can be known before weights are read."""
    check_discovery(settings)
    known, mixing = outlined(settings), list[str]()
    for section in SECTIONS:
        if (options := options_of(settings, section)) is not None:
            section.check(known, options)
            mixing += [section.name] if section.mixes_models else []
    check_study(known, mixing)


def _completed(study: StudyContext, work: Any) -> Any:
    """The coroutine's result. An event loop of our own, in which Ctrl-C ends the work at once."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        while asyncio.all_tasks(loop):
            with suppress(KeyboardInterrupt):  # every task that awaited the interrupted one raises it once more
                loop.call_soon(loop.stop)
                loop.run_forever()
        study.close()
        loop.close()


async def _results(
    study: StudyContext, announce: Callable[[PlannedCost], None] | None, n_workers: int
) -> CommonResults:
    settings = study.settings
    if announce is not None:
        sizes = await _sizes(study)
        announce(planned_cost(planned_parts(sizes), sizes, n_workers))
    await study.once(stop_unless_able, rank=(0,))  # among the units of the first section
    parts = await study.each(SECTIONS, study.part)
    models = {}
    for name in settings.models:
        source = await study.source(name)
        facts = await study.facts(name)
        origin = {"source": source.source, "adapters": source.adapters, "chat": settings.chat_of(name)}
        models[name] = result_of(ModelResult, facts, **origin)
    base = await study.facts(study.base)
    return Results(
        schema_version=SCHEMA_VERSION,
        study=StudyHeader(settings.name, study.task.name, settings.seed, settings.model_dump(mode="json")),
        versions=dict(versions()),
        warnings=tuple(study.warnings),
        checks=tuple(study.checks),
        models=models,
        example=example_of(await study.pairs(study.base, EVALUATION), base.tokenizer),
        **{section.name: part for section, part in zip(SECTIONS, parts, strict=True)},
    )


def plan_study(
    settings: CommonSettings, monitor: Monitor = lambda *_: None, n_workers: int = 1, minutes: float | None = None
) -> tuple[CommonSettings, PlannedCost]:
    """What the study will cost on this machine, without running it: the base is loaded and its speed measured.

    With `minutes`: of the study and ever smaller ones the first that takes no longer, or else the smallest.

    Raises: InputError for settings that cannot work.
    """
    refuse(settings)
    pool = Workers([ThisProcess(settings, settings.device[0], monitor)], settings.base.name)
    with TemporaryDirectory() as folder:
        study = StudyContext(settings, Store.open(folder, warnings.warn), pool, monitor)
        try:
            sizes = _completed(study, _sizes(study))
        finally:
            pool.end()
    chosen, cost = settings, planned_cost(planned_parts(sizes), sizes, n_workers)
    for smaller in ever_smaller(settings) if minutes is not None else ():
        if cost.minutes <= (minutes or 0):
            break
        chosen, sizes = smaller, replace(sizes, settings=smaller)
        cost = planned_cost(planned_parts(sizes), sizes, n_workers)
    return chosen, cost


async def _sizes(study: StudyContext) -> Sizes:
    return Sizes(
        settings=study.settings,
        plans=expected(study.plans, study.task),
        task=study.task,
        base=await study.facts(study.base),
        speed=await study.speed(),
        prompts=await study.prompts_of(study.base),
    )


def _check_folder(folder: Path, settings: CommonSettings, notify: Notify) -> None:
    """Says which settings of finished results are others now.

    Raises: InputError if the folder holds another study, whose results would be lost.
    """
    try:
        before = read_json(folder / _SETTINGS)
    except InputError:
        return  # there are none, or they are damaged, and written anew
    if before.get("name") != settings.name:
        raise InputError(
            f"{folder} holds the study {before.get('name')!r}, and this one is {settings.name!r}: choose another run "
            f"folder"
        )
    changed = list(_changes(before, settings.model_dump(mode="json")))
    if changed and (folder / RESULTS).exists():
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        notify(f"{folder} has results of other settings, which are replaced: {', '.join(changed[:5])}{more}")


def _changes(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """`prompts.evaluation 300 -> 30` for every setting that is another one."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in now:
            yield from _changes(before.get(name), now[name], f"{where}.{name}".lstrip("."))
    elif before != now:
        yield f"{where} {_short(before)} -> {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 40 else f"{text[:37]}..."


def files_of(settings: CommonSettings) -> dict[str, Any]:
    """Settings, versions, our own code, and the files that the study names, as they are now."""
    named = [str(path) for path in (*settings.circuits.values(), *task_of(settings).files, settings.chat)]
    for section in SECTIONS:
        named += getattr(options_of(settings, section), "files", ())
    return {
        "settings": settings.model_dump(mode="json"),
        "versions": dict(versions()),
        "code": digest_of_code(),
        "files": {path: _digest(Path(path)) for path in sorted(set(named))},
    }


def inputs_of(settings: CommonSettings, files: Mapping[str, Any]) -> dict[str, Any] | None:
    """All that a finished study depends on: if nothing of it has changed, there is nothing to run.

    None if a model is not there yet. Raises: InputError if a model's package, adapter or recipe cannot be read.
    """
    origins = {name: _origin(model) for name, model in settings.models.items()}
    return None if None in origins.values() else {**files, "models": origins}


def _origin(model: ModelSettings) -> list[Any] | None:
    if model.recipe is None:
        tokenizer = [] if model.tokenizer is None else origin_of(model.tokenizer)
        origin = origin_of(model.source, model.adapters)
        return None if origin is None or tokenizer is None else [*origin, *tokenizer]
    return origin_of(*made_by(model.recipe)) if is_made(model.recipe) else None


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
