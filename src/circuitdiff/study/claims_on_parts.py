"""Claims on parts of a model: which of them got better, each judged alone and left out, in both scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from circuitdiff.study.estimates import DRAWS_FOR_A_RANK, printed
from circuitdiff.study.evidence import Evidence, Judged, Noted, Parts, PartsEvidence, Thresholds
from circuitdiff.study.gains import Credit, RandomGroups
from circuitdiff.study.judge import LEVEL, Answer, Said, Test, holm, within

# Parts of a graft that are no head group.
NO_HEAD_GROUP = ("other heads", "mlps", "norms", "embeddings", "unembedding", "the rest")
SHARED = "other heads that read the same keys and values"
_CONTROLS = {"same_layers": "random heads of the same layers", "shared_kv": SHARED}
_HOW = {"alone": "alone it brings", "left_out": "left out it costs"}
_IN = {"accuracy": "accuracy", "logit_difference": "logit difference"}
_MANNER = {"yes": "", "no": "not ", "not established": "perhaps "}


@dataclass(frozen=True)
class PartVerdict:
    """What is established of one part, in accuracy and logit difference both.

    `sufficient`: alone it brings the share of the gain that counts. `necessary`: left out, that much is gone.
    `improved`: yes if either is surely more than next to nothing; no if both shares are surely near 0. `sole`: it is
    sufficient, and no other part improved, nor is any control sufficient. `reasons`: why that is not established.
    """

    part: str
    sufficient: Answer
    necessary: Answer
    sole: Answer
    improved: Answer
    numbers: str
    reasons: tuple[str, ...] = ()


def judged_parts(found: PartsEvidence, limits: Thresholds) -> tuple[PartVerdict, ...]:
    """Every part is judged, and none is chosen: so a yes, and a no, is adjusted for all parts and both ways to ask."""
    names = [*found.scores["accuracy"]]
    asked = [(name, how) for name in names if name not in found.unchanged for how in _HOW]
    answers, something = (
        dict(zip(asked, _adjusted([_in_all_scores(found, *each, least) for each in asked]), strict=True))
        for least in (limits.share, limits.nothing)
    )
    verdicts: list[PartVerdict] = []
    for name in names:
        if name in found.unchanged:
            verdicts.append(PartVerdict(name, "no", "no", "no", "no", "its weights are the same in both models"))
            continue
        sufficient, necessary = answers[name, "alone"], answers[name, "left_out"]
        others = {answers[other, how] for other, how in asked if other != name}
        reasons = _against_sole(found, name, limits)
        near_zero = all(_in_all_scores(found, name, how, -limits.nothing, limits.nothing).met for how in _HOW)
        surely = "yes" in (something[name, "alone"], something[name, "left_out"])
        improved: Answer = "yes" if surely else "no" if near_zero else "not established"
        also = any(something[other, how] == "yes" for other, how in asked if other != name)
        alone = sufficient == "yes" and others <= {"no"} and not reasons
        sole: Answer = "no" if also or sufficient == "no" else "yes" if alone else "not established"
        verdicts.append(PartVerdict(name, sufficient, necessary, sole, improved, _numbers(found, name), reasons))
    return tuple(verdicts)


def said_of_parts(evidence: Evidence, found: PartsEvidence, limits: Thresholds) -> Said:
    """The answer, the statement, and reasons: which parts improved, how, and which surely did not."""
    verb = f"is what {evidence.variant} lacks" if evidence.lacks else "improved"
    if nothing := _nothing_to_share(found):
        return Said("not established", f"a part that {verb}", (nothing,))
    verdicts = judged_parts(found, limits)
    improved = [each for each in verdicts if each.improved == "yes"]
    surely_not = [each.part for each in verdicts if each.improved == "no"]
    if not improved:
        answer: Answer = "no" if len(surely_not) == len(verdicts) else "not established"
        opened = tuple(f"{each.part}: {each.numbers}" for each in verdicts if each.improved == "not established")
        return Said(answer, f"no part surely {verb}" if answer == "no" else f"a part that {verb}", opened)
    said = "; ".join(f"{each.part} {verb} ({_manners(each)}: {each.numbers})" for each in improved)
    more = f"; surely not {', '.join(surely_not)}" if surely_not else ""
    changed = [each.part for each in verdicts if each.part not in found.unchanged]
    if len(changed) == 1:
        more += "; by construction, since no other weights differ: this is no finding"
    return Said("yes", said + more)


def said_of_visible(evidence: Evidence, found: PartsEvidence, limits: Thresholds) -> Said:
    """The parts of which each, patched alone, brings the share that counts: whatever brought it there."""
    gain = f"what {evidence.variant} lacks" if evidence.lacks else "the gain"
    cause = "" if evidence.graft is not None else "; its cause was not located"
    if nothing := _nothing_to_share(found):
        return Said("not established", f"{gain} is visible at a single group{cause}", (nothing,))
    answers = visible_parts(found, limits)
    seen = [part for part, answer in answers.items() if answer == "yes"]
    if seen:
        numbers = "; ".join(f"{part}: {_shares(found, part, 'alone')}" for part in seen)
        return Said("yes", f"{gain} is visible at {' and '.join(seen)} ({numbers}){cause}")
    reasons = tuple(f"{part} patched alone: {_shares(found, part, 'alone')}" for part in answers)
    answer: Answer = "no" if set(answers.values()) == {"no"} else "not established"
    where = "no single group" if answer == "no" else "a single group"
    return Said(answer, f"{gain} is visible at {where}{cause}", reasons)


def visible_parts(found: PartsEvidence, limits: Thresholds) -> dict[str, Answer]:
    """Does each part, patched alone, bring the share of the gain that counts?"""
    parts = [*found.scores["accuracy"]]
    tests = [_in_all_scores(found, part, "alone", limits.share) for part in parts]
    return dict(zip(parts, _adjusted(tests), strict=True))


def _nothing_to_share(found: PartsEvidence) -> str | None:
    """Why no part has a share in some score, if one reason holds for all of them: said once."""
    for score, parts in found.scores.items():
        why = {credit.undefined for by_way in parts.values() for credit in by_way.values()}
        if len(why) == 1 and (reason := why.pop()):
            return f"in {_IN[score]}, on the prompts of this section, {reason}"
    return None


def _in_all_scores(found: PartsEvidence, part: str, how: str, least: float, most: float = float("inf")) -> Test:
    """Met if it is in every score, refuted if it is in every score."""
    tests = [within(_share(parts[part][how]), least, most) for parts in found.scores.values()]
    met = True if all(each.met for each in tests) else False if all(each.met is False for each in tests) else None
    return Test(met, max(each.p_met for each in tests), max(each.p_refuted for each in tests))


def _adjusted(tests: Sequence[Test]) -> list[Answer]:
    """Yes or no where its p, adjusted for all of these tests, is small enough."""
    yes = holm({i: test.p_met for i, test in enumerate(tests)})
    no = holm({i: test.p_refuted for i, test in enumerate(tests)})
    return [
        "yes" if test.met and yes[i] <= LEVEL else "no" if test.met is False and no[i] <= LEVEL else "not established"
        for i, test in enumerate(tests)
    ]


def _against_sole(found: PartsEvidence, part: str, limits: Thresholds) -> tuple[str, ...]:
    """Of a head group's controls, in its stead: those that may bring as much, and those that were not run."""
    if part in NO_HEAD_GROUP or part.startswith("layers "):
        return ()
    controls = found.controls.get(part) or {}
    reasons = [] if "same_layers" in controls else [f"no random groups in the stead of {part} were grafted"]
    for name, credit in controls.items():
        if isinstance(credit, RandomGroups) and credit.n < DRAWS_FOR_A_RANK:
            reasons.append(f"only {credit.n} random groups of at least {DRAWS_FOR_A_RANK} were grafted")
        elif credit.n_scenarios < limits.scenarios:
            few = f"{credit.n_scenarios} scenarios of at least {limits.scenarios}"
            reasons.append(f"the control {_CONTROLS[name]} was held against {part} on only {few}")
        elif within(_share(credit), limits.share).met is not False:
            reasons.append(f"the control {_CONTROLS[name]} brings {_printed(credit)}")
    if (touched := found.also_touched.get(part)) and "shared_kv" not in controls:
        reasons.append(f"{touched} {SHARED} were not grafted without {part}")
    return tuple(reasons)


def _manners(verdict: PartVerdict) -> str:
    return ", ".join(f"{_MANNER[getattr(verdict, name)]}{name}" for name in ("sufficient", "necessary", "sole"))


def _numbers(found: PartsEvidence, part: str) -> str:
    return ", ".join(f"{words} {_shares(found, part, how)}" for how, words in _HOW.items())


def _shares(found: PartsEvidence, part: str, how: str) -> str:
    """Like `0.83 [0.68, 0.96] of the gain in accuracy and 0.75 [0.60, 0.90] in logit difference`."""
    scores: Mapping[Judged, Parts] = found.scores
    said = [f"{_printed(parts[part][how])}{{}} in {_IN[score]}" for score, parts in scores.items()]
    return " and ".join(said).format(" of the gain", *[""] * len(said))


def _printed(credit: Credit) -> str:
    return f"no share ({credit.undefined})" if credit.share is None else printed(_share(credit))


def _share(credit: Credit) -> Noted:
    return Noted(credit.share, credit.share_low, credit.share_high, credit.undefined)
