"""Do the selection rules, given the published tables of one model, come to its published circuit?

The tables are those of Prakash et al. 2024 (arXiv:2402.14811) and its result files. Every claim is checked with the
functions that a study uses; where the published code differs, a parameter says so.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head, Overlap, circuit_overlap
from circuitdiff.config.reading import read_json
from circuitdiff.config.validation import Strict, validated
from circuitdiff.methods.component_mask.training import selected
from circuitdiff.methods.minimality import PairTable, keep, pair_removal, removal_set
from circuitdiff.stats.selection import drop_shared, lowest

# In the order of discovery: the receivers of each stage are the strongest heads of the one before.
STAGES = {
    "value_fetcher": "last",
    "pos_transmitter": "last",
    "pos_detector": "query_label",
    "struct_reader": "previous_query_label",
}

# Sizes of both groups and what they share, in the order of STAGES.
OVERLAPS = {
    ("llama", "goat"): ((40, 68, 27), (7, 28, 6), (20, 40, 16), (5, 39, 5)),
    ("llama", "float"): ((40, 68, 27), (7, 29, 7), (20, 40, 15), (5, 38, 5)),
    ("goat", "float"): ((68, 68, 40), (28, 29, 18), (40, 40, 28), (39, 38, 27)),
}
MODELS = tuple(dict.fromkeys(name for pair in OVERLAPS for name in pair))

# The circuit of the base model, in the order of STAGES: overlaps with it need no second file.
LLAMA_HEADS = (
    "15.13 21.3 24.5 20.14 18.8 29.7 18.3 15.18 17.28 21.4 21.25 23.15 18.28 23.19 23.20 19.30 23.5 17.27 15.5 21.0 "
    "23.17 15.2 17.3 19.20 19.11 19.8 15.6 20.29 16.23 24.0 25.14 14.13 21.26 24.8 18.6 19.26 23.16 16.27 18.20 18.25",
    "14.27 11.23 12.23 19.12 13.0 16.2 13.14",
    "10.3 13.14 9.2 9.7 11.23 9.10 1.9 7.17 13.0 6.10 4.4 7.26 9.21 8.1 12.0 8.22 10.4 11.7 7.9 10.15",
    "8.21 12.23 11.9 8.12 11.23",
)


class _Form(Strict, extra="ignore"):
    """Other parts of a published file are none of ours."""


HeadPair = tuple[NonNegativeInt, NonNegativeInt]


class Parameters(_Form):
    receivers: dict[str, PositiveInt]  # how many of each stage serve the next
    candidates: dict[str, PositiveInt]
    theta: float


class PairRow(_Form):
    head: HeadPair
    others: list[tuple[HeadPair, float]] = Field(alias="with")


class SignificanceRow(_Form):
    head: HeadPair
    before: float
    after: float


class Minimality(_Form):
    pair_table: list[PairRow]
    significance: list[SignificanceRow]


class MaskEntry(_Form):
    mask: list[float]
    selected: list[HeadPair]


class PublishedTables(_Form):
    """One model's tables; all but `dcm` by stage."""

    model: str
    parameters: Parameters
    path_patching: dict[str, list[list[float]]]
    minimality: dict[str, Minimality]
    circuit: dict[str, list[HeadPair]]
    dcm: dict[str, dict[str, MaskEntry]]

    def effects(self, stage: str) -> Float[Tensor, "layer head"]:
        return torch.tensor(self.path_patching[stage], dtype=torch.float64)

    def groups(self) -> dict[str, list[Head]]:
        """The circuit's heads by stage."""
        return {stage: heads(self.circuit[stage]) for stage in STAGES}

    @model_validator(mode="after")
    def _has_every_stage(self) -> PublishedTables:
        for part in (self.path_patching, self.minimality, self.circuit, self.parameters.candidates):
            _require(part, list(STAGES))
        _require(self.parameters.receivers, list(STAGES)[:-1])
        for stage, rows in self.path_patching.items():
            if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
                raise ValueError(f"effects of {stage} are not a table [layer][head]")
        shapes = {stage: f"{len(rows)} x {len(rows[0])}" for stage, rows in self.path_patching.items()}
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{stage} {shape}" for stage, shape in shapes.items())
            raise ValueError(f"effects of one model are tables of one size; got {listed}")
        self._counts_no_more_heads_than_there_are(self.effects(next(iter(STAGES))).numel())
        return self

    def _counts_no_more_heads_than_there_are(self, n_heads: int) -> None:
        for what, counts in (("receivers", self.parameters.receivers), ("candidates", self.parameters.candidates)):
            for stage, count in counts.items():
                if count > n_heads:
                    raise ValueError(f"{count} {what} of {stage}, of {n_heads} heads in the table")

    @model_validator(mode="after")
    def _names_known_heads_and_groups(self) -> PublishedTables:
        for masks in self.dcm.values():
            _require(self.circuit, list(masks))
        for stage, tested in self.minimality.items():
            if stray := {row.head for row in tested.significance} - {row.head for row in tested.pair_table}:
                raise ValueError(f"{stage}: {Head(*min(stray))} has a significance but no row in the pair table")
        return self

    @model_validator(mode="after")
    def _names_heads_of_the_model(self) -> PublishedTables:
        n_layers, n_heads = self.effects(next(iter(STAGES))).shape
        for where, pairs in self._named_heads():
            for layer, index in pairs:
                if layer >= n_layers or index >= n_heads:
                    raise ValueError(f"{where} names {Head(layer, index)}, of {n_layers} layers of {n_heads} heads")
        return self

    def _named_heads(self) -> Iterable[tuple[str, Iterable[HeadPair]]]:
        """Every list of heads, with its place."""
        for stage, group in self.circuit.items():
            yield f"circuit of {stage}", group
        for stage, tested in self.minimality.items():
            yield f"pair table of {stage}", [row.head for row in tested.pair_table]
        for desideratum, masks in self.dcm.items():
            for stage, entry in masks.items():
                yield f"{desideratum} mask of {stage}", entry.selected

    @model_validator(mode="after")
    def _pair_tables_are_whole(self) -> PublishedTables:
        """Each head once, each row with every head of the table."""
        for stage, tested in self.minimality.items():
            rows = [row.head for row in tested.pair_table]
            if len(set(rows)) < len(rows):
                raise ValueError(f"{stage}: a head has two rows in the pair table")
            for row in tested.pair_table:
                scored = [other for other, _ in row.others]
                if differing := set(rows) ^ set(scored):
                    what = "lacks" if min(differing) in rows else "has no row for"
                    raise ValueError(f"{stage}: the pair table {what} {Head(*min(differing))}, at {Head(*row.head)}")
        return self


