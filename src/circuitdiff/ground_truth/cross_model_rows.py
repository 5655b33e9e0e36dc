"""Claims about pairs of planted models: the improved part is the one that is credited, and nulls raise no alarm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from circuitdiff.circuit import Circuit
from circuitdiff.engine import Model
from circuitdiff.evaluation.random_groups import random_group
from circuitdiff.ground_truth.rows import Row, at_least, between, exactly
from circuitdiff.ground_truth.subjects import Subject
from circuitdiff.methods.cross_model import CrossPatch, patch_across
from circuitdiff.methods.graft import Graft, graft, graft_alone
from circuitdiff.models import load_model
from circuitdiff.models.planted import build_planted
from circuitdiff.prompts import Pairs
from circuitdiff.sections.gains import attribution_entry, random_entry
from circuitdiff.shares import ALONE, IN_ORDER, SYMMETRIC, Attribution, Credit
from circuitdiff.statistics import difference_interval
from circuitdiff.verdict import NO_HEAD_GROUP, verdict

_CREDITED = 0.9  # of the gain
_N_RANDOM = 5  # groups of random heads
# Where the planted part is no group of the circuit: which weights it is.
_KINDS = {"mlp": "mlps", "unembedding": "unembedding", "negative": "other heads"}
# The improved group, and a later one whose z holds what it did: both show all of the gain alone.
_SPLIT = {"planted-clearer-addresses": ("position_transmitter", "value_fetcher")}
_TURNED = "planted-rotated-values"


def cross_model_rows(subject: Subject) -> list[Row]:
    """What is said of a planted variant and its base, on the base's circuit; none for a base or another circuit."""
    truth = subject.truth
    if truth.base == truth.name or not truth.same_circuit:
        return []
    base, pairs = load_model(truth.base), subject.prompts["evaluation"]
    circuit = _circuit_of_base(subject)
    grafted = graft(subject.model, base, circuit, pairs)
    patched = patch_across(subject.model, base, circuit, pairs, what="contribution")
    rows = [_verdict_row(subject, grafted, patched, _controls(subject.model, base, circuit, grafted, pairs))]
    if truth.improved_part is not None:
        part = _KINDS.get(truth.improved_part, truth.improved_part)
        rows += _grafted_rows(truth.name, part, grafted.attribution())
        rows += _patched_rows(truth.name, part, circuit, patched.attribution())
    if truth.name in _SPLIT:
        rows += _split_rows(truth.name, circuit, patch_across(subject.model, base, circuit, pairs).attribution())
    if truth.name == _TURNED:
        rows += _turned_rows(truth.name, base, subject.model, circuit, pairs)
    return rows


def _circuit_of_base(subject: Subject) -> Circuit:
    """The base's circuit; the null that moves heads within layers has another one, and is patched at the base's."""
    return build_planted(subject.truth.base).circuit


def _grafted_rows(name: str, part: str, found: Attribution) -> list[Row]:
    """The improved part brings the gain alone, takes it away when it is left out, and no other part has a share."""
    rows = [
        at_least(name, f"graft of {part}: share, {how}", credits.share, _CREDITED, _interval(credits))
        for how, credits in found.parts[part].items()
    ]
    others = [each for each in found.parts if each != part]
    return [*rows, _nothing(name, "graft: other parts whose share is not 0", others, found, ALONE)]


def _patched_rows(name: str, part: str, circuit: Circuit, found: Attribution) -> list[Row]:
    """In causal order the improved group gets the gain, and where none is, what no group explains is the gain."""
    others = [group for group in circuit.groups if group != part]
    rows = [_nothing(name, "patched, causal order: other groups whose share is not 0", others, found, IN_ORDER)]
    if part in circuit.groups:
        credit = found.parts[part][IN_ORDER]
        claim = f"patched {part}: share, causal order"
        rows.append(at_least(name, claim, credit.share, _CREDITED, _interval(credit)))
    else:
        claim = "patched: share that no head group explains"
        rows.append(at_least(name, claim, found.unexplained.share, _CREDITED, _interval(found.unexplained)))
    return rows


