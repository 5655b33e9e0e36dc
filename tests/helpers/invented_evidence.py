"""Made-up numbers of a variant with which all is well, to be changed one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from circuitdiff.study.estimates import Estimate, Ratio
from circuitdiff.study.evidence import (
    Ability,
    Behaviour,
    CircuitEvidence,
    Evidence,
    FunctionEvidence,
    Noted,
    PartsEvidence,
    RivalEvidence,
    SimilarityEvidence,
    StabilityEvidence,
    Thresholds,
    TransferEvidence,
)
from circuitdiff.study.gains import ControlResult, Credit
from circuitdiff.study.verdict import Sentence, sentences


def near(value: float, spread: float = 0.02, **more: Any) -> Noted:
    return Noted(value, value - spread, value + spread, **more)


def ratio(value: float, spread: float = 0.02, note: str | None = None) -> Ratio:
    return Ratio(value, value - spread, value + spread, note)


def credit(share: float, spread: float = 0.1) -> Credit:
    bounds = [share, share - spread, share + spread]
    return Credit(*(0.3 * bound for bound in bounds), *bounds, None)


def control(share: float, spread: float = 0.1, n_scenarios: int = 80) -> ControlResult:
    return ControlResult(**vars(credit(share, spread)), n_scenarios=n_scenarios)


def part(alone: float, left_out: float | None = None, spread: float = 0.1) -> dict[str, Credit]:
    left = alone if left_out is None else left_out
    return {"alone": credit(alone, spread), "left_out": credit(left, spread), "in_order": credit(alone, spread)}


def divided(parts: dict[str, Any], logits: dict[str, Any] | None = None, **more: Any) -> PartsEvidence:
    """The same shares in both scores, unless others are given for the logit difference."""
    return PartsEvidence({"accuracy": parts, "logit_difference": parts if logits is None else logits}, **more)


def ability(accuracy: float, logits: float = 1.0, guessing: float = 0.2) -> Ability:
    return Ability(near(accuracy), near(logits), guessing)


def behaviour(gain: float = 0.3, logits: float = 1.0, spread: float = 0.02, **more: Any) -> Behaviour:
    models = {"base": ability(0.5), "variant": ability(0.5 + gain)} | more
    return Behaviour(**models, accuracy=near(gain, spread), logit_difference=near(logits, spread))


def circuits(**changes: Any) -> CircuitEvidence:
    numbers = {"base_own": near(0.92), "variant_own": near(0.95), "transfer": near(-0.01)}
    where = {"transfer_where_only_variant_right": near(0.02)} if changes.get("score") != "logit_difference" else {}
    return CircuitEvidence(**{"by": "slot", "score": "accuracy", **numbers, **where, **changes})


ALL_CIRCUITS = tuple(
    circuits(by=by, score=score) for by in ("slot", "kind") for score in ("accuracy", "logit_difference")
)
PARTS = {"reader": part(0.0), "fetcher": part(0.9), "mlps": part(0.05)}
GRAFT = divided(PARTS, controls={"fetcher": {"same_layers": control(0.1)}})
FETCHER = FunctionEvidence("fetcher", "object", near(0.0), near(0.5), trained=True)
TRANSFER = TransferEvidence("slot", near(0.2), near(0.95), near(0.1), near(-0.1), near(0.05), near(0.3))

# The same circuit, the same functions, and fetchers improved.
WELL = Evidence(
    base="base",
    variant="tuned",
    donor="tuned",
    scope="tuned against base, boxes",
    failed_checks=[],
    behaviour=behaviour(),
    n_scenarios=80,
    circuits=ALL_CIRCUITS,
    transfers=[TRANSFER],
    rivals=[RivalEvidence("base", near(0.4)), RivalEvidence("tuned", near(0.3))],
    stability=[StabilityEvidence("base", "fetcher", near(0.9)), StabilityEvidence("tuned", "fetcher", near(0.85))],
    similarity=[SimilarityEvidence("fetcher", ratio(0.96), ratio(0.2))],
    functions=[FETCHER],
    patched=divided({"reader": part(0.0), "fetcher": part(0.9)}),
    graft=GRAFT,
    layers=divided({"layers 0 to 4": part(0.1), "layers 5 to 9": part(0.9)}),
)


def evidence(**changes: Any) -> Evidence:
    return replace(WELL, **changes)


def said(data: Evidence, claim: str, **limits: Any) -> Sentence:
    [sentence] = [each for each in sentences(data, Thresholds(**limits)) if each.claim == claim]
    return sentence


def bounds(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high)
