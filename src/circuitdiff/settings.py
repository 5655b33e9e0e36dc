"""The settings of a study, read from YAML. An unknown key is an error, and so is a value that would be converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from circuitdiff.config.reading import read_yaml
from circuitdiff.config.settings import (
    Count,
    CountOrZero,
    Dtype,
    FolderName,
    Gigabytes,
    ModelSettings,
    Name,
    Prompts,
    Seed,
    Settings,
    Share,
)
from circuitdiff.config.validation import validated
from circuitdiff.errors import choices
from circuitdiff.methods.discovery import Plan, Stage
from circuitdiff.stats.selection import Discoveries, TopK


class TaskSettings(Settings):
    """A built-in task, or only its name; options are the arguments of its function in `circuitdiff.tasks`."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _a_lone_text_is_a_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class PromptSettings(Settings):
    """How many prompts each purpose gets; all splits are disjoint."""

    discovery: Prompts = 100
    replication: Prompts = 100  # for stages that want their discoveries replicated
    evaluation: Prompts = 300
    means: Prompts = 300  # their counterfactuals are always unrelated prompts
    queries_per_scenario: Count = 1
    counterfactual: str = "unrelated"  # one of the task's kinds; an unknown one is refused with a list of them


class TopSettings(Settings):
    """The k strongest heads."""

    top: Count

    def rule(self) -> TopK:
        return TopK(self.top)


class DiscoverySettings(Settings):
    """Heads that survive false-discovery control and replicate; see `stats.selection.Discoveries`."""

    error_rate: Share = 0.05
    minimum: float = Field(default=0.0, ge=0)
    method: Literal["bh", "max_t"] = "bh"
    replicated: bool = True
    replication_level: Share = 0.05

    def rule(self) -> Discoveries:
        return Discoveries(self.error_rate, self.minimum, self.method, self.replicated, self.replication_level)


class StageSettings(Settings):
    """One sweep of path patching; see `methods.discovery.Stage`."""

    name: Name
    at: str  # the role at which heads are patched
    via: Literal["q", "k", "v"] | None = None  # of the receivers; None: straight into the logits
    receivers_from: str | None = None  # an earlier stage
    receivers_at: str | None = None  # the role at which receivers read k or v; None: every position
    n_receivers: Count | None = None  # strongest heads that later stages patch into; None: all
    select: TopSettings | DiscoverySettings = Field(default_factory=DiscoverySettings)

    def stage(self) -> Stage:
        return Stage(
            self.name,
            self.at,
            self.select.rule(),
            self.via,
            self.receivers_from,
            self.receivers_at,
            self.n_receivers,
        )


class PlanSettings(Settings):
    """How a circuit is looked for."""

    stages: tuple[StageSettings, ...] = Field(min_length=1)
    metric: Literal["logit_difference", "log_prob", "relative_probability"] = "logit_difference"
    shared_heads: Literal["later", "earlier", "both"] = "later"  # which of two stages at one role keeps a common head

    def plan(self) -> Plan:
        return Plan(tuple(stage.stage() for stage in self.stages), self.metric, self.shared_heads)


class EvaluationSettings(Settings):
    """Every circuit in every model, against random ones."""

    random_circuits: CountOrZero = 100
    random_prompts: Prompts = 100  # random circuits see this many of the evaluation prompts


class StudySettings(Settings):
    """Everything a study depends on."""

    name: FolderName
    base: ModelSettings
    variants: dict[Name, ModelSettings] = Field(default_factory=dict)
    task: TaskSettings
    prompts: PromptSettings = Field(default_factory=PromptSettings)
    circuits: dict[Name, Path] = Field(default_factory=dict)  # circuit files to evaluate beside those that are found
    series: dict[Name, dict[str, Seed]] = Field(default_factory=dict)  # by title: models and their training steps
    plans: dict[Name, PlanSettings] = Field(default_factory=dict)  # empty: the task's own plan
    discover_in: tuple[str, ...] | None = None  # variants whose own circuit is looked for, too; None: all
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    seed: Seed = 0
    dtype: Dtype = "float32"
    device: str = "cpu"  # one of torch's, such as cuda or cuda:1
    executor: Literal["window", "full"] = "window"  # full: the whole model for every run, to compare with
    memory_gb: Gigabytes = 1.0  # for runs at work and kept clean runs, beside the models' weights

    @model_validator(mode="after")
    def _names_differ(self) -> StudySettings:
        if self.base.name in self.variants:
            raise ValueError(f"a variant is called {self.base.name!r}, like the base")
        if strange := set(self.discover_in or ()) - set(self.variants):
            raise ValueError(
                f"discover_in names {min(strange)!r}, no variant of this study{choices(min(strange), self.variants)}"
            )
        if taken := set(self.circuits) & {*self.models, *(f"{self.base.name} ({plan})" for plan in self.plans)}:
            raise ValueError(f"a circuit file is called {min(taken)!r}, like a circuit that is found")
        for title, steps in self.series.items():
            if strange := set(steps) - set(self.models):
                known = choices(min(strange), self.models)
                raise ValueError(f"series {title!r} names {min(strange)!r}, which is no model of this study{known}")
            if len(steps) < 2 or len(set(steps.values())) < len(steps):
                raise ValueError(f"series {title!r} needs two models or more, each at another step")
        return self

    @property
    def searched(self) -> tuple[str, ...]:
        """The variants in which the main plan is run."""
        return tuple(self.variants) if self.discover_in is None else self.discover_in

    @property
    def models(self) -> dict[str, ModelSettings]:
        """The base under its own name, then the variants."""
        return {self.base.name: self.base, **self.variants}


Study = TypeVar("Study", bound=StudySettings)


def read_settings(path: str | Path, kind: type[Study] = StudySettings) -> Study:
    """The study of some kind in a YAML file.

    Raises: InputError naming the key that is unknown, missing or out of range.
    """
    folder = Path(path).parent  # paths are relative to the study that names them
    study = parse_settings(read_yaml(path), str(path), kind, folder)
    variants = {name: model.seen_from(folder) for name, model in study.variants.items()}
    circuits = {name: folder / file for name, file in study.circuits.items()}
    base = study.base.seen_from(folder)
    return study.model_copy(update={"base": base, "variants": variants, "circuits": circuits})


def parse_settings(data: Any, origin: str, kind: type[Study] = StudySettings, folder: Path = Path()) -> Study:
    """Raises: InputError naming the key that is unknown, missing or out of range."""
    return validated(kind, data, origin, folder=folder)
