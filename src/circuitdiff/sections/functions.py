"""What does each group of a circuit encode? Component masks of its groups, for several desiderata, in each model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from circuitdiff.circuit import Circuit
from circuitdiff.sections.entries import with_heads
from circuitdiff.sections.functions_cells import Cells, main_desiderata, title_of, wanted_of
from circuitdiff.sections.functions_settings import FILE, FunctionSettings
from circuitdiff.sections.preflight_triples import check_desiderata
from circuitdiff.tasks import Task
from circuitdiff.workbench import Workbench


def functions_section(
    bench: Workbench, model: str, name: str, circuit: Circuit, settings: FunctionSettings
) -> dict[str, Any]:
    """Every group of a circuit and every desideratum in one model, after check 3.

    In other models than the one where the circuit was found, the masks found there are tested unchanged, too. The
    heads found there are also patched with sources drawn anew, in every model. Groups without heads are left out.

    Raises: InputError, before any work, if a desideratum is unknown or cannot be tested; CheckError if the executors
    disagree.
    """
    tested = with_heads(circuit)
    if not main_desiderata(settings, bench.task):
        bench.warn(f"no desiderata are written for the task {bench.task.name}, so what groups encode was not asked")
        return {}
    check_desiderata(bench.task, _all_wanted(tested.groups, settings, bench.task))
    home = (bench.results["circuits"].get(name) or {}).get("model", bench.base)
    here = Cells(bench, model, name, tested, home, settings)
    there = here if model == home else Cells(bench, home, name, tested, home, settings)
    bench.keep([here.check(group) for group in tested.groups])
    entries: dict[str, dict[str, Any]] = {group: {} for group in tested.groups}
    for group, wanted in here.all:
        cell = here.fit(group, wanted)
        entries[group][title_of(wanted)] = cell.data | {"n_scenarios": len(cell.tensors["scenarios"].unique())}
    found = {cell: there.fit(*cell) for cell in here.all}
    for (group, wanted), record in found.items() if model != home else ():
        entries[group][title_of(wanted)]["transferred"] = here.transferred(group, wanted, record)
    main = {(group, wanted): r for (group, wanted), r in found.items() if _is_redrawn(wanted, settings, bench.task)}
    for group, redrawn in here.redrawn(main).items() if main else ():
        for wanted, entry in redrawn.items():
            entries[group][wanted]["redrawn"] = entry
    return {"functions": {name: {model: entries}}}


def _all_wanted(groups: Iterable[str], settings: FunctionSettings, task: Task) -> list[str]:
    return list(dict.fromkeys(wanted for group in groups for wanted in wanted_of(group, settings, task)))


def _is_redrawn(wanted: str, settings: FunctionSettings, task: Task) -> bool:
    return settings.redraw.times > 0 and wanted in main_desiderata(settings, task) and not wanted.endswith(FILE)