def heads(pairs: Iterable[tuple[int, int]]) -> list[Head]:
    """The heads of [layer, head] pairs."""
    return [Head(*pair) for pair in pairs]


def stage_circuit(groups: Iterable[Sequence[Head]]) -> Circuit:
    """The circuit of four groups, in the order of STAGES."""
    named = zip(STAGES.items(), groups, strict=True)
    return Circuit({stage: Group(role, tuple(group)) for (stage, role), group in named})


def llama_circuit() -> Circuit:
    """The published circuit of the base model."""
    return stage_circuit([Head.parse(name) for name in names.split()] for names in LLAMA_HEADS)


def _require(part: Mapping[str, object], stages: Sequence[str]) -> None:
    if missing := [stage for stage in stages if stage not in part]:
        raise ValueError(f"lacks {', '.join(missing)} beside {', '.join(part) or 'nothing'}")


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
    tables = _read_tables(path)
    beside = [path.with_name(f"{name}.json") for name in MODELS if name != tables.model]
    others = [_read_tables(file) for file in beside if file != path and file.is_file()]
    return Conformance(tables.model, tuple(check_table(tables, others)))


def _read_tables(path: Path) -> PublishedTables:
    return validated(PublishedTables, read_json(path), str(path))


def check_table(table: PublishedTables, others: Sequence[PublishedTables] = ()) -> list[ClaimResult]:
    """The six claims for one model's tables, the last one against the tables of `others`."""
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
    rows, theta = {stage: table.minimality[stage].significance for stage in STAGES}, table.parameters.theta
    chosen = {
        stage: [Head(*row.head) for row in tested if keep(row.before, row.after, theta)]
        for stage, tested in rows.items()
    }
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
        right.append(f"{first}/{second} {_slashed(Overlap(*map(sum, zip(*came.values(), strict=True))))}")
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
    for row in minimality.significance:
        head = Head(*row.head)
        removed = frozenset(removal_set(table, head))
        places[removed] |= {f"before {head}": row.before}
        places[removed | {head}] |= {f"after {head}": row.after}
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


def _names(heads: Iterable[Head]) -> str:
    return " ".join(map(str, heads))


def _slashed(sizes: Iterable[int]) -> str:
    return "/".join(map(str, sizes))
