"""How much faster a mask's training step is through the window executor: ratios of times in one process, one thread.

A step is the loss and its gradient for the keep values of a group at the last position, on prompts of one length.
Clean runs and source activations are made before, on both sides. Then one whole fit with the default options, its
clean runs included, and what a study of several groups, desiderata and models would take at that rate.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import circuitdiff as cd
from circuitdiff.circuit import Group, Head
from circuitdiff.methods.component_mask.fit import MaskOptions, fit_shared
from circuitdiff.methods.component_mask.patching import SharedRuns
from circuitdiff.methods.component_mask.training import GATES, cross_entropy, gradient
from circuitdiff.tasks.desiderata import sample_triples

WANTED = 8
GROUP = Group("last", tuple(Head(layer, (2 * layer + i) % 9) for layer in range(19, 30) for i in range(1 + layer % 2)))


def seconds(run: Callable[[], Tensor], repeats: int) -> tuple[float, float, Tensor]:
    """The fastest of a few runs by the clock and by processor time, and what it gave."""
    times, result = [], torch.empty(0)
    for _ in range(repeats):
        begin = time.perf_counter(), time.process_time()
        result = run()
        times.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    return min(wall for wall, _ in times), min(cpu for _, cpu in times), result


def time_step(model: cd.engine.Model, n_prompts: int, repeats: int) -> dict:
    triples = sample_triples(cd.tasks.entity_tracking(), model.tokenizer, "position", n_prompts)
    keep, rows = torch.full((len(GROUP.heads),), 0.5, dtype=model.dtype, requires_grad=True), torch.arange(n_prompts)

    def step_with(executor: str) -> tuple[float, float, Tensor]:
        shared = SharedRuns(model, {"group": GROUP}, triples.base, n_random=0, executor=executor)
        patching, quantity = shared.patching("group", triples), cross_entropy(triples.targets)
        g = torch.Generator()
        return seconds(
            lambda: gradient(patching, GROUP.heads, keep, GATES["clamped"], 0.02, rows, quantity, g), repeats
        )

    fast, full = step_with("window"), step_with("full")
    error = float((fast[2] - full[2]).abs().max() / full[2].abs().max())
    return {"full": full[0], "window": fast[0], "ratio": full[1] / fast[1], "error": error}


def time_fit(model: cd.engine.Model) -> dict:
    """Seconds of one fit: everything that is shared by groups and desiderata, and the rest."""
    options = MaskOptions()
    triples = sample_triples(cd.tasks.entity_tracking(), model.tokenizer, "position")
    shared = SharedRuns(model, {"group": GROUP}, triples.base, n_random=options.random_groups)
    begin = time.perf_counter()
    patching = shared.patching("group", triples)
    middle = time.perf_counter()
    fit = fit_shared(shared, "group", triples, options)
    end = time.perf_counter()
    return {"shared": middle - begin, "fit": end - middle, "kept": patching.runs.n_kept, "heads": len(fit.heads)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tracker-base")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--fit", action="store_true", help="also time one whole fit")
    parser.add_argument("--json", type=Path, default=Path("runs/bench-component-mask.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = cd.load_model(options.model)
    row = time_step(model, options.prompts, options.repeats)
    rows = {"step at last": row} | ({"fit at last": time_fit(model)} if options.fit else {})
    ratio = "ratio of processor times"
    table = Table("", "full s", "window s", ratio, "wanted", "largest difference of gradients", box=None)
    times = (f"{row['full']:.3f}", f"{row['window']:.4f}", f"{row['ratio']:.1f}x")
    table.add_row(f"a step of {options.prompts} prompts at last", *times, f"{WANTED}x", f"{row['error']:.1e}")
    console = Console(width=140)
    console.print(table)
    if options.fit:
        fit = rows["fit at last"]
        console.print(
            f"a fit of {len(GROUP.heads)} heads: shared runs {fit['shared']:.0f} s, the rest {fit['fit']:.0f} s"
        )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"model": options.model, "threads": 1, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
