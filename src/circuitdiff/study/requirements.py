"""Requirements in words: an estimate, what was expected of it, and whether it is met."""

from __future__ import annotations

from circuitdiff.study.estimates import Estimate, printed
from circuitdiff.study.evidence import Evidence, Thresholds
from circuitdiff.study.judge import Requirement, Test, above, within


def row(what: str, estimate: Estimate | None, expected: str, test: Test) -> Requirement:
    if estimate is None or estimate.low is None or estimate.high is None:
        return Requirement(None, f"{what}: {getattr(estimate, 'note', None) or 'it was not measured'}")
    return Requirement(test.met, f"{what} {printed(estimate)}, {expected}", test.p_refuted)


def as_good(what: str, difference: Estimate | None, margin: float) -> Requirement:
    """No other by more than the margin. To be significantly better is not that, but says nothing against it."""
    test = within(difference, -margin, margin)
    said = row(what, difference, f"to be surely within {-margin:g} and {margin:g}", test)
    better = difference is not None and difference.low is not None and difference.low > 0
    return said.never_refuting() if better else said


# Without which nothing is said.


def trusted(evidence: Evidence, n_scenarios: int, limits: Thresholds) -> list[Requirement]:
    """No check failed, and there are enough scenarios."""
    failed = evidence.failed_checks
    if failed is None:
        checks = Requirement(None, "the self-checks were not run")
    else:
        checks = Requirement(not failed, f"self-checks failed: {', '.join(failed)}")
    enough = f"there are only {n_scenarios} held-out scenarios, of at least {limits.scenarios}"
    return [checks, Requirement(n_scenarios >= limits.scenarios, enough)]


def both_able(evidence: Evidence) -> list[Requirement]:
    """Both models do the task: what does not happen has no circuit and no functions."""
    models = {evidence.base: evidence.behaviour.base, evidence.variant: evidence.behaviour.variant}
    return [
        Requirement(
            each.does_it,
            f"{name} does not do the task: accuracy {printed(each.accuracy)} where guessing gives {each.guessing:.2f}, "
            f"logit difference {printed(each.logit_difference)}",
        )
        for name, each in models.items()
    ]


def gained(evidence: Evidence) -> list[Requirement]:
    """The donor is better, so that there is a gain to attribute."""
    gain, recipient = evidence.behaviour.accuracy, evidence.base
    if evidence.lacks:  # seen from the other model
        value, low, high = (None if each is None else -each for each in (gain.value, gain.low, gain.high))
        gain, recipient = Estimate(value, high, low), evidence.variant
    scenarios = f"on all {evidence.n_scenarios} evaluation scenarios"
    what = f"the gain in accuracy of {evidence.donor} over {recipient}, {scenarios}, is"
    return [row(what, gain, "to be surely above 0", above(gain))]
