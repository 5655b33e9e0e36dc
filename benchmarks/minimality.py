"""How long minimality takes: a group of 50 heads at the last token, 1,275 circuits without one or two of them.

Wall-clock and processor seconds of the whole test, removal sets and costs included, of a circuit that also has heads at
two earlier roles. Model, prompts and means are made before. On a busy machine the processor seconds are the ones to
read: divided by the threads, they are what an idle one takes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import circuitdiff as cd
from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine import Model
from circuitdiff.methods.minimality import MinimalityRule, minimality

WANTED_MINUTES = 6.0


def random_heads(model: Model, n_heads: int, generator: torch.Generator) -> tuple[Head, ...]:
    """Heads from the upper two thirds of the layers, where the published circuits have theirs."""
    pool = [Head(layer, i) for layer in range(model.n_layers // 3, model.n_layers) for i in range(model.n_heads)]
    return tuple(pool[i] for i in torch.randperm(len(pool), generator=generator)[:n_heads].tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--heads", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("runs/bench-minimality.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, generator = cd.load_model(options.model), torch.Generator().manual_seed(0)
    task = cd.tasks.entity_tracking(n_boxes=7)
    pairs = task.sample(model.tokenizer, n_prompts=options.prompts, seed=0)
    means = cd.mean_activations(model, task.sample(model.tokenizer, n_prompts=60, seed=0, split="mask"))
    fetchers = Group("last", random_heads(model, options.heads, generator))
    others = {role: Group(role, random_heads(model, 5, generator)) for role in ("query_label", "previous_query_label")}
    begin, busy = time.perf_counter(), time.process_time()
    minimality(model, Circuit({"fetcher": fetchers} | others), pairs, means, MinimalityRule(held_out=False))
    minutes, busy_minutes = (time.perf_counter() - begin) / 60, (time.process_time() - busy) / 60
    row = {"heads": options.heads, "prompts": options.prompts, "minutes": minutes, "processor_minutes": busy_minutes}
    table = Table("heads", "pairs", "prompts", "threads", "minutes", "processor minutes", "wanted", box=None)
    n_pairs = options.heads * (options.heads - 1) // 2
    counts = (options.heads, n_pairs, options.prompts, options.threads)
    table.add_row(*map(str, counts), f"{minutes:.1f}", f"{busy_minutes:.1f}", f"{WANTED_MINUTES:g}")
    Console(width=120).print(table)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"model": options.model, "threads": options.threads} | row, indent=1) + "\n")


if __name__ == "__main__":
    main()
