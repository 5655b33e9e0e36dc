"""Claims about minimality: decoys are spread over the groups, and both kinds of error would be seen."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from circuitdiff.circuit import Head
from circuitdiff.methods.minimality import GroupMinimality, HeadCost, MinimalityResult, Outcome, PairTable
from circuitdiff.stats.intervals import Interval
from validation import Sizes
from validation.discovery_rows import (
    MINIMALITY_RULE,
    N_DECOYS,
    drawn_decoys,
    judged,
    minimality_rows,
    with_decoys,
)
from validation.subjects import Subject, named_subject


@cache
def base() -> Subject:
    return named_subject("planted-base", Sizes(discovery=7, evaluation=200))


def test_decoys_are_spread_over_all_groups_and_play_no_part():
    decoys, planted = drawn_decoys(base()), base().truth.circuit
    assert len(set(decoys)) == N_DECOYS
    assert not set(decoys) & {head for heads in base().truth.parts.values() for head in heads}
    grown = with_decoys(base(), decoys)
    assert [len(group.heads) for group in grown.groups.values()] == [5, 5, 4, 4]
    added = [head for name, group in grown.groups.items() for head in group.heads[len(planted.groups[name].heads) :]]
    assert sorted(added) == sorted(decoys)


def invented(needed: set[Head], open_too: set[Head]) -> MinimalityResult:
    def outcome(head: Head) -> Outcome:
        return "needed" if head in needed else "open" if head in open_too else "not_needed"

    groups = {}
    for name, group in with_decoys(base(), drawn_decoys(base())).groups.items():
        costs = [
            HeadCost(head, (), 0.0, 0.0, Interval(0.2, 0.1, 0.3), Interval(0.0, 0.0, 0.0), 0.0, 0.0, outcome(head))
            for head in group.heads
        ]
        n = len(costs)
        table = PairTable(group.heads, torch.zeros(n, n, dtype=torch.float64))
        groups[name] = GroupMinimality(group.at, table, tuple(costs), torch.zeros(n, 2))
    return MinimalityResult(groups, MINIMALITY_RULE, torch.arange(2), 2)


def test_a_decoy_that_is_needed_and_a_planted_head_that_is_not_are_named():
    decoys = drawn_decoys(base())
    planted = {head for group in base().truth.circuit.groups.values() for head in group.heads}
    assert [row.passed for row in judged(base(), decoys, invented(planted, set()))] == [True] * 4
    gone, unsure = base().truth.circuit.groups["position_detector"].heads[1:3]
    rows = judged(base(), decoys, invented((planted - {gone, unsure}) | {decoys[0]}, {unsure, *decoys[1:3]}))
    assert [row.claim for row in rows] == [
        "minimality: decoys that are needed",
        "minimality: decoys that are open",
        "minimality: planted heads that are not needed",
        "minimality: planted heads that are open",
    ]
    assert [(row.value, row.passed) for row in rows] == [(1, False), (2, False), (1, False), (1, False)]
    assert rows[0].detail.startswith(f"of 6; value_fetcher {decoys[0]} (cost +0.200")
    assert rows[2].detail.startswith(f"of 12; position_detector {gone} (cost")


def test_minimality_of_the_planted_circuit_does_not_need_its_decoys_and_needs_all_else():
    rows = minimality_rows(base())
    assert [row.value for row in rows] == [0, 0, 0, 0]
    assert np.all([row.passed for row in rows])
