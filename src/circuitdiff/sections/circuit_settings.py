"""The settings of the sections that ask whether the circuit is the circuit."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from circuitdiff.config.settings import Count, CountOrZero, Prompts, Settings, Share
from circuitdiff.evaluation import Quantity
from circuitdiff.methods.ablations import ABLATIONS, AblationName
from circuitdiff.methods.minimality import MinimalityRule


class MinimalitySettings(Settings):
    """See `MinimalityRule`. The published rule: hits, not held out, ratio, 0.01, and no joint removal."""

    prompts: int = Field(default=200, ge=8, le=100_000)  # half of the scenarios choose, half test
    score: Literal["probability", "hits"] = "probability"
    fraction: float = Field(default=0.3, gt=0, le=1)
    held_out: bool = True
    decision: Literal["credible", "ratio"] = "credible"
    threshold: float = 0.0
    error_rate: Share = 0.05
    level: Share = 0.95
    joint_removal_of_same_index: bool = True

    def rule(self) -> MinimalityRule:
        return MinimalityRule(**self.model_dump(exclude={"prompts"}))


class CompletenessSettings(Settings):
    """Parts of the circuit are removed from the model and from the circuit; see `methods.completeness`."""

    prompts: Prompts = 100  # of the evaluation prompts; and as many others for the search
    quantity: Quantity = "probability"
    random_parts: CountOrZero = 20
    greedy_steps: CountOrZero = 10  # 0: no search
    greedy_candidates: Count = 5
    greedy_prompts: Prompts = 50


class AblationsSettings(Settings):
    """What everything outside the circuit is replaced with."""

    ablations: tuple[AblationName, ...] = Field(default=ABLATIONS, min_length=1)
    prompts: Prompts | None = None  # the first of the evaluation prompts; None: all


class OverlapSettings(Settings):
    """A variant's circuit against the base's."""

    prompts: Prompts = 100  # of the evaluation prompts; for edges and for what groups do
