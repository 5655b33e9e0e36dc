"""What a comparison of a variant with its base allows to be said: six claims, as rows over typed evidence.

Every claim is answered yes, no, or "not established", and says why. All requirements met is yes, one of them refuted is
no, anything else is not established; a number that is missing establishes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from circuitdiff.study.estimates import DRAWS_FOR_A_RANK, Estimate
from circuitdiff.study.evidence import (
    CircuitEvidence,
    Evidence,
    Noted,
    Parts,
    RestsOn,
    SimilarityEvidence,
    Thresholds,
)
from circuitdiff.study.gains import Credit, RandomGroups
from circuitdiff.study.judge import Answer, Requirement, above, judged, within

# Parts of a graft that are no head group.
NO_HEAD_GROUP = ("other heads", "mlps", "norms", "embeddings", "unembedding", "the rest")
_SHARED = "other heads that read the same keys and values"
_CONTROLS = {
    "same_layers": "random heads of the same layers",
    "shared_kv": _SHARED,
}
_REASONS_IN_TEXT = 2  # all of them stand beside it
_OTHER = "a different circuit is at work"
_BY = {"slot": "mean by slot", "kind": "mean by kind with heads at every segment"}  # ablations, in words
_MOVED = "other heads are at work, in groups that look and act alike"  # a mechanism that moved has not changed


@dataclass(frozen=True)
class Sentence:
    """A claim with its answer and why; `rests_on` names the table of its numbers."""

    claim: str
    answer: Answer
    text: str
    reasons: tuple[str, ...]  # against it, or why it is open; none if the answer is yes
    rests_on: RestsOn
    scope: str


class Claim(NamedTuple):
    """`contrary`: what a "no" says. A claim that is not `gated` needs no gain."""

    name: str
    rests_on: RestsOn
    statement: Callable[[Evidence, Thresholds], str]
    requirements: Callable[[Evidence, Thresholds], Sequence[Requirement]]
    gated: bool = True
    contrary: Callable[[Evidence, Thresholds], str] | None = None


def sentences(evidence: Evidence, limits: Thresholds) -> tuple[Sentence, ...]:
    return tuple(_sentence(claim, evidence, limits) for claim in CLAIMS)


def _sentence(claim: Claim, evidence: Evidence, limits: Thresholds) -> Sentence:
    measured = evidence.measured.get(claim.rests_on)
    n = evidence.n_scenarios if measured is None else measured.n_scenarios
    gate = [*_trust(evidence, n, limits), *(_gain_of_donor(evidence) if claim.gated else ())]
    answer, reasons = judged(gate, claim.requirements(evidence, limits))
    statement = claim.contrary if claim.contrary and answer == "no" else claim.statement
    more = f"; and {len(reasons) - _REASONS_IN_TEXT} more" if len(reasons) > _REASONS_IN_TEXT else ""
    why = f", because {'; '.join(reasons[:_REASONS_IN_TEXT])}{more}" if reasons else ""
    text = f"{answer[0].upper()}{answer[1:]}: {statement(evidence, limits)}{why}."
    scope = evidence.scope if measured is None else f"{evidence.scope}; {measured.scope}"
    return Sentence(claim.name, answer, text, reasons, claim.rests_on, scope)


def _trust(evidence: Evidence, n_scenarios: int, limits: Thresholds) -> list[Requirement]:
    failed = evidence.failed_checks
    if failed is None:
        checks = Requirement(None, "the self-checks were not run")
    else:
        checks = Requirement(not failed, f"self-checks failed: {', '.join(failed)}")
    enough = f"there are only {n_scenarios} held-out scenarios, of at least {limits.scenarios}"
    return [checks, Requirement(n_scenarios >= limits.scenarios, enough)]


# 1. The variant does the task better.


def _gain(evidence: Evidence, _: Thresholds | None = None) -> list[Requirement]:
    return [_row("the gain in accuracy is", evidence.gain, "to be surely above 0", above(evidence.gain))]


def _gain_of_donor(evidence: Evidence) -> list[Requirement]:
    if not evidence.lacks:
        return _gain(evidence)
    gain, what = evidence.gain, f"the gain of {evidence.base} over {evidence.variant} is"
    if gain is not None:  # seen from the other model
        value, low, high = (None if each is None else -each for each in (gain.value, gain.low, gain.high))
        gain = replace(gain, value=value, low=high, high=low)
    return [_row(what, gain, "to be surely above 0", above(gain))]


# 2. The same circuit is at work: equivalence, not the absence of a difference.


def _same_circuit(evidence: Evidence, limits: Thresholds) -> list[Requirement]:
    """Circuits that are not faithful establish nothing. A different circuit is one where the base's is significantly
    worse in the variant than the variant's own, or whose effects are significantly not the base's.
    """
    requirements = []
    if len(evidence.circuits) < 2:
        requirements.append(
            Requirement(None, f"circuits were compared under {len(evidence.circuits)} of at least 2 ablations")
        )
    for by, circuits in evidence.circuits.items():
        requirements += _carries_over(evidence, _BY[by], circuits, limits)
    if not evidence.similarity:
        requirements.append(Requirement(None, "effect maps and overlaps were not compared"))
    for similarity in evidence.similarity:
        requirements += _alike(_measure(similarity), similarity, limits.margin)
    return requirements


def _carries_over(
    evidence: Evidence, ablation: str, circuits: CircuitEvidence, limits: Thresholds
) -> list[Requirement]:
    """The base's circuit does what the variant's own does; that it does better says nothing against it."""
    expected = f"to be surely within {limits.faithful:g} and {limits.too_faithful:g}"
    faithful, carried = [], []
    for model, own in ((evidence.base, circuits.base_own), (evidence.variant, circuits.variant_own)):
        what = f"{model}'s own circuit has a normalised faithfulness ({ablation} ablation) of"
        faithful.append(_row(what, own, expected, within(own, limits.faithful, limits.too_faithful)))
    where_right = (", where only it is right", circuits.transfer_where_only_variant_right)
    for where, transfer in (("", circuits.transfer), where_right):
        what = f"{evidence.base}'s circuit in {evidence.variant}{where} ({ablation} ablation)"
        carried.append(_transfer(what, transfer, limits))
    both = all(each.met for each in faithful)
    return [*(each.never_refuting() for each in faithful), *(c if both else c.never_refuting() for c in carried)]


def _transfer(what: str, transfer: Noted | None, limits: Thresholds) -> Requirement:
    n = limits.scenarios if transfer is None or transfer.n is None else transfer.n
    if n < limits.scenarios:
        return Requirement(None, f"{what}: there are only {n} such scenarios, of at least {limits.scenarios}")
    return _as_good(f"{what} differs from the variant's own by", transfer, limits.margin)


def _alike(what: str, similarity: SimilarityEvidence, margin: float) -> list[Requirement]:
    """No more than the margin below the retest, by interval and on average, and above another circuit.

    Significantly neither is a "no".
    """
    value, retest, different = similarity.value, similarity.retest, similarity.different
    other = f"{what} with another circuit or by chance"
    if value is None or value.low is None or value.high is None:
        differs = Requirement(None, f"{other}: nothing to compare it with was measured")
    else:
        differs = _row(f"{other} is", different, f"to be surely below {printed(value)}", _below(different, value))
    if retest is None or retest.low is None:
        none = f"{what}: no retest of one model on other prompts to compare with"
        return [Requirement(None, none), differs.never_refuting()]
    reaches = _row(
        f"{what} is",
        value,
        f"to be surely within {margin:g} of the retest's {printed(retest)}",
        _reaches_retest(value, retest, margin),
    )
    refuting = reaches.met is False and not differs.met and different is not None
    return [reaches if refuting else reaches.never_refuting(), differs.never_refuting()]


def _measure(similarity: SimilarityEvidence) -> str:
    if similarity.measure == "correlation":
        return f"the correlation of effects, stage {similarity.stage},"
    if similarity.measure == "overlap":
        return f"the overlap of the {similarity.k} strongest heads, stage {similarity.stage},"
    return f"the effects of stage {similarity.stage}"


def _below(lower: Estimate | None, higher: Estimate) -> bool | None:
    """Whether one interval lies below the other; refuted if it lies above it."""
    if lower is None or None in (lower.low, lower.high, higher.low, higher.high):
        return None
    return True if lower.high < higher.low else False if lower.low > higher.high else None  # pyright: ignore


def _reaches_retest(value: Estimate | None, retest: Estimate, margin: float) -> bool | None:
    met = within(value, (retest.low or 0.0) - margin)
    if not met or value is None or value.value is None or retest.value is None:
        return met
    return True if value.value >= retest.value - margin else None


def _other_circuit(evidence: Evidence, limits: Thresholds) -> str:
    """What there is where the base's circuit is not; groups that look and act alike on few scenarios leave it open."""
    if not evidence.moved:
        return _OTHER
    n = evidence.n_scenarios_moved
    return _MOVED if n >= limits.scenarios else f"{_OTHER}, or {_MOVED} (so far on {n} of {limits.scenarios} scenarios)"


