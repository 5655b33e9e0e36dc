"""Do the selection rules, given the published tables of one model, come to its published circuit?

The tables are those of Prakash et al. 2024 (arXiv:2402.14811). Every claim is checked with the functions that a study
uses; where the published code differs, a parameter says so.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from circuitdiff.compare import Overlap, circuit_overlap, total
from circuitdiff.heads import Head
from circuitdiff.methods.component_mask import selected
from circuitdiff.methods.minimality import PairTable, Significance, needed, pair_removal, removal_set
from circuitdiff.published import (
    MODELS,
    OVERLAPS,
    STAGES,
    Minimality,
    PublishedTables,
    SignificanceRow,
    heads,
    llama_circuit,
    parse_tables,
    read_tables,
    stage_circuit,
)
from circuitdiff.selection import drop_shared, lowest


class ClaimResult(NamedTuple):
    """One of the six claims. `holds` is None if it could not be checked; `detail` says where or why."""

    claim: str
    holds: bool | None
    detail: str


@dataclass(frozen=True)
class Conformance:
    """The six claims for one model's tables."""

    model: str
    claims: tuple[ClaimResult, ...]

    @property
    def holds(self) -> bool:
        """All six were checked, and hold."""
        return all(claim.holds is True for claim in self.claims)


def conformance(path: str | Path) -> Conformance:
    """The six claims for the tables in a file; overlaps with the other models whose files lie beside it.

    Raises: InputError if the file cannot be read or has another form.
    """
    path = Path(path)
    tables = read_tables(path)
    beside = [path.with_name(f"{name}.json") for name in MODELS if name != tables.model]
    others = [read_tables(file) for file in beside if file != path and file.is_file()]
    return Conformance(tables.model, tuple(_claims(tables, others)))


def check_table(data: Mapping[str, object], others: Iterable[Mapping[str, object]] = ()) -> list[ClaimResult]:
    """The six claims for one model's tables, the last one against the tables of `others`.

    Raises: InputError if any of them has another form.
    """
    table = parse_tables(data, "the table")
    return _claims(table, [parse_tables(other, "the table to compare with") for other in others])


def _claims(table: PublishedTables, others: Sequence[PublishedTables]) -> list[ClaimResult]:
    return [
        _check_candidates(table),
        _check_threshold(table),
        _check_zeros(table),
        _check_removal_sets(table),
        _check_masks(table),
        _check_overlaps(table, others),
    ]


def _check_candidates(table: PublishedTables) -> ClaimResult:
    """1. The lowest effects of each stage, value fetchers without position transmitters = the tested heads."""
    chosen = {stage: lowest(table.effects(stage), table.parameters.candidates[stage]) for stage in STAGES}
    chosen["value_fetcher"] = drop_shared(chosen["value_fetcher"], chosen["pos_transmitter"])
    expected = {stage: [Head(*row.head) for row in table.minimality[stage].pair_table] for stage in STAGES}
    return _compare_lists("1 candidates", expected, chosen)


def _check_threshold(table: PublishedTables) -> ClaimResult:
    """2. The heads whose removal costs at least theta = the circuit."""
    rows = {stage: [_significance(row) for row in table.minimality[stage].significance] for stage in STAGES}
    chosen = {stage: needed(rows[stage], table.parameters.theta) for stage in STAGES}
    return _compare_lists("2 threshold", table.groups(), chosen)


def _check_zeros(table: PublishedTables) -> ClaimResult:
    """3. A sender at or after the last receiver's layer has an effect of exactly 0."""
    wrong, right = [], []
    for before, stage in itertools.pairwise(STAGES):
        receivers = lowest(table.effects(before), table.parameters.receivers[before])
        first_dead = max(head.layer for head in receivers)
        dead = table.effects(stage)[first_dead:]
        right.append(f"{stage} {dead.numel()}")
        if alive := [(Head(first_dead + layer, i), dead[layer, i].item()) for layer, i in dead.nonzero().tolist()]:
            places = _first_few([f"{head} {effect:+.3g}" for head, effect in alive])
            wrong.append(
                f"{stage}: {len(alive)} of {dead.numel()} effects from layer {first_dead} on are not 0, "
                f"median {dead.median().item():+.4f}: {places}"
            )
    return ClaimResult("3 exact zeros", not wrong, "; ".join(wrong) or f"zeros: {', '.join(right)}")


def _check_removal_sets(table: PublishedTables) -> ClaimResult:
    """4. Whenever two places of the published tables imply the same removed set, the scores there agree."""
    wrong, n_shared = [], 0
    for stage in STAGES:
        for removed, places in _places(table.minimality[stage]).items():
            n_shared += len(places) > 1
            if len(set(places.values())) > 1:
                scores = ", ".join(f"{place} {score:g}" for place, score in places.items())
                wrong.append(f"{stage}: without {_names(sorted(removed)) or 'none'}: {scores}")
    if not n_shared:
        return ClaimResult("4 removal sets", None, "not checkable: no two places imply the same removed set")
    detail = _first_few(wrong) or f"{n_shared} sets that occur in more than one place agree"
    return ClaimResult("4 removal sets", not wrong, detail)


