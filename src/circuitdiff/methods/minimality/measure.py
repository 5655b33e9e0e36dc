"""Which heads of a circuit it needs: for each head, is there a set whose absence lays its part bare?

1. On half of the scenarios: the score of the circuit without each pair of a group's heads (the pair table).
2. From the table, for each head: the heads that stand in for it, which are removed first (its removal set K).
3. On the other scenarios: the head's cost, score(circuit minus K) - score(circuit minus K minus the head).
4. Heads stay whose cost is credibly above a threshold, false discoveries controlled over the whole circuit.

Source: Wang et al. 2022 (arXiv:2211.00593), section 4.2, for minimality by removal sets; Prakash et al. 2024
(arXiv:2402.14811) for pair tables. They choose K and measure the cost on the same prompts, in hits, without an
interval: `PUBLISHED` does that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Circuit, Head
from circuitdiff.engine import Model
from circuitdiff.engine.memory import DEFAULT_MEMORY_GB
from circuitdiff.errors import InputError
from circuitdiff.evaluation import (
    Evaluation,
    Progress,
    Quantity,
    Replacement,
    Shared,
    check_circuit,
    evaluate_circuits,
)
from circuitdiff.methods.minimality.result import GroupMinimality, HeadCost, MinimalityResult
from circuitdiff.methods.minimality.rules import MinimalityRule, PairTable, keep, pair_removal, removal_set
from circuitdiff.prompts import Pairs, halves
from circuitdiff.stats.intervals import Interval, cluster_p_values, false_discovery_adjusted, mean_interval, one_sided


class _Removal(NamedTuple):
    """Heads to take out of the circuit at one role."""

    at: str
    heads: frozenset[Head]


class _Tested(NamedTuple):
    """One head of a group: the circuit without its removal set, and without the head, too."""

    group: str
    head: Head
    removed: tuple[Head, ...]
    before: Evaluation
    after: Evaluation


def minimality(
    model: Model,
    circuit: Circuit,
    pairs: Pairs,
    means: Replacement,
    rule: MinimalityRule | None = None,
    executor: str = "window",
    progress: Progress | None = None,
    *,
    tables: Mapping[str, PairTable] | None = None,
    shared: Shared | None = None,
    memory_gb: float = DEFAULT_MEMORY_GB,
) -> MinimalityResult:
    """What each head costs the circuit, and which ones it needs by `rule`; every group inside the whole circuit.

    A group of n heads takes n (n + 1) / 2 circuits on the prompts that choose, and at most 2 n on those that test.
    `tables`: pair tables that are known already, by group, only the others are measured. They choose removal sets:
    where they were measured on the prompts that test, costs are somewhat too large.

    Raises: InputError if a group is empty, the model or task lacks a head or role, the scenarios are too few, or a
    table is not one of a group's heads.
    """
    rule, given = rule or MinimalityRule(), tables or {}
    check_circuit(model, circuit, pairs)
    _check_tables(given, circuit)
    choosing, testing = halves(pairs) if rule.held_out else (pairs, pairs)
    known = shared or Shared()

    def evaluate(removals: Iterable[_Removal], on: Pairs) -> dict[_Removal, Evaluation]:
        distinct = list(dict.fromkeys(removals))
        circuits = [circuit.without(removal.heads, removal.at) for removal in distinct]
        found = evaluate_circuits(model, circuits, on, means, executor, progress, shared=known, memory_gb=memory_gb)
        return dict(zip(distinct, found, strict=True))

    unknown = Circuit({name: group for name, group in circuit.groups.items() if name not in given})
    alone = evaluate(_pairs_of(unknown, rule), choosing) if unknown.groups else {}
    used = {**_pair_tables(unknown, rule, alone), **given}
    sets = [
        (name, head, tuple(removal_set(used[name], head, rule.fraction)))
        for name, group in circuit.groups.items()
        for head in group.heads
    ]
    found = evaluate((removal for one in sets for removal in _ends(circuit, *one)), testing)
    tested = [_Tested(*one, *(found[removal] for removal in _ends(circuit, *one))) for one in sets]
    return MinimalityResult(_judged(circuit, used, tested, rule), rule, testing.scenarios, len(choosing))


def score(evaluation: Evaluation, rule: MinimalityRule) -> float:
    """The answer's mean probability, or the number of hits, which compares exactly."""
    values = evaluation.per_prompt(rule.score)
    return float(values.sum() if rule.score == "hits" else values.mean())


