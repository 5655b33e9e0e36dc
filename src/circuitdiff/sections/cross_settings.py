"""The settings of the sections that ask which part got better, and of the verdict."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from circuitdiff.config.settings import Count, CountOrZero, Prompts, Settings
from circuitdiff.methods.cross_model import Carrier, Limits
from circuitdiff.verdict import Thresholds

Projections = Literal["q", "k", "v", "o"]


class CrossModelSettings(Settings):
    """Cross-model activation patching of every subset of a circuit's groups."""

    prompts: Prompts = 200  # of the evaluation prompts
    what: tuple[Carrier, ...] = Field(default=("z", "contribution"), min_length=1)
    both_directions: bool = True
    heads: bool = True  # also the single heads of the group with the largest share, if there is a gain
    random_groups: CountOrZero = 100  # 0: no controls
    control_prompts: Prompts = 100
    without_gain: Prompts = 100  # prompts for pairs of models of which none is surely better
    null_donors: tuple[str, ...] = ()  # variants that did not improve
    distance: float = Field(default=Limits().distance, gt=0)
    turned: float = Field(default=Limits().turned, gt=0)

    @property
    def limits(self) -> Limits:
        return Limits(self.distance, self.turned)


class GraftSettings(Settings):
    """Weight grafting of a circuit's groups and of the rest of the model by kind.

    Questions about one scenario share the run of what they have in common, so several cost little more than one.
    """

    prompts: Prompts = 200  # questions about the first evaluation scenarios
    queries_per_scenario: Count | None = None  # None: the study's; a verdict needs 50 scenarios
    projections: tuple[Projections, ...] = Field(default=("q", "k", "v", "o"), min_length=1)
    heads: bool = False  # also the single heads of the group with the largest share
    layers: tuple[int, ...] | None = None  # also ranges of layers, beginning here; None: halves; (): none
    random_groups: CountOrZero = 10  # 0: no controls, so no part is called improved
    control_prompts: Prompts = 100
    without_gain: Prompts = 100  # prompts for pairs of models of which none is surely better


class KnockoutSettings(Settings):
    """Attention knockout; without roles, at the circuit's roles and the last token."""

    prompts: Prompts = 200  # of the evaluation prompts
    roles: tuple[str, ...] = ()  # of the matrix
    curves: tuple[tuple[str, str], ...] | None = None  # (query, key); default: the matrix's pairs
    layer_step: Count = 2
    single_layers: bool = False  # curves of single layers instead of from a layer upward
    query_roles: tuple[str, ...] | None = None  # no random key is there; None: those of the task's question
    margin: float = Field(default=0.05, gt=0)  # a loss of accuracy surely below it is none


class VerdictSettings(Settings):
    """See `verdict.Thresholds`."""

    scenarios: Prompts = 50
    faithful: float = Field(default=0.8, gt=0)
    too_faithful: float = Field(default=1.1, gt=0)
    margin: float = Field(default=0.05, gt=0)
    share: float = Field(default=0.5, gt=0, le=1)

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(**self.model_dump())