# 3. Each group has the same function.


def _same_function(evidence: Evidence, limits: Thresholds) -> list[Requirement]:
    """A group of the base has lost its function where its mask, which works in the base, does next to nothing."""
    requirements = []
    for function in evidence.functions:
        mask = f"{evidence.base}'s mask of {function.group} ({function.desideratum}) in {evidence.variant}"
        differs = f"{mask} differs from {evidence.variant}'s own by"
        requirements.append(_as_good(differs, function.difference, limits.margin))
        works = above(function.above_floor, 0.0, lost_below=limits.margin)
        requirements.append(_row(f"{mask}, above the floor, is", function.above_floor, "to be surely above 0", works))
        if works and not function.trained:
            requirements.append(Requirement(None, f"{mask} was not held against a trained floor"))
    return requirements or [Requirement(None, "no component masks were carried over")]


def _functions_statement(evidence: Evidence, _: Thresholds) -> str:
    """The groups that were tested, and that they have the same function; and those of which none is known."""
    *others, last = [f"{each.group} ({each.desideratum})" for each in evidence.functions] or ["each group"]
    groups = f"{', '.join(others)} and {last} have" if others else f"{last} has"
    unknown = f" (of {', '.join(evidence.unknown)} no function is known)" if evidence.unknown else ""
    return f"{groups} the same function{unknown}"


