"""What the verdict is given of a variant: typed numbers, gathered from the sections by `sections/verdict.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from circuitdiff.config.settings import Count, Share
from circuitdiff.evaluation import By
from circuitdiff.study.estimates import Estimate, Ratio
from circuitdiff.study.gains import ControlResult, Credit, GraftControl

Positive = Annotated[float, Field(gt=0)]
RestsOn = Literal["accuracy", "circuits", "functions", "graft", "layers", "cross_model"]  # tables of numbers
Judged = Literal["accuracy", "logit_difference"]  # the scores that a verdict judges; accuracy saturates, the other not
JUDGED: tuple[Judged, ...] = ("accuracy", "logit_difference")
Parts = Mapping[str, Mapping[str, Credit]]  # by part, and by how it is credited


@dataclass(frozen=True)
class Thresholds:
    """What counts, one margin for each scale; stated with every verdict. docs/verdict.md gives the reasons."""

    scenarios: Count = 50  # with fewer nothing is said
    faithful: Positive = 0.8  # least lower bound of a circuit's normalised faithfulness
    too_faithful: Positive = 1.1  # greatest upper bound of it
    accuracy: Share = 0.05  # a difference of two accuracies that lies within it is none
    faithfulness: Share = 0.1  # the same of two normalised faithfulnesses
    alike: Share = 0.9  # least correlation of effect maps, corrected for noise: they share four fifths of the variance
    stable: Share = 0.8  # least Jaccard index of a stage's heads with those that resampled scenarios choose
    gap: Share = 0.1  # what a model may keep without a group of heads that its circuit loses, in probability
    share: Annotated[float, Field(gt=0, le=1)] = 0.5  # of the gain: what is sufficient, or necessary
    nothing: Share = 0.2  # of the gain: a part whose shares surely lie within it did not improve


@dataclass(frozen=True)
class Noted(Estimate):
    """`note`: why it is undefined; `n`: on how many scenarios it was taken, if these are fewer than the others."""

    note: str | None = None
    n: int | None = None


@dataclass(frozen=True)
class Ability:
    """How well a model does the task, and what picking any of the listed answers scores (`guessing`)."""

    accuracy: Estimate
    logit_difference: Estimate
    guessing: float

    @property
    def does_it(self) -> bool:
        """Surely better than guessing, or surely with right answers before wrong ones."""
        hits, logits = self.accuracy.low, self.logit_difference.low
        return (hits is not None and hits > self.guessing) or (logits is not None and logits > 0)


@dataclass(frozen=True)
class Behaviour:
    """What both models do, and the variant less the base on the same prompts."""

    base: Ability
    variant: Ability
    accuracy: Estimate
    logit_difference: Estimate


@dataclass(frozen=True)
class CircuitEvidence:
    """Normalised faithfulness of each own circuit, of one score under one ablation; and, in the variant, of the base's
    circuit less its own.
    """

    by: By
    score: Judged
    base_own: Noted | None = None
    variant_own: Noted | None = None
    transfer: Noted | None = None
    transfer_where_only_variant_right: Noted | None = None  # of accuracy only


@dataclass(frozen=True)
class TransferEvidence:
    """Differences in accuracy on the same prompts, under one ablation, circuits alone.

    In the variant: the base's circuit less the whole base, and less the variant's own circuit; both circuits together
    less the base's; the variant's further heads alone less nothing at all. In the base: the variant's circuit less the
    whole base. `faithful` is no difference: normalised faithfulness of the base's circuit in the variant.
    """

    by: By
    over_base: Estimate
    faithful: Noted
    over_own: Estimate | None = None  # this and those below None: the variant has no circuit of its own
    reverse: Estimate | None = None
    extras_add: Estimate | None = None  # None, too: the variant's circuit has no further heads
    extras_alone: Estimate | None = None


@dataclass(frozen=True)
class GapEvidence:
    """What a model keeps without a group of heads, less what its circuit keeps."""

    model: str
    group: str
    difference: Estimate


@dataclass(frozen=True)
class RivalEvidence:
    """A model's own circuit less a second one: as many other heads, chosen while the circuit is held; in accuracy."""

    model: str
    difference: Noted


@dataclass(frozen=True)
class StabilityEvidence:
    """How like a stage's heads are those that resampled scenarios choose: Jaccard's index."""

    model: str
    stage: str
    jaccard: Estimate


@dataclass(frozen=True)
class NeededHeads:
    """How many heads are needed in each own circuit; and those that are in one, and surely not in the other."""

    base: int
    variant: int
    opposed: tuple[str, ...]


@dataclass(frozen=True)
class SimilarityEvidence:
    """How alike two models' effects at a stage are, corrected for the noise of both maps; and the base's
    largest likeness with another stage of the variant.

    `likeness` is None for a stage that could not be run in the variant.
    """

    stage: str
    likeness: Ratio | None = None
    different: Ratio | None = None


@dataclass(frozen=True)
class FunctionEvidence:
    """The base's mask of a group in the variant: less the variant's own, and above the floors; was one trained?"""

    group: str
    desideratum: str
    difference: Noted | Estimate | None
    above_floor: Noted | Estimate | None
    trained: bool


@dataclass(frozen=True)
class PartsEvidence:
    """By score, what each part of a division brings alone and costs when left out.

    `unchanged`: parts that are the same in both models. `controls`: by part and name, in accuracy. `also_touched`: by
    part, how many query heads beyond its own its keys and values serve.
    """

    scores: Mapping[Judged, Parts]
    unchanged: Sequence[str] = ()
    controls: Mapping[str, Mapping[GraftControl, ControlResult]] = field(default_factory=dict)
    also_touched: Mapping[str, int] = field(default_factory=dict)


class Measured(NamedTuple):
    """On what a claim's numbers were taken."""

    scope: str
    n_scenarios: int


@dataclass(frozen=True)
class Evidence:
    """What was measured of a variant. `donor`: which model is asked for what it has more, the variant unless it is
    significantly worse. `failed_checks`: None if none was run. `switched_off`: sections that the study leaves out.
    `unknown`: groups that carry nothing that was asked for. `moved`: whether other heads have the groups' own profiles,
    seen on so many scenarios. `searched`: the models whose own circuit was looked for; None: both. `measured`: by what
    a claim rests on, its own prompts, where these are not the gain's.
    """

    base: str
    variant: str
    donor: str
    scope: str
    failed_checks: Sequence[str] | None
    behaviour: Behaviour
    n_scenarios: int
    switched_off: frozenset[str] = frozenset()
    searched: Sequence[str] | None = None
    circuits: Sequence[CircuitEvidence] = ()
    transfers: Sequence[TransferEvidence] = ()
    gaps: Sequence[GapEvidence] = ()
    rivals: Sequence[RivalEvidence] = ()
    stability: Sequence[StabilityEvidence] = ()
    needed: NeededHeads | None = None
    similarity: Sequence[SimilarityEvidence] = ()
    moved: bool = False
    n_scenarios_moved: int = 0
    functions: Sequence[FunctionEvidence] = ()
    unknown: Sequence[str] = ()
    patched: PartsEvidence | None = None
    graft: PartsEvidence | None = None
    layers: PartsEvidence | None = None
    measured: Mapping[str, Measured] = field(default_factory=dict)

    @property
    def with_circuit(self) -> Sequence[str]:
        """The models whose own circuit was looked for."""
        return (self.base, self.variant) if self.searched is None else self.searched

    @property
    def lacks(self) -> bool:
        """The variant is the worse one: what does the base have more?"""
        return self.donor == self.base
