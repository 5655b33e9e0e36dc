"""Claims about the planted circuit on its own: it suffices, others do not, and the readers show where they must."""

from __future__ import annotations

from typing import NamedTuple

import torch

from circuitdiff.circuit import Circuit
from circuitdiff.evaluation import Evaluation, Means, evaluate_circuits, evaluate_model, moved, slot_sums
from circuitdiff.evaluation import random_circuit as draw_circuit
from circuitdiff.ground_truth.rows import Row, at_most, between
from circuitdiff.ground_truth.subjects import Sizes, Subject, task
from circuitdiff.statistics import (
    RatioInterval,
    difference_interval,
    normalised_ratio_interval,
    ratio_interval,
)

_CHANCE = 1 / 7
_READERS = "structure_reader"
# LayerNorm divides by the same number everywhere to 0.1 % (docs/planted.md); logits are of the order of 20.
_SAME = 0.02


class _Circuits(NamedTuple):
    """What each circuit answers, under one kind of means."""

    planted: Evaluation
    ablated: Evaluation
    wrong_segment: Evaluation
    addresses: Evaluation  # the planted circuit without the lexical route, if it has one
    without_readers: Evaluation  # nor readers


def circuit_rows(subject: Subject, sizes: Sizes) -> list[Row]:
    """Faithfulness under both kinds of means, the controls, and random circuits."""
    sums = slot_sums(subject.model, subject.prompts["mask"])
    means = {by: sums.means(by, subject.model.dtype) for by in ("slot", "kind")}
    whole = evaluate_model(subject.model, subject.prompts["evaluation"])
    by_slot, by_kind = (_run(subject, means[by]) for by in ("slot", "kind"))
    return [
        *_faithfulness_rows(subject, whole, by_slot, "slot"),
        *_faithfulness_rows(subject, whole, by_kind, "kind"),
        _wrong_segment(subject, by_kind),
        *_reader_rows(subject, by_slot, by_kind),
        _random(subject, sizes, means["slot"]),
    ]


def _run(subject: Subject, means: Means) -> _Circuits:
    circuit, parts = subject.truth.circuit, subject.truth.parts
    lexical = [head for part in ("label_fetcher", "label_transmitter") for head in parts.get(part, ())]
    addresses = circuit.without(lexical, "last").without(parts.get("name_binder", ()), "previous_query_label")
    readers = circuit.groups[_READERS].heads if _READERS in circuit.groups else ()
    chosen = [
        circuit,
        Circuit({}),
        moved(circuit, lambda role: [task().wrong_segment(role)]),
        addresses,
        addresses.without(readers, "previous_query_label"),
    ]
    return _Circuits(*evaluate_circuits(subject.model, chosen, subject.prompts["evaluation"], means))


def _faithfulness_rows(subject: Subject, whole: Evaluation, came: _Circuits, by: str) -> list[Row]:
    hits = [each.hits.numpy() for each in (came.planted, came.ablated, whole)]
    scenarios = whole.scenarios.numpy()
    plain = ratio_interval(hits[0], hits[2], scenarios)
    normalised = normalised_ratio_interval(hits[0], hits[1], hits[2], scenarios)
    accuracies = ", ".join(
        f"{what} {float(each.mean()):.3f}" for what, each in zip(("circuit", "ablated", "model"), hits, strict=True)
    )
    return [
        _as_good(subject, f"faithfulness, {by} means", plain, f"{_interval(plain)}; {accuracies}"),
        _as_good(subject, f"normalised, {by} means", normalised, _interval(normalised)),
    ]


def _as_good(subject: Subject, claim: str, ratio: RatioInterval, detail: str) -> Row:
    """Not credibly worse than the model. Where both are alike, half of all point estimates fall below 1 by chance."""
    passed = ratio.undefined is None and ratio.high >= 1.0
    return Row(subject.model.name, claim, ratio.value, "interval reaches 1.00", passed, detail)


def _wrong_segment(subject: Subject, came: _Circuits) -> Row:
    """Kept at a segment that was not asked for, the heads there do not help."""
    claim = "wrong segment: accuracy lost, kind means"
    return _loss(subject, claim, came.planted, came.wrong_segment)


def _reader_rows(subject: Subject, by_slot: _Circuits, by_kind: _Circuits) -> list[Row]:
    """Readers depend on position alone: a mean by slot is what they write anyway."""
    if _READERS not in subject.truth.circuit.groups:
        return []
    change = (by_slot.addresses.logit_differences - by_slot.without_readers.logit_differences).abs().max()
    same = int((by_slot.addresses.predictions == by_slot.without_readers.predictions).sum())
    claim = "readers ablated, slot means: largest change"
    detail = f"logits; the same answer on {same} of {len(by_slot.addresses.hits)} prompts"
    return [
        at_most(subject.model.name, claim, float(change), _SAME, detail),
        _loss(subject, "readers ablated, kind means: accuracy lost", by_kind.addresses, by_kind.without_readers),
    ]


def _loss(subject: Subject, claim: str, first: Evaluation, second: Evaluation) -> Row:
    lost = difference_interval(first.hits.numpy(), second.hits.numpy(), first.scenarios.numpy())
    detail = f"{lost.low:.3f} to {lost.high:.3f}; {first.accuracy.value:.3f} -> {second.accuracy.value:.3f}"
    return Row(subject.model.name, claim, float(lost.value), "interval above 0", bool(lost.low > 0), detail)


def _random(subject: Subject, sizes: Sizes, means: Means) -> Row:
    """How often random circuits prefer the answer to the other six listed objects."""
    g, circuit = torch.Generator().manual_seed(0), subject.truth.circuit
    drawn = [draw_circuit(circuit, subject.model.n_heads, g) for _ in range(sizes.random_circuits)]
    few = subject.prompts["evaluation"].select(torch.arange(sizes.random_prompts))
    answers = evaluate_circuits(subject.model, drawn, few, means)
    preferred = torch.stack([each.logit_differences > 0 for each in answers]).double()
    shares = preferred.mean(1)
    spread = 1.96 * (_CHANCE * (1 - _CHANCE) / sizes.random_prompts) ** 0.5
    detail = f"{len(drawn)} circuits x {len(few)} prompts, single ones {shares.min():.2f} to {shares.max():.2f}"
    claim = "random circuits: answer preferred"
    return between(subject.model.name, claim, float(preferred.mean()), _CHANCE - spread, _CHANCE + spread, detail)


def _interval(ratio: RatioInterval) -> str:
    return ratio.undefined or f"{ratio.low:.2f} to {ratio.high:.2f}"
