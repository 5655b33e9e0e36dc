"""The settings of the section that asks what each group encodes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from circuitdiff.config.settings import Count, CountOrZero, Gigabytes, Prompts, Settings
from circuitdiff.methods.component_mask import MaskOptions, Training
from circuitdiff.methods.component_mask.patching import MEMORY_GB

FILE = ".jsonl"  # how a desideratum is named that is a file of triples


Penalty = Annotated[float, Field(ge=0, le=1e6)]


class SweepSettings(Settings):
    """One group gets several seeds, and several penalties: the trade-off of heads against accuracy."""

    group: str | None = None  # None: the circuit's first
    penalties: tuple[Penalty, ...] = (0.002, 0.005, 0.05, 0.1, 0.2)
    seeds: Count = 3


class RedrawSettings(Settings):
    """Activation patching of the found heads with source prompts drawn anew, for test triples."""

    times: CountOrZero = 10
    triples: Prompts = 40


class FunctionSettings(Settings):
    """See `MaskOptions` and `Training`; here one seed unless swept, and fewer random groups and control triples.

    The paper's sizes are train 1000, validation 500, test 500.
    """

    desiderata: tuple[str, ...] | None = Field(default=None, min_length=1)  # names, or JSONL files; None: the main ones
    circuits: tuple[str, ...] | None = None  # found ones go by their model's name; None: every model's own
    models: tuple[str, ...] | None = None  # of the study; None: all
    further: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # by group: more, in the circuit's own model
    train: Count = 300
    validation: Count = 150
    test: Prompts = 300
    penalty: Penalty = 0.02
    loss: Literal["cross_entropy", "target_logit"] = "cross_entropy"
    gates: Literal["clamped", "hard_concrete"] = "clamped"
    steps: Count | None = None  # at most; None: 40, or 60 for hard-concrete gates
    prompts_per_step: Count = 32
    positions_per_step: Count = 224
    learning_rate: float = Field(default=0.1, gt=0)
    check_every: Count = 5
    patience: Count | None = None  # None: 3, or 8 for hard-concrete gates
    minimum: float = Field(default=0.05, ge=0)  # a group carries what lifts accuracy by so much above the floor, surely
    random_groups: CountOrZero = 3
    control_triples: Count = 100  # of the test triples
    sweep: SweepSettings | Literal[False] | None = Field(default_factory=SweepSettings)  # false or null: none
    redraw: RedrawSettings = Field(default_factory=RedrawSettings)
    memory_gb: Gigabytes = MEMORY_GB  # for the base prompts' clean runs; what does not fit runs anew

    def options(self, seed: int, *, swept: bool) -> MaskOptions:
        sweep = self.sweep if swept else None
        return MaskOptions(
            n_triples=(self.train, self.validation, self.test),
            penalty=self.penalty,
            minimum=self.minimum,
            other_penalties=sweep.penalties if sweep else (),
            n_seeds=sweep.seeds if sweep else 1,
            seed=seed,
            n_random=self.random_groups,
            control_triples=self.control_triples,
            training=Training(
                loss=self.loss,
                gates=self.gates,
                n_steps=self.steps,
                prompts_per_step=self.prompts_per_step,
                positions_per_step=self.positions_per_step,
                learning_rate=self.learning_rate,
                check_every=self.check_every,
                patience=self.patience,
            ),
        )