def _split_rows(name: str, circuit: Circuit, found: Attribution) -> list[Row]:
    """With z patched, causal order credits the improved group, and symmetric Shapley values are split."""
    improved, shows = _SPLIT[name]
    others = [group for group in circuit.groups if group != improved]
    credits = found.parts[improved][IN_ORDER]
    claim = f"patched z of {improved}: share, causal order"
    rows = [
        at_least(name, claim, credits.share, _CREDITED, _interval(credits)),
        _nothing(name, "patched z, causal order: other groups whose share is not 0", others, found, IN_ORDER),
    ]
    for group in (improved, shows):
        split = found.parts[group][SYMMETRIC]
        claim = f"patched z of {group}: share, symmetric Shapley, is split"
        rows.append(between(name, claim, split.share, 0.35, 0.65, _interval(split)))
    return rows


def _nothing(name: str, claim: str, parts: Sequence[str], found: Attribution, how: str) -> Row:
    """How many parts have a share whose interval does not cover 0."""
    some = [part for part in parts if not _covers_0(found.parts[part][how])]
    listed = ", ".join(f"{part} {_interval(found.parts[part][how])}" for part in some)
    return exactly(name, claim, len(some), 0, listed)


def _controls(variant: Model, base: Model, circuit: Circuit, grafted: Graft, pairs: Pairs) -> dict[str, Any]:
    """Random heads of the same layers, grafted in the stead of the group that brings most."""
    parts = grafted.attribution().parts
    best = max(circuit.groups, key=lambda group: parts[group][ALONE].value)
    group, g = circuit.groups[best], torch.Generator().manual_seed(0)
    drawn = [random_group(group, base.n_layers, base.n_heads, g) for _ in range(_N_RANDOM)]
    own, *others = graft_alone(variant, base, [group, *drawn], pairs)
    return {best: {"random heads": random_entry(grafted.donor, grafted.recipient, own, others)}}


def _verdict_row(subject: Subject, grafted: Graft, patched: CrossPatch, controls: dict[str, Any]) -> Row:
    """The verdict names the improved part, or says that nothing is established."""
    name, part = subject.truth.name, subject.truth.improved_part
    theirs, own = (answers.hits.numpy() for answers in (grafted.donor, grafted.recipient))
    gain = difference_interval(theirs, own, grafted.donor.scenarios.numpy())
    evidence = {
        "base": subject.truth.base,
        "variant": name,
        "scope": "planted models",
        "failed_checks": [],
        "gain": gain._asdict() | {"n_scenarios": len(grafted.donor.scenarios.unique())},
        "graft": attribution_entry(grafted.attribution()) | {"controls": controls},
        "cmap": attribution_entry(patched.attribution()),
    }
    sentence = next(s for s in verdict(evidence)["sentences"] if s["claim"] == "improved_part")
    if part is None:
        right = sentence["answer"] != "yes"
        return exactly(name, "verdict: no improved part is named", float(right), 1, sentence["text"])
    expected = _KINDS.get(part, part)
    outside = expected in NO_HEAD_GROUP
    words = f"improved part is {expected}, which is no head group" if outside else f"improved part: {expected}"
    right = sentence["answer"] == "yes" and sentence["text"].endswith(f"{words}.")
    return exactly(name, "verdict: the improved part is named", float(right), 1, sentence["text"])


def _turned_rows(name: str, base: Model, variant: Model, circuit: Circuit, pairs: Pairs) -> list[Row]:
    """z in another basis fits nowhere: every run with it is incompatible, and none has a share."""
    found = patch_across(variant, base, circuit, pairs)
    far = found.incompatible()
    missed = [subset for subset in found.runs if subset and subset not in far]
    shares = [c for by in found.attribution().parts.values() for c in by.values() if c.undefined is None]
    return [
        exactly(name, "patched z in another basis: runs that pass as compatible", len(missed), 0),
        exactly(name, "patched z in another basis: shares", len(shares), 0),
    ]


def _covers_0(credit: Credit) -> bool:
    return credit.undefined is not None or credit.share_low <= 0 <= credit.share_high


def _interval(credit: Credit) -> str:
    return credit.undefined or f"{credit.share_low:.2f} to {credit.share_high:.2f}"