def _check_masks(table: PublishedTables) -> ClaimResult:
    """5. Masks clamped and rounded: the zeros, in the group's order = the selected heads."""
    wrong, n_masks = [], 0
    for desideratum, masks in table.dcm.items():
        for stage, entry in masks.items():
            n_masks += 1
            group, expected = heads(table.circuit[stage]), heads(entry.selected)
            if len(group) != len(entry.mask):
                wrong.append(f"{desideratum}/{stage}: {len(entry.mask)} weights for {len(group)} heads")
            elif (chosen := selected(torch.tensor(entry.mask, dtype=torch.float64), group)) != expected:
                wrong.append(f"{desideratum}/{stage}: {_first_difference(expected, chosen)}")
    return ClaimResult("5 masks", not wrong, _first_few(wrong) or f"{n_masks} masks")


def _check_overlaps(table: PublishedTables, others: Sequence[PublishedTables]) -> ClaimResult:
    """6. The overlap of each group with another model's = the published one. The base model's heads are known."""
    circuits = {"llama": llama_circuit()}
    circuits |= {each.model: stage_circuit(each.groups().values()) for each in [*others, table]}
    wrong, right = [], []
    for (first, second), facts in OVERLAPS.items():
        if table.model not in (first, second) or not {first, second} <= set(circuits):
            continue
        came = circuit_overlap(circuits[first], circuits[second])
        for stage, fact in zip(STAGES, facts, strict=True):
            if came[stage] != Overlap(*fact):
                wrong.append(f"{first}/{second} {stage}: expected {_slashed(fact)}, came {_slashed(came[stage])}")
        right.append(f"{first}/{second} {_slashed(total(came.values()))}")
    if not right:
        return ClaimResult("6 overlap", None, f"not checkable: {_what_is_missing(table.model)}")
    return ClaimResult("6 overlap", not wrong, _first_few(wrong) or ", ".join(right))


def _what_is_missing(model: str) -> str:
    if model not in MODELS:
        return f"no overlap is published for {model!r}"
    wanted = [f"{name}.json" for name in MODELS if name != model]
    return f"no {' or '.join(wanted)} beside this file"


def _places(minimality: Minimality) -> dict[frozenset[Head], dict[str, float]]:
    """Every removed set with the score at each place that implies it.

    Pairs that share a head index are left out: there the published code removed one head only.
    """
    table, places = _pair_table(minimality), defaultdict(dict)
    scores = table.scores.tolist()
    for i, first in enumerate(table.heads):
        for j, second in enumerate(table.heads[i:], start=i):
            pair = frozenset([first, second])
            if pair_removal(first, second, joint_removal_of_same_index=False) == pair:
                places[pair] |= {f"pair {first}, {second}": scores[i][j]}
                if scores[j][i] != scores[i][j]:
                    places[pair] |= {f"pair {second}, {first}": scores[j][i]}
    for row in map(_significance, minimality.significance):
        removed = frozenset(removal_set(table, row.head))
        places[removed] |= {f"before {row.head}": row.before}
        places[removed | {row.head}] |= {f"after {row.head}": row.after}
    return places


def _pair_table(minimality: Minimality) -> PairTable:
    rows = {row.head: dict(row.others) for row in minimality.pair_table}
    scores = [[row.get(other, torch.nan) for other in rows] for row in rows.values()]
    return PairTable(tuple(heads(rows)), torch.tensor(scores, dtype=torch.float64).reshape(len(rows), len(rows)))


def _compare_lists(claim: str, expected: Mapping[str, list[Head]], came: Mapping[str, list[Head]]) -> ClaimResult:
    wrong = [f"{s}: {_first_difference(expected[s], came[s])}" for s in STAGES if expected[s] != came[s]]
    sizes = ", ".join(f"{stage} {len(came[stage])}" for stage in STAGES)
    return ClaimResult(claim, not wrong, "; ".join(wrong) or sizes)


def _first_difference(expected: Sequence[Head], came: Sequence[Head]) -> str:
    differing = (i for i, pair in enumerate(zip(expected, came, strict=False)) if pair[0] != pair[1])
    place = next(differing, min(len(expected), len(came)))
    there, here = (_names(group[place : place + 1]) or "no head" for group in (expected, came))
    return f"{len(expected)} heads expected, {len(came)} came; at place {place + 1} expected {there}, came {here}"


def _first_few(wrong: Sequence[str], most: int = 3) -> str:
    more = f"; and {len(wrong) - most} more" if len(wrong) > most else ""
    return "; ".join(wrong[:most]) + more


def _significance(row: SignificanceRow) -> Significance:
    return Significance(Head(*row.head), row.before, row.after)


def _names(heads: Iterable[Head]) -> str:
    return " ".join(map(str, heads))


def _slashed(sizes: Iterable[int]) -> str:
    return "/".join(map(str, sizes))
