"""Claims on a variant's circuit: is it the base's, which of the two does better, do groups keep their function?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from circuitdiff.study.estimates import Estimate, printed
from circuitdiff.study.evidence import (
    CircuitEvidence,
    Evidence,
    Noted,
    SimilarityEvidence,
    StabilityEvidence,
    Thresholds,
    TransferEvidence,
)
from circuitdiff.study.judge import Posed, Requirement, above, leaves_room, within
from circuitdiff.study.requirements import as_good, row

_BY = {"slot": "mean by slot", "kind": "mean by kind with heads at every segment"}  # ablations, in words
_IN = {"accuracy": "accuracy", "logit_difference": "logit difference"}
_OTHER = "a different circuit is at work"
_MOVED = "other heads are at work, in groups that look and act alike"  # a mechanism that moved has not changed

# Is the same circuit at work? Equivalence, not the absence of a difference.


def same_circuit(evidence: Evidence, limits: Thresholds) -> Posed:
    """Circuits that are not faithful establish nothing. A different circuit is one where the base's is significantly
    worse in the variant than the variant's own, or whose effects are significantly not the base's.
    """
    requirements = []
    if not evidence.circuits:
        requirements.append(Requirement(None, "base and variant have no two circuits that could be compared"))
    elif len({each.by for each in evidence.circuits}) < len(_BY):
        requirements.append(Requirement(None, f"circuits were compared under 1 of {len(_BY)} ablations"))
    for circuits in evidence.circuits:
        requirements += _carries_over(evidence, circuits, limits)
    if not evidence.similarity:
        requirements.append(Requirement(None, "effect maps were not compared"))
    for similarity in evidence.similarity:
        requirements += _alike(similarity, limits.alike)
    for gap in evidence.gaps:
        what = f"without {gap.group}, {gap.model} keeps more than its circuit does: by"
        expected = f"to be surely within {-limits.gap:g} and {limits.gap:g}"
        requirements.append(row(what, gap.difference, expected, within(gap.difference, -limits.gap, limits.gap)))
        requirements[-1] = requirements[-1].never_refuting()
    if evidence.needed is not None and evidence.needed.opposed:
        heads = ", ".join(evidence.needed.opposed)
        requirements.append(Requirement(None, f"needed in one of the two circuits, surely not in the other: {heads}"))
    unasked = [name for name in ("completeness", "minimality") if name in evidence.switched_off]
    statement = "the same circuit is at work" + (f" ({' and '.join(unasked)} not asked)" if unasked else "")
    return Posed(statement, requirements, contrary=_other_circuit(evidence, limits))


def _other_circuit(evidence: Evidence, limits: Thresholds) -> str:
    """What there is where the base's circuit is not; groups that look and act alike on few scenarios leave it open."""
    if not evidence.moved:
        return _OTHER
    n = evidence.n_scenarios_moved
    return _MOVED if n >= limits.scenarios else f"{_OTHER}, or {_MOVED} (so far on {n} of {limits.scenarios} scenarios)"


def _carries_over(evidence: Evidence, circuits: CircuitEvidence, limits: Thresholds) -> list[Requirement]:
    """The base's circuit does what the variant's own does; that it does better says nothing against it."""
    how = f"{_BY[circuits.by]} ablation, {_IN[circuits.score]}"
    expected = f"to be surely within {limits.faithful:g} and {limits.too_faithful:g}"
    faithful, carried = [], []
    for model, own in ((evidence.base, circuits.base_own), (evidence.variant, circuits.variant_own)):
        what = f"{model}'s own circuit has a normalised faithfulness ({how}) of"
        faithful.append(row(what, own, expected, within(own, limits.faithful, limits.too_faithful)))
    carried.append(_transfer(f"{evidence.base}'s circuit in {evidence.variant} ({how})", circuits.transfer, limits))
    if (where_right := circuits.transfer_where_only_variant_right) is not None:
        what = f"{evidence.base}'s circuit in {evidence.variant}, where only it is right ({how})"
        carried.append(_transfer(what, where_right, limits))
    both = all(each.met for each in faithful)
    return [*(each.never_refuting() for each in faithful), *(c if both else c.never_refuting() for c in carried)]


