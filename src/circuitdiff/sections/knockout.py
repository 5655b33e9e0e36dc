"""Where does attention carry information in a model? Curves over layers and a role x role matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from circuitdiff import results as form
from circuitdiff.circuit import Circuit
from circuitdiff.evaluation import Evaluation
from circuitdiff.methods.knockout import knockout_curves, knockout_matrix, random_keys
from circuitdiff.prompts import Pairs
from circuitdiff.sections.cross_checks import FEW, check_executors
from circuitdiff.sections.cross_settings import KnockoutSettings
from circuitdiff.sections.entries import interval_entry
from circuitdiff.sections.gains import first_prompts
from circuitdiff.statistics import difference_interval
from circuitdiff.store import Record
from circuitdiff.workbench import Subject, Workbench

RANDOM = "a random position"


def knockout_section(bench: Workbench, model: str, circuit: Circuit, settings: KnockoutSettings) -> dict[str, Any]:
    """One model's accuracies with attention blocked between roles: those of the settings, or the circuit's.

    Raises: InputError if a role does not exist.
    """
    subject = bench.subject(model)
    pairs = first_prompts(subject.splits.evaluation, settings.prompts)
    roles = list(settings.roles or dict.fromkeys(["last", *circuit.roles]))
    matrix = _matrix(bench, subject, pairs, roles, settings)
    chosen = settings.curves
    if chosen is None:
        chosen = tuple((cell["query"], cell["key"]) for cell in matrix["cells"] if cell["answer"] is not None)
    curves = _curves(bench, subject, pairs, chosen, settings)
    entry = {"n_prompts": len(pairs), "n_scenarios": len(pairs.scenarios.unique()), "matrix": matrix, "curves": curves}
    return {"knockout": {model: entry}}


def _matrix(
    bench: Workbench, subject: Subject, pairs: Pairs, roles: Sequence[str], settings: KnockoutSettings
) -> dict[str, Any]:
    title, seed = f"attention between roles in {subject.model.name}", bench.settings.seed
    query_roles = _question(bench, pairs, settings)

    def run(on: Pairs, executor: str) -> list[Evaluation]:
        found = knockout_matrix(
            subject.model,
            on,
            roles,
            query_roles=query_roles,
            seed=seed,
            executor=executor,
            memory_gb=bench.settings.memory_gb,
            progress=lambda done, total: bench.monitor(title, done, total),
        )
        return [found.clean, *found.blocked.values(), *found.control.values()]

    key = subject.stages.key("evaluation") | {"n": len(pairs), "roles": roles, "query_roles": list(query_roles)}
    check_executors(bench, subject, title, key, lambda name: run(first_prompts(pairs, FEW), name))
    record = subject.stages.kept(title, key, lambda: form.evaluations_record(run(pairs, bench.settings.executor)))
    clean, *rest = form.evaluations_from(record)
    at = {role: pairs.positions[role] for role in roles}
    before = [(query, key) for query in roles for key in roles if bool((at[key] < at[query]).all())]
    queries = list(dict.fromkeys(query for query, _ in before))
    blocked = dict(zip(before, rest[: len(before)], strict=True))
    control = dict(zip(queries, rest[len(before) :], strict=True))
    cells = [
        matrix_cell(q, k, clean, blocked.get((q, k)), control.get(q), settings.margin) for q in roles for k in roles
    ]
    return {
        "roles": roles,
        "clean": form.share(clean.hits, clean.scenarios),
        "cells": cells,
        "control": {query: form.share(each.hits, each.scenarios) for query, each in control.items()},
        "margin": settings.margin,
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


def _curves(
    bench: Workbench,
    subject: Subject,
    pairs: Pairs,
    chosen: Sequence[tuple[str, str]],
    settings: KnockoutSettings,
) -> list[dict[str, Any]]:
    """A curve for each pair of roles, and for each query one with a random key."""
    model, seed = subject.model, bench.settings.seed
    layers = list(range(0, model.n_layers, settings.layer_step))
    query_roles = _question(bench, pairs, settings)
    wanted: list[tuple[str, str]] = [*chosen, *((query, RANDOM) for query in dict.fromkeys(q for q, _ in chosen))]
    if not wanted:
        return []
    title, random = f"attention in {model.name}, by layer", {"query_roles": list(query_roles)}

    def compute() -> Record:
        found = knockout_curves(
            model,
            pairs,
            [(q, random_keys(pairs, q, query_roles, seed=seed) if key == RANDOM else key) for q, key in wanted],
            layers=layers,
            upward=not settings.single_layers,
            executor=bench.settings.executor,
            memory_gb=bench.settings.memory_gb,
            progress=lambda done, total: bench.monitor(title, done, total),
        )
        return form.evaluations_record([found[0].clean, *(each for curve in found for each in curve.blocked)])

    own = {"n": len(pairs), "curves": wanted, "layers": layers, "single": settings.single_layers}
    record = subject.stages.kept(title, subject.stages.key("evaluation") | own | random, compute)
    clean, *blocked = form.evaluations_from(record)
    n = len(layers)
    return [
        curve_entry(query, key, layers, [clean, *blocked[i * n : (i + 1) * n]], single=settings.single_layers)
        for i, (query, key) in enumerate(wanted)
    ]


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
