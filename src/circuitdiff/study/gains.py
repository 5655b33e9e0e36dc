"""What one model gains over another: which of the two is the donor, and whose the gain is, as results have it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from circuitdiff.evaluation import Evaluation
from circuitdiff.evaluation.answers import SCORES, Score
from circuitdiff.stats import shapley
from circuitdiff.stats.intervals import mean_interval
from circuitdiff.stats.shapley import ALONE, Attribution, Subset, attribute
from circuitdiff.study.common_units import model_answers
from circuitdiff.study.context import StudyContext
from circuitdiff.study.estimates import Estimate, Number, Share, accuracy, estimate, more_accurate_by, rank_p, result_of

# Random heads; or the other heads that read the part's keys and values: do the part's own heads matter?
GraftControl = Literal["same_layers", "shared_kv"]
_DRAWS_FOR_A_RANGE = 39  # each of 39 draws is as likely as the next one to be the largest: 1 / 40 = 2.5 %


@dataclass(frozen=True)
class Direction:
    """Whose activations or weights go into which model."""

    donor: str
    recipient: str
    gains: bool  # the gain's interval excludes 0, so that there is a gain to share out


@dataclass(frozen=True)
class Gain(Estimate):
    """Accuracy of the donor less that of the recipient, on the same prompts."""

    n_scenarios: int
    n_prompts: int


@dataclass(frozen=True)
class Credit(Estimate):
    """What something adds to a score, in its unit, and as a share of the gain; no share where it is `undefined`."""

    share: Number
    share_low: Number
    share_high: Number
    undefined: str | None  # why


@dataclass(frozen=True)
class RunCredit(Credit):
    """A run against the recipient; these of its parts are the donor's."""

    parts: tuple[str, ...]


@dataclass(frozen=True)
class AttributionResult:
    """The gain donor - recipient, taken apart."""

    gain: Estimate
    parts: dict[str, dict[str, Credit]]  # part -> "alone", "left_out", "in_order" and, of all subsets, "shapley"
    together: Credit  # all parts
    unexplained: Credit  # what is left of the gain
    runs: tuple[RunCredit, ...]


@dataclass(frozen=True)
class Scores:
    """Means over prompts."""

    accuracy: Share
    logit_difference: Estimate
    log_prob: Estimate


@dataclass(frozen=True)
class RunResult(Scores):
    """The recipient, with these parts the donor's."""

    parts: tuple[str, ...]


@dataclass(frozen=True)
class GainShares:
    """A donor, a recipient, and whose the gain is in each score. `order`: of the parts, causes first."""

    donor: str
    recipient: str
    order: tuple[str, ...]
    n_prompts: int
    n_scenarios: int
    donor_scores: Scores
    scores: dict[Score, AttributionResult]


@dataclass(frozen=True)
class ControlResult(Credit):
    """What something else brings in a group's stead, in accuracy."""

    n_scenarios: int


@dataclass(frozen=True)
class RandomGroups(ControlResult):
    """A group among random ones that have none of its heads, on the same prompts.

    `value` and `share` are the random groups' means. Their bounds hold for single groups and for other prompts: of each
    group's own bounds those that 95 % of the groups keep to, or, of fewer than 39 groups, that all of them do.
    """

    n: int
    bounds_are: Literal["95 % of the groups", "all groups"]
    n_far: int  # whose runs end far from clean ones, and have no share
    n_prompts: int
    rank_p: Number  # of the group's accuracy among theirs; None of fewer than 100
    group: float  # its accuracy
    accuracies: tuple[float, ...]
    nothing: float  # accuracy of the recipient as it is


async def gain_of(study: StudyContext, donor: str, recipient: str) -> Gain:
    """The paired gain in accuracy on all evaluation prompts."""
    first, second = await study.each((donor, recipient), lambda name: model_answers(study, name))
    return Gain(
        **vars(more_accurate_by(first, second)), n_scenarios=len(first.scenarios.unique()), n_prompts=len(first.hits)
    )


async def direction_of(study: StudyContext, variant: str) -> Direction:
    """From the variant to the base, unless the variant is worse at 95 %: then what does it lack?"""
    over_base = await gain_of(study, variant, study.base)
    low, high = (math.nan if bound is None else bound for bound in (over_base.low, over_base.high))
    if high < 0:
        return Direction(study.base, variant, gains=True)
    return Direction(variant, study.base, gains=low > 0)


