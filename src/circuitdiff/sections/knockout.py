"""Where does attention carry information in a model? Curves over layers and a role x role matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from circuitdiff import results as form
from circuitdiff.circuit import Circuit
from circuitdiff.evaluation import Evaluation
from circuitdiff.methods.knockout import (
    EVERYWHERE,
    Blocked,
    Blocking,
    random_keys,
    roles_before,
    several_knockouts,
)
from circuitdiff.prompts import Pairs
from circuitdiff.sections.cross_checks import FEW, check_executors
from circuitdiff.sections.cross_settings import KnockoutSettings
from circuitdiff.sections.entries import interval_entry
from circuitdiff.sections.gains import first_prompts
from circuitdiff.stats.intervals import difference_interval
from circuitdiff.workbench import Subject, Workbench

RANDOM = "a random position"

_Pair = tuple[str, str]  # a query's role and a key's, or `RANDOM`


def knockout_section(bench: Workbench, model: str, circuit: Circuit, settings: KnockoutSettings) -> dict[str, Any]:
    """One model's accuracies with attention blocked between roles: those of the settings, or the circuit's.

    Raises: InputError if a role does not exist.
    """
    subject = bench.subject(model)
    pairs = first_prompts(subject.splits.evaluation, settings.prompts)
    roles = list(settings.roles or dict.fromkeys(["last", *circuit.roles]))
    before = roles_before(pairs, roles)
    chosen = before if settings.curves is None else settings.curves
    cells = [*before, *((query, RANDOM) for query in dict.fromkeys(q for q, _ in before))]
    curves = [*chosen, *((query, RANDOM) for query in dict.fromkeys(q for q, _ in chosen))]
    layers = range(0, subject.model.n_layers, settings.layer_step)
    clean, in_cells, in_curves = _knockouts(bench, subject, pairs, cells, curves, layers, settings)
    entry = {
        "n_prompts": len(pairs),
        "n_scenarios": len(pairs.scenarios.unique()),
        "matrix": _matrix_entry(roles, clean, dict(zip(cells, in_cells, strict=True)), settings.margin),
        "curves": [
            curve_entry(query, key, layers, [clean, *found], single=settings.single_layers)
            for (query, key), found in zip(curves, in_curves, strict=True)
        ],
    }
    return {"knockout": {model: entry}}


def _knockouts(
    bench: Workbench,
    subject: Subject,
    pairs: Pairs,
    cells: Sequence[_Pair],
    curves: Sequence[_Pair],
    layers: range,
    settings: KnockoutSettings,
) -> tuple[Evaluation, list[Evaluation], list[list[Evaluation]]]:
    """The clean model; with attention blocked in all layers, for each cell; and by layer, for each curve."""
    model, title = subject.model, f"attention between roles in {subject.model.name}"
    query_roles = _question(bench, pairs, settings)

    def keys(on: Pairs, query: str, key: str) -> Blocked:
        return random_keys(on, query, query_roles, seed=bench.settings.seed) if key == RANDOM else key

    def run(on: Pairs, executor: str, curves: Sequence[_Pair]) -> list[Evaluation]:
        everywhere = [Blocking(q, keys(on, q, key), EVERYWHERE) for q, key in cells]
        by_layer = [Blocking(q, keys(on, q, key), layers, not settings.single_layers) for q, key in curves]
        clean, found = several_knockouts(
            model,
            on,
            [*everywhere, *by_layer],
            executor=executor,
            memory_gb=bench.settings.memory_gb,
            progress=lambda done, total: bench.monitor(title, done, total),
        )
        return [clean, *(each for curve in found for each in curve.blocked)]

    blocked = {"cells": cells, "query_roles": list(query_roles), "seed": bench.settings.seed}
    few, in_layers = first_prompts(pairs, FEW), {"layers": list(layers), "single": settings.single_layers}
    check = subject.stages.key("check of knockouts", few, **blocked)
    check_executors(bench, subject, title, check, lambda name: run(few, name, []))
    key = subject.stages.key("knockouts", pairs, **blocked, curves=curves, **in_layers)
    record = subject.stages.kept(
        title, key, lambda: form.evaluations_record(run(pairs, bench.settings.executor, curves))
    )
    clean, *found = form.evaluations_from(record)
    by_layer, n = found[len(cells) :], len(layers)
    return clean, found[: len(cells)], [by_layer[i * n : (i + 1) * n] for i in range(len(curves))]


def _matrix_entry(
    roles: Sequence[str], clean: Evaluation, found: Mapping[_Pair, Evaluation], margin: float
) -> dict[str, Any]:
    control = {query: each for (query, key), each in found.items() if key == RANDOM}
    return {
        "roles": list(roles),
        "clean": form.share(clean.hits, clean.scenarios),
        "cells": [matrix_cell(q, k, clean, found.get((q, k)), control.get(q), margin) for q in roles for k in roles],
        "control": {query: form.share(each.hits, each.scenarios) for query, each in control.items()},
        "margin": margin,
    }


def matrix_cell(
    query: str,
    key: str,
    clean: Evaluation,
    blocked: Evaluation | None,
    control: Evaluation | None,
    margin: float,
) -> dict[str, Any]:
    """Does information flow from `key` to `query`?

    Yes: blocking it surely costs accuracy, and surely more than blocking a random position. No: it surely costs less
    than the margin. None: the key does not come first in every prompt.
    """
    if blocked is None or control is None:
        return {"query": query, "key": key, "answer": None}
    scenarios = clean.scenarios.numpy()
    loss = difference_interval(clean.hits.numpy(), blocked.hits.numpy(), scenarios)
    beyond = difference_interval(control.hits.numpy(), blocked.hits.numpy(), scenarios)
    surely = loss.low > 0 and beyond.low > 0
    answer = "yes" if surely else "no" if loss.high < margin else "not established"
    return {
        "query": query,
        "key": key,
        "answer": answer,
        "accuracy": form.share(blocked.hits, blocked.scenarios),
        "loss": interval_entry(loss),
        "loss_beyond_random": interval_entry(beyond),
    }


def curve_entry(
    query: str, key: str, layers: Sequence[int], found: Sequence[Evaluation], *, single: bool
) -> dict[str, Any]:
    """Accuracies by layer, with intervals; `found` is the clean model, then one run for each layer."""
    clean, *blocked = found
    return {
        "query": query,
        "key": key,
        "single_layers": single,
        "clean": form.share(clean.hits, clean.scenarios),
        "points": [
            {"layer": layer} | form.share(each.hits, each.scenarios)
            for layer, each in zip(layers, blocked, strict=True)
        ],
    }


def _question(bench: Workbench, pairs: Pairs, settings: KnockoutSettings) -> tuple[str, ...]:
    """The roles that the random key avoids; one that some prompts lack cannot be avoided there."""
    wanted = bench.task.question_roles if settings.query_roles is None else settings.query_roles
    return tuple(role for role in wanted if bool((pairs.positions[role] >= 0).all()))