# 4. The improved part: its weights alone bring the gain, without them it is gone, and nothing else brings it.


def _improved_part(evidence: Evidence, limits: Thresholds) -> list[Requirement]:
    graft = evidence.graft
    if graft is None or not graft.parts:
        return [Requirement(None, "no weights were grafted")]
    best = largest(graft.parts)
    requirements = _alone_and_needed(best, graft.parts, limits)
    controls = graft.controls.get(best) or {}
    if "same_layers" not in controls and best not in NO_HEAD_GROUP:
        requirements.append(Requirement(None, f"no random groups in the stead of {best} were grafted"))
    for name, credit in controls.items():
        if isinstance(credit, RandomGroups) and credit.n < DRAWS_FOR_A_RANK:
            few = f"only {credit.n} random groups of at least {DRAWS_FOR_A_RANK} were grafted"
            requirements.append(Requirement(None, few))
            continue
        below = _reaches(f"the control {_CONTROLS[name]} brings", credit, limits.share, stays_below=True)
        requirements.append(below.never_refuting() if name == "shared_kv" else below)
    if (touched := graft.also_touched.get(best)) and "shared_kv" not in controls:
        requirements.append(Requirement(None, f"{touched} {_SHARED} were not grafted without {best}"))
    return requirements


def _improved_statement(evidence: Evidence, _: Thresholds) -> str:
    part = largest(evidence.graft.parts if evidence.graft else {})
    subject = f"the part that {evidence.variant} lacks" if evidence.lacks else "improved part"
    if part in NO_HEAD_GROUP:
        subject = subject if evidence.lacks else "the improved part"
        return f"{subject} is {part}, which is no head group"
    return f"{subject}: {part}"


# 5. The layers that cause the gain: the same of a range of layers; the others, and all outside layers, are controls.


def _cause_layers(evidence: Evidence, limits: Thresholds) -> list[Requirement]:
    layers = evidence.graft.layers if evidence.graft else {}
    ranges = _ranges(layers)
    if not ranges:
        return [Requirement(None, "no ranges of layers were grafted")]
    return _alone_and_needed(largest(ranges), layers, limits)


def _layers_statement(evidence: Evidence, _: Thresholds) -> str:
    deepest = largest(_ranges(evidence.graft.layers if evidence.graft else {}))
    return f"{_gained(evidence)} is caused in {deepest}"