def _check_tables(tables: Mapping[str, PairTable], circuit: Circuit) -> None:
    for name, table in tables.items():
        if name not in circuit.groups:
            raise InputError(f"a pair table is given of {name!r}; the circuit has {', '.join(circuit.groups)}")
        if sorted(table.heads) != sorted(circuit.groups[name].heads):
            heads = ", ".join(map(str, circuit.groups[name].heads))
            raise InputError(f"the pair table of {name!r} must have the group's heads, {heads}, each once")
        if table.scores.shape != (len(table.heads), len(table.heads)):
            raise InputError(
                f"the pair table of {name!r} must have a row and a column for each of its {len(table.heads)} heads; "
                f"got scores of shape {tuple(table.scores.shape)}"
            )


def _pair(at: str, first: Head, second: Head, rule: MinimalityRule) -> _Removal:
    return _Removal(at, pair_removal(first, second, joint_removal_of_same_index=rule.joint_removal_of_same_index))


def _pairs_of(circuit: Circuit, rule: MinimalityRule) -> Iterator[_Removal]:
    """Every pair of each group, a head with itself included."""
    for group in circuit.groups.values():
        for first in group.heads:
            for second in group.heads:
                yield _pair(group.at, first, second, rule)


def _pair_tables(circuit: Circuit, rule: MinimalityRule, alone: Mapping[_Removal, Evaluation]) -> dict[str, PairTable]:
    """Step 1."""
    scores = {removal: score(evaluation, rule) for removal, evaluation in alone.items()}
    tables = {}
    for name, group in circuit.groups.items():
        rows = [[scores[_pair(group.at, first, second, rule)] for second in group.heads] for first in group.heads]
        tables[name] = PairTable(group.heads, torch.tensor(rows, dtype=torch.float64))
    return tables


def _ends(circuit: Circuit, name: str, head: Head, removed: tuple[Head, ...]) -> tuple[_Removal, _Removal]:
    """What is gone before and after the head goes."""
    at = circuit.groups[name].at
    return _Removal(at, frozenset(removed)), _Removal(at, frozenset([*removed, head]))


def _judged(
    circuit: Circuit, tables: Mapping[str, PairTable], tested: Sequence[_Tested], rule: MinimalityRule
) -> dict[str, GroupMinimality]:
    """Steps 3 and 4."""
    per_prompt, costs = _costs(tested, rule.score), _head_costs(tested, rule)
    groups = {}
    for name, group in circuit.groups.items():
        mine = [i for i, one in enumerate(tested) if one.group == name]
        groups[name] = GroupMinimality(group.at, tables[name], tuple(costs[i] for i in mine), per_prompt[mine])
    return groups


def _head_costs(tested: Sequence[_Tested], rule: MinimalityRule) -> list[HeadCost]:
    scenarios = tested[0].before.scenarios.numpy()
    costs, hits = (_costs(tested, quantity).numpy() for quantity in (rule.score, "hits"))
    intervals, hit_intervals = (mean_interval(values, scenarios, level=rule.level) for values in (costs, hits))
    null = rule.threshold if rule.decision == "credible" else 0.0
    p = one_sided(cluster_p_values(costs - null, scenarios, n_flips=1), np.zeros(len(costs), dtype=bool))
    rows = []
    for i, (one, adjusted) in enumerate(zip(tested, false_discovery_adjusted(p).tolist(), strict=True)):
        scores, cost = (score(one.before, rule), score(one.after, rule)), _row(intervals, i)
        credible = bool(cost.low > rule.threshold) and adjusted <= rule.error_rate
        kept = credible if rule.decision == "credible" else keep(*scores, rule.threshold)
        rows.append(HeadCost(one.head, one.removed, *scores, cost, _row(hit_intervals, i), adjusted, kept))
    return rows


def _costs(tested: Sequence[_Tested], quantity: Quantity) -> Float[Tensor, "head prompt"]:
    return torch.stack([one.before.per_prompt(quantity) - one.after.per_prompt(quantity) for one in tested])


def _row(intervals: Interval, i: int) -> Interval:
    return Interval(*(float(np.asarray(bound)[i]) for bound in intervals))