def _transfer(what: str, transfer: Noted | None, limits: Thresholds) -> Requirement:
    n = limits.scenarios if transfer is None or transfer.n is None else transfer.n
    if n < limits.scenarios:
        return Requirement(None, f"{what}: there are only {n} such scenarios, of at least {limits.scenarios}")
    return as_good(f"{what} differs from the variant's own by", transfer, limits.faithfulness)


def _alike(similarity: SimilarityEvidence, least: float) -> list[Requirement]:
    """As alike as counts as the same, and more alike than another stage's effects."""
    what = f"likeness of effects, stage {similarity.stage}"
    likeness, different = similarity.likeness, similarity.different
    alike = row(f"{what}, is", likeness, f"to be surely at least {least:g}", within(likeness, least))
    if likeness is None or likeness.low is None or different is None:
        return [alike]
    below = within(different, -1, likeness.low)
    other = row(f"{what} with another stage's, is", different, f"to be surely below {printed(likeness)}", below)
    return [alike, other.never_refuting()]


# Are the circuits those of the task, or of these prompts, and are there others?


def stable_choice(evidence: Evidence, limits: Thresholds) -> Posed:
    """Of each stage, given its receivers, by the mean of resamples, which are noisier than the scenarios themselves: so
    more prompts could say yes, and nothing says no.
    """
    known = [each.jaccard.value for each in evidence.stability if each.jaccard.value is not None]
    requirements = [_stable(each, limits.stable) for each in evidence.stability]
    numbers = f" (Jaccard {min(known):.2f} or more at every stage of which it is known)" if known else ""
    lacking = _lacking(evidence, [each.model for each in evidence.stability], "of no stage it is known")
    return Posed(
        f"given what they feed, other prompts of this kind would choose the same heads{numbers}", requirements + lacking
    )


def _stable(stage: StabilityEvidence, least: float) -> Requirement:
    where, heads = f"in {stage.model}, ", f"{stage.stage}'s heads"
    if stage.jaccard.value is None:
        unknown = f"how stable {heads} are is not known: a screen left others out, and measured none of them"
        return Requirement(None, where + unknown)
    met, alike = stage.jaccard.value >= least or None, f"{printed(stage.jaccard)} (Jaccard), of at least {least:g}"
    return Requirement(met, f"{where}{heads} are those of resampled scenarios by {alike}")


def beats_rival(evidence: Evidence, limits: Thresholds) -> Posed:
    """By more than the margin; as many other heads at the same roles, chosen while the circuit is held."""
    numbers = "; ".join(f"{each.model} {printed(each.difference)}" for each in evidence.rivals if each.difference)
    margin, said = limits.accuracy, f"the circuit {{}} than as many other heads, chosen without it ({numbers})"
    requirements = [
        row(
            f"in {each.model}, its accuracy less theirs is",
            each.difference,
            f"to be surely above {margin:g}",
            above(each.difference, margin),
        )
        for each in evidence.rivals
    ]
    lacking = _lacking(evidence, [each.model for each in evidence.rivals], "no circuit was held against others")
    return Posed(said.format("does more"), requirements + lacking, said.format("does surely no more"))


def _lacking(evidence: Evidence, known: Sequence[str], why: str) -> list[Requirement]:
    """All circuits that were looked for are claimed of."""
    return [Requirement(None, f"{model}: {why}") for model in evidence.with_circuit if model not in known]


# Which of two circuits does better in the variant? Paired differences in accuracy, under the paper's ablation.


def _by_slot(evidence: Evidence) -> TransferEvidence | None:
    return next((each for each in evidence.transfers if each.by == "slot"), None)


def beats_base(evidence: Evidence, _: Thresholds) -> Posed:
    base, variant, found, numbers = evidence.base, evidence.variant, _by_slot(evidence), ""
    if found is not None:
        reverse = "" if found.reverse is None else f"; {variant}'s circuit in {base}: {printed(found.reverse)}"
        numbers = f" (by {printed(found.over_base)}{reverse})"
    said = f"{base}'s circuit alone {{}} better in {variant} than the whole of {base}{numbers}"
    what, difference = f"its accuracy there less that of the whole of {base} is", found and found.over_base
    return Posed(said.format("does"), [_positive(what, difference)], said.format("does no"))


