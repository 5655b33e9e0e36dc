"""What the verdict is given of a variant: typed numbers, gathered from the sections by `sections/verdict.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from circuitdiff.config.settings import Count
from circuitdiff.evaluation import By
from circuitdiff.study.estimates import Estimate, Ratio
from circuitdiff.study.gains import Credit, GraftControl

Positive = Annotated[float, Field(gt=0)]
RestsOn = Literal["accuracy", "circuits", "functions", "graft", "layers", "cross_model"]  # tables of numbers
Parts = Mapping[str, Mapping[str, Credit]]  # by part, and by how it is credited


@dataclass(frozen=True)
class Thresholds:
    """What counts; stated with every verdict."""

    scenarios: Count = 50  # with fewer nothing is said
    faithful: Positive = 0.8  # least lower bound of a circuit's normalised faithfulness
    too_faithful: Positive = 1.1  # greatest upper bound of it
    margin: Positive = 0.05  # a difference whose interval lies within it is none
    alike: Positive = 0.9  # least lower bound of the correlation of effect maps: they share four fifths of the variance
    share: Annotated[float, Field(gt=0, le=1)] = 0.5  # of the gain: what a part must bring, and no other part may


@dataclass(frozen=True)
class Noted(Estimate):
    """`note`: why it is undefined; `n`: on how many scenarios it was taken, if these are fewer than the others."""

    note: str | None = None
    n: int | None = None


@dataclass(frozen=True)
class CircuitEvidence:
    """Normalised faithfulness of each own circuit under one ablation; and of the base's in the variant less its own."""

    base_own: Noted | None = None
    variant_own: Noted | None = None
    transfer: Noted | None = None
    transfer_where_only_variant_right: Noted | None = None


@dataclass(frozen=True)
class SimilarityEvidence:
    """How alike two models' effects at a stage are: their correlation, corrected for the noise of both maps; and the
    base's with another stage of the variant. None where the stage could not be run in the variant.
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
class GraftEvidence:
    """By part, and by range of layers, what its weights bring; controls by part and name.

    `also_touched`: by part how many query heads beyond its own its keys and values serve.
    """

    parts: Parts
    controls: Mapping[str, Mapping[GraftControl, Credit]] = field(default_factory=dict)
    also_touched: Mapping[str, int] = field(default_factory=dict)
    layers: Parts = field(default_factory=dict)


class Measured(NamedTuple):
    """On what a claim's numbers were taken."""

    scope: str
    n_scenarios: int


@dataclass(frozen=True)
class Evidence:
    """What was measured of a variant. `donor`: which model is asked for what it has more, the variant unless it is
    significantly worse. `failed_checks`: None if none was run. `unknown`: groups that carry nothing that was asked for.
    `moved`: whether other heads have the groups' own profiles, seen on so many scenarios. `measured`: by what a claim
    rests on, its own prompts, where these are not the gain's.
    """

    base: str
    variant: str
    donor: str
    scope: str
    failed_checks: Sequence[str] | None
    gain: Estimate | None
    n_scenarios: int
    circuits: Mapping[By, CircuitEvidence] = field(default_factory=dict)
    similarity: Sequence[SimilarityEvidence] = ()
    moved: bool = False
    n_scenarios_moved: int = 0
    functions: Sequence[FunctionEvidence] = ()
    unknown: Sequence[str] = ()
    patched: Parts = field(default_factory=dict)
    graft: GraftEvidence | None = None
    measured: Mapping[str, Measured] = field(default_factory=dict)

    @property
    def lacks(self) -> bool:
        """The variant is the worse one: what does the base have more?"""
        return self.donor == self.base
