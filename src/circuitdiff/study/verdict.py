"""What a comparison of a variant with its base allows to be said: claims, as rows over typed evidence.

A claim is answered yes, no, or "not established", and says why; what happened to the behaviour is answered in words of
its own. A section that the study leaves out is not asked, and nor is whose a gain is where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from circuitdiff.study import claims_on_circuits as circuits
from circuitdiff.study.claims_on_parts import said_of_parts, said_of_visible
from circuitdiff.study.estimates import printed
from circuitdiff.study.evidence import Evidence, PartsEvidence, RestsOn, Thresholds
from circuitdiff.study.judge import Answer, Posed, Requirement, Said, above, judged, leaves_room, within
from circuitdiff.study.requirements import both_able, gained, trusted

REASONS_IN_TEXT = 2  # all of them stand beside it
TRIED = (0.01, 0.02, 0.03, 0.05, *(i / 20 for i in range(2, 20)), 0.98)  # of a margin, for its sensitivity


@dataclass(frozen=True)
class Sensitivity:
    """The answer is the same for every value of the threshold between these, of those that were tried."""

    threshold: str
    low: float
    high: float


@dataclass(frozen=True)
class Sentence:
    """A claim with its answer and why; `rests_on` names the table of its numbers.

    `reasons`: against it, or why it is open; none if the answer is yes.
    """

    claim: str
    answer: Answer
    text: str
    reasons: tuple[str, ...]
    rests_on: RestsOn
    scope: str
    sensitivity: tuple[Sensitivity, ...] = ()


Judge = Callable[[Evidence, Thresholds, list[Requirement]], Said]  # given what the gate requires


@dataclass(frozen=True)
class Claim:
    """`asks`: what is not asked where the section is switched off, or a part of it, as SECTION.PART.

    `thresholds`: those on which the answer may depend. `gate`: without which nothing is said; with `gained`, nothing is
    asked where there is no gain.
    """

    name: str
    rests_on: RestsOn
    section: str
    asks: str
    judge: Judge
    thresholds: tuple[str, ...] = ()
    gate: Callable[[Evidence], list[Requirement]] = both_able
    of_own: bool = False  # asks for the variant's own circuit


def sentences(evidence: Evidence, limits: Thresholds) -> tuple[Sentence, ...]:
    return tuple(_sentence(claim, evidence, limits) for claim in CLAIMS)


def _sentence(claim: Claim, evidence: Evidence, limits: Thresholds) -> Sentence:
    measured = evidence.measured.get(claim.rests_on)
    scope = evidence.scope if measured is None else f"{evidence.scope}; {measured.scope}"
    section, dot, part = claim.section.partition(".")
    if off := [each for each in (section, section + dot + part) if each in evidence.switched_off]:
        text = f"Not asked: {claim.asks} (`{off[0]}` is switched off)."
        return Sentence(claim.name, "not asked", text, (), claim.rests_on, scope)
    if claim.of_own and evidence.variant not in evidence.with_circuit:
        text = f"Not asked: {claim.asks} ({evidence.variant}'s own circuit was not looked for)."
        return Sentence(claim.name, "not asked", text, (), claim.rests_on, scope)
    if claim.gate is gained and (kept := _behaviour(evidence, limits, [])).answer == "kept":
        text = f"Not asked: {claim.asks}; there is no gain to attribute ({kept.statement})."
        return Sentence(claim.name, "not asked", text, (), claim.rests_on, scope)
    said = _said(claim, evidence, limits)
    more = f"; and {len(said.reasons) - REASONS_IN_TEXT} more" if len(said.reasons) > REASONS_IN_TEXT else ""
    why = f", because {'; '.join(said.reasons[:REASONS_IN_TEXT])}{more}" if said.reasons else ""
    text = f"{said.answer[0].upper()}{said.answer[1:]}: {said.statement}{why}."
    sensitivity = tuple(_sensitivity(claim, name, evidence, limits) for name in claim.thresholds)
    return Sentence(claim.name, said.answer, text, said.reasons, claim.rests_on, scope, sensitivity)


def _said(claim: Claim, evidence: Evidence, limits: Thresholds) -> Said:
    measured = evidence.measured.get(claim.rests_on)
    n = evidence.n_scenarios if measured is None else measured.n_scenarios
    return claim.judge(evidence, limits, [*trusted(evidence, n, limits), *claim.gate(evidence)])


def _sensitivity(claim: Claim, name: str, evidence: Evidence, limits: Thresholds) -> Sensitivity:
    """How far a threshold can be moved, either way, before the answer, or what is claimed, is another."""
    now, said = getattr(limits, name), _said(claim, evidence, limits)

    def furthest(values: Sequence[float]) -> float:
        last = now
        for value in values:
            other = _said(claim, evidence, replace(limits, **{name: value}))
            if (other.answer, other.statement) != (said.answer, said.statement):
                break
            last = value
        return last

    below, beyond = ([v for v in TRIED if v < now], [v for v in TRIED if v > now])
    return Sensitivity(name, furthest(below[::-1]), furthest(beyond))


# The two forms of a claim.


def _needing(pose: Callable[[Evidence, Thresholds], Posed]) -> Judge:
    """Yes if all requirements are met."""

    def judge(evidence: Evidence, limits: Thresholds, gate: list[Requirement]) -> Said:
        posed = pose(evidence, limits)
        answer, reasons = judged(gate, posed.requirements)
        return Said(answer, posed.contrary if posed.contrary and answer == "no" else posed.statement, reasons)

    return judge


def _of_parts(which: str, said: Callable[[Evidence, PartsEvidence, Thresholds], Said], nothing: str) -> Judge:
    """Of the division of that name in the evidence; `nothing`: what is said where it was not measured."""

    def judge(evidence: Evidence, limits: Thresholds, gate: list[Requirement]) -> Said:
        found = getattr(evidence, which)
        if found is None:
            return Said("not established", nothing, ("it was not measured",))
        open_gate, why = judged(gate, [])
        return said(evidence, found, limits) if open_gate == "yes" else Said("not established", nothing, why)

    return judge


# What happened to the behaviour?


def _behaviour(evidence: Evidence, limits: Thresholds, gate: list[Requirement]) -> Said:
    """Better, worse, lost (worse, and no longer done) or kept, in accuracy; the logit difference stands beside it."""
    found = evidence.behaviour
    change = f"accuracy {printed(found.accuracy)}, logit difference {printed(found.logit_difference)}"
    statement = f"{evidence.variant} less {evidence.base}, {change}"
    if (closed := judged(gate, []))[0] != "yes":
        return Said("not established", statement, closed[1])
    if not (found.base.does_it or found.variant.does_it):
        return Said("not established", statement, tuple(each.reason for each in both_able(evidence)))
    test, same = above(found.accuracy), within(found.accuracy, -limits.accuracy, limits.accuracy)
    if test.met:
        return Said("better", statement)
    lower = test.met is False or above(found.logit_difference).met is False
    if found.base.does_it and not found.variant.does_it and lower:
        return Said("lost", statement)
    if test.met is False:
        return Said("worse", statement)
    if not same.met:
        expected = f"to be surely above or below 0, or within {-limits.accuracy:g} and {limits.accuracy:g}"
        return Said("not established", statement, (f"the difference in accuracy was {expected}",))
    if not leaves_room(found.base.accuracy, limits.accuracy):
        few = f"an accuracy of {printed(found.base.accuracy)} leaves too little to lose for a margin of "
        return Said("not established", statement, (f"{few}{limits.accuracy:g}",))
    return Said("kept", statement)


CLAIMS = (
    Claim("behaviour", "accuracy", "accuracy", "what happened to it", _behaviour, ("accuracy",), gate=lambda _: []),
    Claim(
        "same_circuit",
        "circuits",
        "overlap",
        "is the same circuit at work",
        _needing(circuits.same_circuit),
        ("faithful", "faithfulness", "alike", "gap"),
        of_own=True,
    ),
    Claim(
        "stable_choice",
        "circuits",
        "discovery",
        "would other prompts choose the same heads",
        _needing(circuits.stable_choice),
        ("stable",),
    ),
    Claim(
        "beats_rival",
        "circuits",
        "faithfulness",
        "does the circuit do more than a second one of other heads",
        _needing(circuits.beats_rival),
        ("accuracy",),
    ),
    Claim(
        "beats_base",
        "circuits",
        "verdict",
        "does the base's circuit do better in the variant",
        _needing(circuits.beats_base),
    ),
    Claim(
        "beats_own",
        "circuits",
        "verdict",
        "does the base's circuit do better than the variant's own",
        _needing(circuits.beats_own),
        ("faithful",),
        of_own=True,
    ),
    Claim(
        "further_heads",
        "circuits",
        "verdict",
        "do the variant's further heads help",
        _needing(circuits.further_heads),
        ("accuracy",),
        of_own=True,
    ),
    Claim(
        "same_function",
        "functions",
        "functions",
        "does each group have the same function",
        _needing(circuits.same_function),
        ("accuracy",),
    ),
    Claim(
        "improved_part",
        "graft",
        "graft",
        "which part improved",
        _of_parts("graft", said_of_parts, "a part improved"),
        ("share", "nothing"),
        gained,
    ),
    Claim(
        "cause_layers",
        "layers",
        "graft.layers",
        "in which layers the cause is",
        _of_parts("layers", said_of_parts, "a range of layers improved"),
        ("share", "nothing"),
        gained,
    ),
    Claim(
        "visible_part",
        "cross_model",
        "cross_model",
        "where the gain is visible",
        _of_parts("patched", said_of_visible, "the gain is visible at a single group"),
        ("share",),
        gained,
    ),
)
