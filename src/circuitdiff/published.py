"""The published result tables of one model, as a file holds them, and single published figures.

Source: Prakash et al. 2024 (arXiv:2402.14811) and its result files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from circuitdiff.circuit import Circuit, Group
from circuitdiff.heads import Head
from circuitdiff.reading import read_json
from circuitdiff.validation import Strict, validated

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


def read_tables(path: Path) -> PublishedTables:
    """Raises: InputError if the file cannot be read or has another form."""
    return parse_tables(read_json(path), str(path))


def parse_tables(data: object, source: str) -> PublishedTables:
    """Raises: InputError naming the first place of another form; `source` says where the data came from."""
    return validated(PublishedTables, data, source)


def _require(part: Mapping[str, object], stages: Sequence[str]) -> None:
    if missing := [stage for stage in stages if stage not in part]:
        raise ValueError(f"lacks {', '.join(missing)} beside {', '.join(part) or 'nothing'}")