def gain_shares(
    between: Direction, donor: Evaluation, order: Sequence[str], attribution: Callable[[Score], Attribution]
) -> GainShares:
    return GainShares(
        between.donor,
        between.recipient,
        order=tuple(order),
        n_prompts=len(donor.hits),
        n_scenarios=len(donor.scenarios.unique()),
        donor_scores=scores_of(donor),
        scores={score: attribution_result(attribution(score)) for score in SCORES},
    )


def attribution_result(attribution: Attribution) -> AttributionResult:
    parts = {
        part: {how: result_of(Credit, each) for how, each in credits.items()}
        for part, credits in attribution.parts.items()
    }
    runs = (
        result_of(RunCredit, each, parts=tuple(part for part in parts if part in run))
        for run, each in attribution.runs.items()
    )
    together, unexplained = (result_of(Credit, each) for each in (attribution.together, attribution.unexplained))
    return AttributionResult(estimate(attribution.gain), parts, together, unexplained, tuple(runs))


def scores_of(answers: Evaluation) -> Scores:
    scenarios = answers.scenarios.numpy()
    means = {score: estimate(mean_interval(answers.per_prompt(score).numpy(), scenarios)) for score in SCORES[1:]}
    return Scores(accuracy=accuracy(answers), **means)


def run_result(subset: Subset, answers: Evaluation, order: Sequence[str]) -> RunResult:
    return RunResult(**vars(scores_of(answers)), parts=tuple(part for part in order if part in subset))


def control_result(
    donor: Evaluation, nothing: Evaluation, control: Evaluation, *, compatible: bool = True
) -> ControlResult:
    """`nothing`: the recipient as it is. Without a share unless the model could have run so itself (`compatible`)."""
    credit = _control_credit(donor, nothing, control, compatible=compatible)
    return result_of(ControlResult, credit, n_scenarios=len(donor.scenarios.unique()))


def random_groups(
    donor: Evaluation, nothing: Evaluation, group: Evaluation, drawn: Sequence[Evaluation], far: Collection[int] = ()
) -> RandomGroups:
    """The group among the `drawn` ones. Shares are undefined where the gain's interval covers 0.

    `far`: the groups, by number, whose runs the model could not have made itself, which have none.
    """
    credits = [_control_credit(donor, nothing, each, compatible=i not in far) for i, each in enumerate(drawn)]
    accuracies, own = np.array([float(each.hits.double().mean()) for each in drawn]), float(group.hits.double().mean())
    return RandomGroups(
        **{name: _over_groups(name, credits) for name in shapley.Credit._fields if name != "undefined"},
        undefined=_control_credit(donor, nothing, group).undefined,
        n_scenarios=len(donor.scenarios.unique()),
        n=len(drawn),
        bounds_are="95 % of the groups" if len(drawn) - len(far) >= _DRAWS_FOR_A_RANGE else "all groups",
        n_far=len(far),
        n_prompts=len(donor.hits),
        rank_p=rank_p(own, accuracies),
        group=own,
        accuracies=tuple(accuracies.tolist()),
        nothing=float(nothing.hits.double().mean()),
    )


def largest_part(parts: Mapping[str, Mapping[str, Credit]], how: str) -> str:
    """The part that adds most, in the score's unit, so that it is defined without a gain, too."""
    values = {part: credits[how].value for part, credits in parts.items()}
    return max(values, key=lambda part: -math.inf if (value := values[part]) is None else value)


def _control_credit(
    donor: Evaluation, nothing: Evaluation, control: Evaluation, *, compatible: bool = True
) -> shapley.Credit:
    """Of the gain in accuracy."""
    name, run = "control", frozenset(["control"])
    hits = {frozenset[str](): nothing.hits.numpy(), run: control.hits.numpy()}
    far = [] if compatible else [run]
    shares = attribute(hits, donor.hits.numpy(), donor.scenarios.numpy(), [name], incompatible=far)
    return shares.parts[name][ALONE]


def _over_groups(name: str, credits: Sequence[shapley.Credit]) -> Number:
    """The mean of a value or share; of its bounds those that 95 % of the groups, or all, keep to. None where none has.

    A quantile of 2.5 % lies between draws only from 39 on.
    """
    values = [value for credit in credits if not np.isnan(value := getattr(credit, name))]
    if not values:
        return None
    outside = 0.025 if len(values) >= _DRAWS_FOR_A_RANGE else 0.0
    if name.endswith("low"):
        return float(np.quantile(values, outside))
    return float(np.quantile(values, 1 - outside) if name.endswith("high") else np.mean(values))