def beats_own(evidence: Evidence, limits: Thresholds) -> Posed:
    """Of two circuits that do little of what the variant does, neither is worth a yes."""
    base, variant, found = evidence.base, evidence.variant, _by_slot(evidence)
    numbers = "" if found is None or found.over_own is None else f" (by {printed(found.over_own)})"
    said = f"{base}'s circuit {{}} better in {variant} than {variant}'s own{numbers}"
    what, difference = f"its accuracy in {variant} less that of {variant}'s own circuit is", found and found.over_own
    faithful = f"{base}'s circuit in {variant} has a normalised faithfulness (accuracy) of"
    does_it = row(
        faithful,
        found and found.faithful,
        f"to be surely at least {limits.faithful:g}",
        within(found and found.faithful, limits.faithful),
    )
    return Posed(said.format("does"), [_positive(what, difference), does_it.never_refuting()], said.format("does no"))


def further_heads(evidence: Evidence, limits: Thresholds) -> Posed:
    base, variant, found, numbers = evidence.base, evidence.variant, _by_slot(evidence), ""
    if found is not None and found.extras_add is not None and found.extras_alone is not None:
        numbers = f" (by {printed(found.extras_add)}; alone {printed(found.extras_alone)} above nothing)"
    said = f"the further heads of {variant}'s own circuit {{}} to {base}'s{numbers}"
    statement = said.format("add")
    if found is not None and found.extras_add is None:
        return Posed(statement, [Requirement(None, f"{variant}'s circuit has no heads beyond {base}'s")])
    added, margin = found and found.extras_add, limits.accuracy
    what = f"the accuracy in {variant} with them less that of {base}'s circuit alone is"
    expected, test = f"to be surely above 0; surely below {margin:g} is nothing", above(added, 0.0, lost_below=margin)
    return Posed(statement, [row(what, added, expected, test)], contrary=said.format("add nothing"))


def _positive(what: str, difference: Estimate | None) -> Requirement:
    return row(what, difference, "to be surely above 0", above(difference))


# Does each group have the same function?


def same_function(evidence: Evidence, limits: Thresholds) -> Posed:
    """A group of the base has lost its function where its mask, which works in the base, does next to nothing.

    The statement names the groups that were tested, and those of which no function is known.
    """
    requirements, margin = [], limits.accuracy
    for function in evidence.functions:
        mask = f"{evidence.base}'s mask of {function.group} ({function.desideratum}) in {evidence.variant}"
        above_floor, difference = function.above_floor, function.difference
        works = above(above_floor, 0.0, lost_below=margin)
        requirements.append(row(f"{mask}, above the floor, is", above_floor, "to be surely above 0", works))
        as_own = as_good(f"{mask} differs from {evidence.variant}'s own by", difference, margin)
        if works.met and not leaves_room(above_floor, margin):
            nothing = f"{mask} is too little to lose: a difference of {margin:g} is more than half of it"
            as_own = replace(as_own, met=None, reason=nothing, p=None)
        requirements.append(as_own)
        if works.met and not function.trained:
            requirements.append(Requirement(None, f"{mask} was not held against a trained floor"))
    requirements = requirements or [Requirement(None, "no group of the base carries a function that was asked for")]
    groups = _listed([f"{each.group} ({each.desideratum})" for each in evidence.functions])
    some = len(evidence.functions) > 1
    unknown = f" (of {', '.join(evidence.unknown)} no function is known)" if evidence.unknown else ""
    said = f"{groups or 'each group'} {{}} the same function{unknown}"
    return Posed(
        said.format("have" if some else "has"),
        requirements,
        contrary=said.format("do not all have" if some else "does not have"),
    )


def _listed(names: Sequence[str]) -> str:
    *others, last = names or [""]
    return f"{', '.join(others)} and {last}" if others else last
