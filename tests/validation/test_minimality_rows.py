"""Claims about minimality: decoys are spread over the groups, and both kinds of error would be seen."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from circuitdiff.circuit import Head
from circuitdiff.methods.minimality import GroupMinimality, HeadCost, MinimalityResult, PairTable
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
    return named_subject("planted-base", Sizes(discovery=7, evaluation=70))


def test_decoys_are_spread_over_all_groups_and_play_no_part():
    decoys, planted = drawn_decoys(base()), base().truth.circuit
    assert len(set(decoys)) == N_DECOYS
    assert not set(decoys) & {head for heads in base().truth.parts.values() for head in heads}
    grown = with_decoys(base(), decoys)
    assert [len(group.heads) for group in grown.groups.values()] == [5, 5, 4, 4]
    added = [head for name, group in grown.groups.items() for head in group.heads[len(planted.groups[name].heads) :]]
    assert sorted(added) == sorted(decoys)


def invented(kept: set[Head]) -> MinimalityResult:
    groups = {}
    for name, group in with_decoys(base(), drawn_decoys(base())).groups.items():
        costs = [
            HeadCost(head, (), 0.0, 0.0, Interval(0.2, 0.1, 0.3), Interval(0.0, 0.0, 0.0), 0.0, head in kept)
            for head in group.heads
        ]
        n = len(costs)
        table = PairTable(group.heads, torch.zeros(n, n, dtype=torch.float64))
        groups[name] = GroupMinimality(group.at, table, tuple(costs), torch.zeros(n, 2))
    return MinimalityResult(groups, MINIMALITY_RULE, torch.arange(2), 2)


def test_a_decoy_that_stays_and_a_planted_head_that_goes_are_named():
    decoys = drawn_decoys(base())
    planted = {head for group in base().truth.circuit.groups.values() for head in group.heads}
    assert [row.passed for row in judged(base(), decoys, invented(planted))] == [True, True]
    gone = base().truth.circuit.groups["position_detector"].heads[1]
    stay, go = judged(base(), decoys, invented((planted - {gone}) | {decoys[0]}))
    assert (stay.value, stay.passed, go.value, go.passed) == (1, False, 1, False)
    assert stay.detail.startswith(f"of 6; value_fetcher {decoys[0]} (cost +0.200")
    assert go.detail.startswith(f"of 12; position_detector {gone} (cost")


def test_minimality_of_the_planted_circuit_drops_its_decoys_and_nothing_else():
    rows = minimality_rows(base())
    assert [row.value for row in rows] == [0, 0]
    assert np.all([row.passed for row in rows])
