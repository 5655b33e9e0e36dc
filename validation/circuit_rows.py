"""Claims about the planted circuit on its own: it suffices, others do not, and its groups encode what was wired."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

import torch

from circuitdiff.circuit import Circuit
from circuitdiff.evaluation import Evaluation, Means, evaluate_circuits, evaluate_model, moved, slot_sums
from circuitdiff.evaluation import random_circuit as draw_circuit
from circuitdiff.methods.component_mask.fit import MaskFit, MaskOptions, fit_shared
from circuitdiff.methods.component_mask.patching import SharedRuns
from circuitdiff.stats.intervals import RatioInterval, normalised_ratio_interval, ratio_interval
from circuitdiff.stats.proportions import difference_interval
from circuitdiff.study.evidence import Thresholds
from validation.subjects import Row, Sizes, Subject, at_most, between, task

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
    """As a verdict has it: an interval that merely reaches 1 is no evidence, and far above 1 is not faithful either."""
    low, high = Thresholds().faithful, Thresholds().too_faithful
    passed = ratio.undefined is None and low <= ratio.low and ratio.high <= high
    return Row(subject.model.name, claim, ratio.value, f"interval within {low:g} and {high:g}", passed, detail)


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
    drawn = [
        draw_circuit(circuit, subject.model.n_layers, subject.model.n_heads, g) for _ in range(sizes.random_circuits)
    ]
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


# What each part carries by its wiring. A lexical route's transmitters carry the label itself, its binders the name.
WIRED: Mapping[str, str] = {
    "value_fetcher": "object",
    "label_fetcher": "object",
    "position_transmitter": "position",
    "position_detector": "position",
    "structure_reader": "position",
    "label_transmitter": "label",
    "name_binder": "object",
}
_ROUTES = ("value_fetcher", "label_fetcher")  # each ends one: with both, what feeds one of them competes with the other
_MINIMUM = 0.05  # accuracy above the floor; less is no function
_OPTIONS = MaskOptions(train=120, validation=60, test=200, minimum=_MINIMUM, random_groups=0)


def mask_rows(subject: Subject, options: MaskOptions | None = None) -> list[Row]:
    """Each planted group against object, position and label: it carries what was wired, and nothing else.

    In a model of two routes only the fetchers, which end both, are asked.
    """
    options, planted = options or _OPTIONS, subject.truth.circuit.groups
    two_routes = all(subject.truth.parts.get(part) for part in _ROUTES)
    groups = {name: group for name, group in planted.items() if name == "value_fetcher" or not two_routes}
    names, tokenizer = task().desiderata, subject.model.tokenizer
    drawn = task().triples(tokenizer, names, sum(options.n_triples), seed=0)
    shared = SharedRuns(subject.model, groups, drawn[0].base, n_random=options.random_groups)
    fits = (fit_shared(shared, group, triples, options) for triples, group in product(drawn, groups))
    return [_row(subject, group, fit) for (_, group), fit in zip(product(drawn, groups), fits, strict=True)]


def _carried(subject: Subject, group: str) -> set[str]:
    """What the parts that make up a planted group carry."""
    heads = set(subject.truth.circuit.groups[group].heads)
    return {WIRED[part] for part, members in subject.truth.parts.items() if part in WIRED and heads & set(members)}


def _row(subject: Subject, group: str, fit: MaskFit) -> Row:
    above, accuracy = fit.above_floor, fit.accuracy()
    expected = fit.desideratum in _carried(subject, group)
    floor, heads = fit.accuracy(fit.floor), f"{len(fit.heads)} of {len(fit.group.heads)} heads"
    detail = f"{above.low:.3f} to {above.high:.3f}; accuracy {accuracy.value:.3f}, floor {floor.value:.3f}; {heads}"
    wanted = f"≥ {_MINIMUM:g}, interval above 0" if expected else f"not so: < {_MINIMUM:g} or interval holds 0"
    claim = f"{group} encodes {fit.desideratum}: accuracy above the floor"
    return Row(subject.model.name, claim, float(above.value), wanted, fit.carries == expected, detail)
