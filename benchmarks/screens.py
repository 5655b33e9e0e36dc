"""What `screen: auto` saves, and what it misses: a task's plan by full sweeps and by screens, stage by stage.

Processor seconds of one thread. Clean and counterfactual runs are made before, as stages share them. Heads are chosen
by the stages' rules without a replication; every stage patches into what the full sweep of an earlier one chose. Lost
are heads that only the full sweep chooses: the screen left them out, or they are no discoveries where heads that it
left out count as without an effect. Left out: of those that the full sweep chooses, on average over 300 random samples.

    python -P benchmarks/screens.py smollm2 ioi -n 64
    python -P benchmarks/screens.py tracker-base entity-tracking -n 105
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

import circuitdiff as cd
from circuitdiff.engine.kept_runs import PairRuns
from circuitdiff.methods.discovery import Plan, StageResult, receivers_of, stage_result
from circuitdiff.methods.path_patching import Path
from circuitdiff.methods.screening import Screen, Screened, screened_effects, strongest_of
from circuitdiff.prompts import buckets
from circuitdiff.study.settings import own_plans

SAMPLES = 300  # draws of the heads that are measured whatever their estimate
COLUMNS = ("stage", "full", "screen", "ratio", "measured", "correlation", "found by full", "lost", "large", "left out")


def chosen(result: StageResult) -> set[cd.Head]:
    return {*result.selection.helping, *result.selection.hurting}


def left_out(full: cd.PathEffects, screened: Screened, heads: set[cd.Head], n_layers: int, minimum: float) -> float:
    """How many of these heads a screen does not measure, on average over random samples, with these estimates."""
    live, total = [cd.Head(i, j) for i in range(n_layers) for j in range(full.effects.shape[1])], 0
    for seed in range(SAMPLES):
        order = torch.randperm(len(live), generator=torch.Generator().manual_seed(seed))[: Screen().sample].tolist()
        sample, exact = {live[i] for i in order}, torch.full_like(full.effects, torch.nan)
        for head in sample:
            exact[head.layer, head.index] = full.effects[head.layer, head.index]
        total += len(heads - sample - set(strongest_of(screened.estimates, exact, live, Screen(), minimum)))
    return total / SAMPLES


@torch.no_grad()
def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("model")
    arguments.add_argument("task")
    arguments.add_argument("-n", type=int, default=64)
    arguments.add_argument("--steps", type=int, help="of integrated gradients")
    arguments.add_argument("--memory-gb", type=float, default=2.0, help="for clean runs that are kept")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    model, task = cd.load_model(given.model), cd.tasks.get_task(given.task)
    plan = next(iter(own_plans(task).values()))
    if not isinstance(plan, Plan):
        raise cd.InputError(f"{given.task} has an automatic plan, whose stages are not known beforehand; name another")
    pairs = task.sample(model.tokenizer, given.n, seed=0, split="discovery")
    runs = PairRuns(model, pairs, plan.roles, given.memory_gb)

    begin = time.process_time()
    for bucket in buckets(pairs.clean_prompts, plan.roles, 8):
        runs.batch(bucket, max(bucket.positions.values()))
    runs.source(plan.roles[0])
    seconds, found = time.process_time() - begin, dict[str, StageResult]()
    table = Table(*COLUMNS, title=f"runs that stages share: {seconds:.1f} s")
    for stage in plan.stages:
        rule = cd.Discoveries() if isinstance(stage.select, cd.TopK) else stage.select
        once = replace(stage, select=replace(rule, replicated=False))
        receivers = receivers_of(once, found)
        if receivers == ():
            table.add_row(stage.name, *["no heads to patch into"])
            continue
        path = Path(stage.at, receivers, stage.via, stage.receivers_at)
        along, how = (path.at, receivers, path.via, path.receivers_at), {"metric": plan.metric, "shared": runs}
        minimum, begin = once.minimum(plan.metric), time.process_time()
        full = cd.path_effects(model, pairs, *along, **how)
        in_full, begin = time.process_time() - begin, time.process_time()
        screened = screened_effects(model, pairs, path, Screen(steps=given.steps), minimum, **how)
        by_screen = time.process_time() - begin
        exact, quick = (stage_result(once, receivers, each) for each in (full, screened))
        found[stage.name] = exact
        lost = chosen(exact) - chosen(quick)
        large = [head for head in lost if abs(float(full.effects[head.layer, head.index])) > 2 * minimum]
        out = left_out(full, screened, chosen(exact), path.last_layer or model.n_layers, minimum)
        both = torch.stack([each.nan_to_num().flatten().double() for each in (full.effects, screened.estimates)])
        n_measured = int((~screened.effects.effects.isnan()).sum())
        table.add_row(
            *(stage.name, f"{in_full:.1f}", f"{by_screen:.1f}", f"{in_full / by_screen:.1f}", str(n_measured)),
            *(
                f"{float(torch.corrcoef(both)[0, 1]):.2f}",
                str(len(chosen(exact))),
                str(len(lost)),
                str(len(large)),
                f"{out:.2f}",
            ),
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
