"""What an automatic plan finds in planted models: which heads at which roles, held against what was planted.

Roles are not named; heads are chosen by the rule of the ground truth's studies. Precision and recall are over places,
which are heads at roles, whatever group they are found in. Processor seconds of one thread.

    python -P benchmarks/auto_plan.py -n 70
    python -P benchmarks/auto_plan.py planted-base planted-mixture
"""

from __future__ import annotations

import argparse
import time

import torch

import circuitdiff as cd
from circuitdiff.circuit import Circuit, Head
from circuitdiff.ground_truth.plantings import PLAN
from circuitdiff.planted import build_planted, planted_names

COLUMNS = ("model", "planted", "found", "in common", "groups", "missing", "of no planted group", "reached", "seconds")
Places = set[tuple[str, Head]]


def places(circuit: Circuit) -> Places:
    return {(group.at, head) for group in circuit.groups.values() for head in group.heads}


def listed(some: Places) -> str:
    return ", ".join(f"{head} at {role}" for role, head in sorted(some)) or "none"


@torch.no_grad()
def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("models", nargs="*", default=planted_names())
    arguments.add_argument("-n", type=int, default=70, help="prompts of each split")
    arguments.add_argument("--by", choices=("slot", "kind"), default="kind", help="the means by which a search ends")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    task, rule = cd.tasks.get_task("entity-tracking"), cd.AutoPlan(select=PLAN.stages[0].select)  # pyright: ignore
    totals = torch.zeros(3)
    print(*COLUMNS, sep="\t")
    for name in given.models:
        model, truth, begin = cd.load_model(name), build_planted(name), time.process_time()
        splits = {split: task.sample(model.tokenizer, given.n, 0, split) for split in ("discovery", "replication")}
        means = cd.mean_activations(model, task.sample(model.tokenizer, 2 * given.n, 0, "mask"), by=given.by)
        result = cd.find_circuit(model, splits, means, rule)
        planted, found = places(truth.circuit), places(result.circuit)
        totals += torch.tensor([len(planted), len(found), len(planted & found)])
        row = (name, len(planted), len(found), len(planted & found), len(result.circuit.groups))
        odd = (listed(planted - found), listed(found - planted))
        print(*row, *odd, f"{result.reached:.2f}", f"{time.process_time() - begin:.0f}", sep="\t", flush=True)
    n_planted, n_found, common = totals.tolist()
    print(f"precision {common / n_found:.3f}, recall {common / n_planted:.3f}")


if __name__ == "__main__":
    main()