def _ranges(layers: Parts) -> Parts:
    return {name: credits for name, credits in layers.items() if name not in NO_HEAD_GROUP}


def _alone_and_needed(best: str, parts: Parts, limits: Thresholds) -> list[Requirement]:
    others = [(part, credits["alone"]) for part, credits in parts.items() if part != best]
    return [
        _reaches(f"{best} grafted alone brings", parts[best]["alone"], limits.share),
        _reaches(f"{best} taken out of the donor costs", parts[best]["left_out"], limits.share),
        *(_reaches(f"{part} grafted alone brings", each, limits.share, stays_below=True) for part, each in others),
    ]


# 6. The parts where the gain is visible: each of these, patched alone, brings it, whatever brought it there.


def _visible_parts(evidence: Evidence, limits: Thresholds) -> list[Requirement]:
    if not evidence.patched:
        return [Requirement(None, "no activations were patched")]
    return [_shows(evidence, part, limits) for part in _shown(evidence, limits)]


def _visible_statement(evidence: Evidence, limits: Thresholds) -> str:
    cause = "" if evidence.graft is not None and evidence.graft.parts else "; its cause was not located"
    return f"{_gained(evidence)} is visible at {' and '.join(_shown(evidence, limits))}{cause}"


def _shown(evidence: Evidence, limits: Thresholds) -> list[str]:
    shown = [part for part in evidence.patched if _shows(evidence, part, limits).met]
    return shown or [largest(evidence.patched)]


def _shows(evidence: Evidence, part: str, limits: Thresholds) -> Requirement:
    return _reaches(f"{part} patched alone brings", evidence.patched[part]["alone"], limits.share)


def _gained(evidence: Evidence) -> str:
    return f"what {evidence.variant} lacks" if evidence.lacks else "the gain"


CLAIMS = (
    Claim("better", "accuracy", lambda e, _: f"{e.variant} does the task better than {e.base}", _gain, gated=False),
    Claim("same_circuit", "circuits", lambda *_: "the same circuit is at work", _same_circuit, True, _other_circuit),
    Claim("same_function", "functions", _functions_statement, _same_function),
    Claim("improved_part", "graft", _improved_statement, _improved_part),
    Claim("cause_layers", "layers", _layers_statement, _cause_layers),
    Claim("visible_part", "cross_model", _visible_statement, _visible_parts),
)


# Requirements in words.


def largest(parts: Parts) -> str:
    """The part with the largest share alone; its contribution stands in for a share that is undefined."""

    def size(part: str) -> tuple[float, float]:
        alone = parts[part]["alone"]
        return (-1.0 if alone.share is None else alone.share, -1.0 if alone.value is None else alone.value)

    return max(parts, key=size) if parts else "one part"


def _as_good(what: str, difference: Estimate | None, margin: float) -> Requirement:
    """No other by more than the margin. To be significantly better is not that, but says nothing against it."""
    met = within(difference, -margin, margin)
    row = _row(what, difference, f"to be surely within {-margin:g} and {margin:g}", met)
    better = difference is not None and difference.low is not None and difference.low > 0
    return row.never_refuting() if better else row


def _reaches(what: str, credit: Credit, share: float, *, stays_below: bool = False) -> Requirement:
    """Whether its share of the gain is so large; or, in the opposite case, below it."""
    bounds = Noted(credit.share, credit.share_low, credit.share_high, credit.undefined)
    met = within(bounds, share)
    if not stays_below:
        return _row(what, bounds, f"to be surely at least {share:g} of the gain", met)
    return _row(what, bounds, f"to be surely below {share:g} of the gain", None if met is None else not met)


def _row(what: str, estimate: Estimate | None, expected: str, met: bool | None) -> Requirement:
    if estimate is None or estimate.low is None or estimate.high is None:
        return Requirement(None, f"{what}: {getattr(estimate, 'note', None) or 'it was not measured'}")
    return Requirement(met, f"{what} {printed(estimate)}, {expected}")


def printed(estimate: Estimate) -> str:
    numbers = (estimate.value, estimate.low, estimate.high)
    value, low, high = (float("nan") if each is None else each for each in numbers)
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
