"""How much faster the window executor is than the full one: ratios of times taken in one process, on one thread.

Path patching, marginal seconds per sender: all live senders in the window executor, four spread over the depth in the
full one. Circuits alone: 100 random ones of the same roles in the window executor, four of them in the full one. Clean
runs and the senders' activations are made before, on both sides. The eight prompts ask for the same segment, so that
both executors run them as one batch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table
from torch import Tensor

import circuitdiff as cd
from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine import executor_named
from circuitdiff.engine.fits import rows_at_once
from circuitdiff.engine.kept_runs import PairRuns
from circuitdiff.evaluation import evaluate_circuits, random_circuit
from circuitdiff.methods.path_patching import Path as PatchedPath
from circuitdiff.methods.path_patching import open_batch, sweep_senders
from circuitdiff.prompts import Pairs, buckets
from circuitdiff.stats.metrics import logit_difference

SEGMENT, N_PROMPTS, N_FULL = 3, 8, 4
FETCHERS = [Head(23, 2), Head(23, 0), Head(24, 2), Head(28, 1)]
TRANSMITTERS = [Head(20, 1), Head(19, 1), Head(21, 8)]
DETECTORS = [Head(17, 4), Head(17, 0), Head(5, 6)]
PATHS = {
    "direct": PatchedPath("last"),
    "via q at last": PatchedPath("last", tuple(FETCHERS), "q"),
    "via v at query_label": PatchedPath("query_label", tuple(TRANSMITTERS), "v"),
    "via v at previous_query_label, read at query_label": PatchedPath(
        "previous_query_label", tuple(DETECTORS), "v", "query_label"
    ),
    "via v at previous_query_label, read anywhere": PatchedPath("previous_query_label", tuple(DETECTORS), "v"),
}
TARGETS = dict(zip(PATHS, (55, 75, 30, 25, 4.5), strict=True)) | {"100 circuits": 8}


def seconds(run: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    """The fastest of a few runs, and what it gave."""
    times, result = [], torch.empty(0)
    for _ in range(repeats):
        begin = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - begin)
    return min(times), result


@torch.no_grad()
def time_path(model: cd.engine.Model, pairs: Pairs, path: PatchedPath, repeats: int) -> dict:
    (bucket,) = buckets(pairs.clean_prompts, path.roles)
    runs = PairRuns(model, pairs, path.roles, memory_gb=0)
    batch, source = open_batch(runs, bucket, path), runs.source(path.at)[:, bucket.prompts]
    chosen = pairs.select(bucket.prompts)

    def readout(logits: Float[Tensor, "row d_vocab"], prompt: Int[Tensor, " row"]) -> Float[Tensor, "row value"]:
        return logit_difference(logits, chosen.right_answers[prompt], chosen.foils[prompt])[:, None]

    clean = readout(batch.clean.logits, torch.arange(len(pairs)))
    n_layers = path.last_layer or model.n_layers
    live = [Head(layer, i) for layer in range(n_layers) for i in range(model.n_heads)]
    few = [Head(int(n_layers * share), 3) for share in torch.linspace(0.05, 0.95, N_FULL).tolist()]
    width = int(bucket.length - bucket.positions[path.first_changed])
    size = max(1, rows_at_once(model) // (len(pairs) * width))

    def sweep(name: str, senders: Sequence[Head]) -> Tensor:
        parts = [senders[i : i + size] for i in range(0, len(senders), size)]
        executor = executor_named(name)
        return torch.cat(
            [sweep_senders(executor, batch, bucket, path, [[head] for head in part], source, readout) for part in parts]
        )

    fast, window = seconds(lambda: sweep("window", live), repeats)
    slow, full = seconds(lambda: sweep("full", few), repeats)
    same = window[[live.index(head) for head in few]]
    error = (same - full).mean(1).abs().max() / (window - clean).mean(1).abs().max()  # of scores: means over prompts
    return row(slow / len(few), fast / len(live), len(live), float(error))


def row(full: float, window: float, n_variants: int, error: float) -> dict:
    return {"full": full, "window": window, "ratio": full / window, "variants": n_variants, "error": error}


def time_circuits(model: cd.engine.Model, pairs: Pairs, repeats: int) -> dict:
    roles = ("last", "query_label", "previous_query_label")
    heads = [tuple(FETCHERS + TRANSMITTERS), tuple(DETECTORS), (Head(16, 1), Head(14, 5), Head(12, 5))]
    shape = Circuit({role: Group(role, group) for role, group in zip(roles, heads, strict=True)})
    g = torch.Generator().manual_seed(0)
    circuits = [random_circuit(shape, model.n_layers, model.n_heads, g) for _ in range(100)]
    means = cd.mean_activations(model, pairs)

    def evaluate(name: str, some: Sequence[Circuit]) -> Tensor:
        return torch.stack([e.log_probs for e in evaluate_circuits(model, some, pairs, means, name)])

    fast, window = seconds(lambda: evaluate("window", circuits), repeats)
    slow, full = seconds(lambda: evaluate("full", circuits[:N_FULL]), repeats)
    error = (window[:N_FULL] - full).abs().max() / full.abs().max()
    return row(slow / N_FULL, fast / len(circuits), len(circuits), float(error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tracker-base")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("runs/bench.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = cd.load_model(options.model)
    pairs = cd.tasks.entity_tracking(n_boxes=7).sample(model.tokenizer, n_prompts=7 * N_PROMPTS, seed=0)
    pairs = pairs.select((pairs.queried == SEGMENT).nonzero()[:, 0])
    rows = {name: time_path(model, pairs, path, options.repeats) for name, path in PATHS.items()}
    rows["100 circuits"] = time_circuits(model, pairs, options.repeats)
    table = Table("path", "full s/variant", "window s/variant", "ratio", "wanted", "largest difference", box=None)
    for name, r in rows.items():
        times = (f"{r['full']:.3f}", f"{r['window']:.4f}")
        table.add_row(name, *times, f"{r['ratio']:.1f}x", f"{TARGETS[name]}x", f"{r['error']:.1e}")
    Console(width=140).print(table)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"model": options.model, "threads": 1, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
