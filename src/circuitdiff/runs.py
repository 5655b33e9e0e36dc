"""A study from its settings to its report, in one call: what `circuitdiff run` and `circuitdiff compare` do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from circuitdiff.cache.store import REPORT, Notify
from circuitdiff.study.comparison import comparison, write_study
from circuitdiff.study.plan import PlannedCost
from circuitdiff.study.ray_workers import ray_workers
from circuitdiff.study.registry import read_results
from circuitdiff.study.results import CommonResults
from circuitdiff.study.runner import run_study
from circuitdiff.study.settings import CommonSettings
from circuitdiff.study.workers import Monitor, local_workers
from circuitdiff.tasks.chat import OFF


def compare(
    base: str,
    *variants: str,
    task: str,
    quick: bool = False,
    minutes: float | None = None,
    folder: str | Path | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    chat: str = OFF,
    force: bool = False,
    workers: int = 1,
    monitor: Monitor = lambda *_: None,
    announce: Callable[[PlannedCost], None] | None = None,
    notify: Notify = warnings.warn,
) -> CommonResults:
    """What did fine-tuning do to the circuit? All that a study of a base and its variants says.

    As `circuitdiff compare`: models are sources that `load_model` takes, SOURCE+ADAPTER merges an adapter; `task` is a
    name or the path of a task file. `quick`: sizes for a first look; `minutes`: at most about so long. Prints nothing.

    `folder`, by default runs/NAME, is given study.yaml, results.json and report.html; called again, it goes on where it
    was. With `workers` above 1 a script needs `if __name__ == "__main__":` around the call. `monitor`, `announce` and
    `notify` are told of progress, of the cost before the work starts, and of what happens meanwhile.

    Raises: InputError for what cannot be compared, and, without `force`, if the base does not do the task; CheckError
    if a self-check fails.
    """
    options = {"chat": chat, "dtype": dtype, "device": device, "quick": quick, "minutes": minutes, "force": force}
    settings = comparison(base, variants, task, **options, monitor=monitor, n_workers=workers)
    folder = Path(folder or Path("runs") / settings.name)
    write_study(settings, folder)
    return run_to_report(settings, folder, workers, monitor=monitor, announce=announce, notify=notify)


def run_to_report(
    settings: CommonSettings,
    folder: Path,
    workers: int = 1,
    ray: str | None = None,
    *,
    monitor: Monitor,
    announce: Callable[[PlannedCost], None] | None,
    notify: Notify,
) -> CommonResults:
    """Runs a study with so many workers, here or on the Ray cluster of that address, and writes its page."""
    from circuitdiff.report import write_report  # draws, which workers and most scripts do not

    if ray is None:
        chosen = nullcontext(local_workers(settings, workers, monitor))
    else:
        chosen = ray_workers(settings, ray, workers)
    with chosen as at_work:
        run_study(settings, folder, monitor, announce, at_work, notify)
    results = read_results(folder)
    write_report(results, folder / REPORT)
    return results
