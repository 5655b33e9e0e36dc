"""The settings of the sections that ask whether the circuit is the circuit."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from circuitdiff.evaluation import Quantity
from circuitdiff.methods.ablations import ABLATIONS, AblationName
from circuitdiff.methods.minimality import MinimalityRule
from circuitdiff.settings import Settings


class MinimalitySettings(Settings):
    """See `MinimalityRule`. The published rule: hits, not held out, ratio, 0.01, and no joint removal."""

    prompts: int = Field(default=200, ge=8)  # half of the scenarios choose, half test
    score: Literal["probability", "hits"] = "probability"
    fraction: float = Field(default=0.3, gt=0, le=1)
    held_out: bool = True
    decision: Literal["credible", "ratio"] = "credible"
    threshold: float = 0.0
    error_rate: float = Field(default=0.05, gt=0, lt=1)
    level: float = Field(default=0.95, gt=0, lt=1)
    joint_removal_of_same_index: bool = True

    def rule(self) -> MinimalityRule:
        return MinimalityRule(**self.model_dump(exclude={"prompts"}))


class CompletenessSettings(Settings):
    """Parts of the circuit are removed from the model and from the circuit; see `methods.completeness`."""

    prompts: int = Field(default=100, ge=2)  # of the evaluation prompts; and as many others for the search
    quantity: Quantity = "probability"
    random_parts: int = Field(default=20, ge=0)
    greedy_steps: int = Field(default=10, ge=0)  # 0: no search
    greedy_candidates: int = Field(default=5, ge=1)
    greedy_prompts: int = Field(default=50, ge=2)


class AblationsSettings(Settings):
    """What everything outside the circuit is replaced with."""

    ablations: tuple[AblationName, ...] = Field(default=ABLATIONS, min_length=1)
    prompts: int | None = Field(default=None, ge=2)  # the first of the evaluation prompts; None: all


class OverlapSettings(Settings):
    """A variant's circuit against the base's."""

    prompts: int = Field(default=100, ge=2)  # of the evaluation prompts; for edges and for what groups do
