"""The settings of a study, read from YAML. An unknown key is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from circuitdiff.discovery import Plan, Stage
from circuitdiff.errors import InputError
from circuitdiff.selection import Discoveries, TopK


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(Settings):
    """Where a model comes from: a source and adapters, merged in order; or a recipe, which makes it when needed.

    Paths are relative to the YAML file that names them; a folder without a slash is written ./folder.
    """

    source: str = ""
    adapters: tuple[str, ...] = ()
    recipe: Path | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSettings:
        if bool(self.source) == (self.recipe is not None) or (self.recipe and self.adapters):
            raise ValueError("give a model either a source (with adapters) or a recipe")
        return self

    @property
    def name(self) -> str:
        """What it is called unless the study says so."""
        return Path(self.source).name if self.recipe is None else self.recipe.stem

    def seen_from(self, folder: Path) -> ModelSettings:
        """The same with its paths, which are relative to the file in `folder` that names them, as seen from here."""
        if self.recipe is not None:
            return self.model_copy(update={"recipe": folder / self.recipe})
        adapters = tuple(_place(folder, adapter) for adapter in self.adapters)
        return self.model_copy(update={"source": _place(folder, self.source), "adapters": adapters})

    @model_validator(mode="before")
    @classmethod
    def _a_lone_name_is_a_source(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class TaskSettings(Settings):
    """A built-in task; options are the arguments of its function in `circuitdiff.tasks`."""

    name: str = "entity_tracking"
    options: dict[str, Any] = Field(default_factory=dict)


class PromptSettings(Settings):
    """How many prompts each purpose gets; all splits are disjoint."""

    discovery: int = Field(default=100, ge=2)
    replication: int = Field(default=100, ge=2)  # for stages that want their discoveries replicated
    evaluation: int = Field(default=300, ge=2)
    means: int = Field(default=300, ge=2)  # their counterfactuals are always unrelated prompts
    queries_per_scenario: int = Field(default=1, ge=1)
    counterfactual: str = "unrelated"  # one of the task's kinds; an unknown one is refused with a list of them


class TopSettings(Settings):
    """The k strongest heads."""

    top: int = Field(ge=1)

    def rule(self) -> TopK:
        return TopK(self.top)


class DiscoverySettings(Settings):
    """Heads that survive false-discovery control and replicate; see `selection.Discoveries`."""

    error_rate: float = Field(default=0.05, gt=0, lt=1)
    minimum: float = Field(default=0.0, ge=0)
    method: Literal["bh", "max_t"] = "bh"
    replicated: bool = True
    replication_level: float = Field(default=0.05, gt=0, lt=1)

    def rule(self) -> Discoveries:
        return Discoveries(self.error_rate, self.minimum, self.method, self.replicated, self.replication_level)


class StageSettings(Settings):
    """One sweep of path patching; see `discovery.Stage`."""

    name: str
    at: str  # the role at which heads are patched
    via: Literal["q", "k", "v"] | None = None  # of the receivers; None: straight into the logits
    receivers_from: str | None = None  # an earlier stage
    receivers_at: str | None = None  # the role at which receivers read k or v; None: every position
    n_receivers: int | None = Field(default=None, ge=1)  # strongest heads that later stages patch into; None: all
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

    random_circuits: int = Field(default=100, ge=0)
    random_prompts: int = Field(default=100, ge=2)  # random circuits see this many of the evaluation prompts


class StudySettings(Settings):
    """Everything a study depends on."""

    name: str
    base: ModelSettings
    variants: dict[str, ModelSettings] = Field(default_factory=dict)
    task: TaskSettings = Field(default_factory=TaskSettings)
    prompts: PromptSettings = Field(default_factory=PromptSettings)
    circuits: dict[str, Path] = Field(default_factory=dict)  # circuit files to evaluate beside those that are found
    series: dict[str, dict[str, int]] = Field(default_factory=dict)  # by title: models and their training steps
    plans: dict[str, PlanSettings] = Field(default_factory=dict)  # empty: the task's own plan
    discover_in: tuple[str, ...] | None = None  # variants whose own circuit is looked for, too; None: all
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    seed: int = 0
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    device: str = "cpu"  # one of torch's, such as cuda or cuda:1
    executor: Literal["window", "full"] = "window"  # full: the whole model for every run, to compare with
    memory_gb: float = Field(default=1.0, gt=0)  # for runs at work and kept clean runs, beside the models' weights

    @model_validator(mode="after")
    def _names_differ(self) -> StudySettings:
        if self.base.name in self.variants:
            raise ValueError(f"a variant is called {self.base.name!r}, like the base")
        if strange := set(self.discover_in or ()) - set(self.variants):
            raise ValueError(f"discover_in names {sorted(strange)[0]!r}, which is no variant of this study")
        if taken := set(self.circuits) & {*self.models, *(f"{self.base.name} ({plan})" for plan in self.plans)}:
            raise ValueError(f"a circuit file is called {min(taken)!r}, like a circuit that is found")
        for title, steps in self.series.items():
            if strange := set(steps) - set(self.models):
                raise ValueError(f"series {title!r} names {min(strange)!r}, which is no model of this study")
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
    study = parse_settings(read_yaml(path), str(path), kind)
    folder = Path(path).parent  # paths are relative to the study that names them
    variants = {name: model.seen_from(folder) for name, model in study.variants.items()}
    circuits = {name: folder / file for name, file in study.circuits.items()}
    base = study.base.seen_from(folder)
    return study.model_copy(update={"base": base, "variants": variants, "circuits": circuits})


def _place(folder: Path, named: str) -> str:
    """A path as seen from here; a hub id or a lone name, which may be a family member's, stays what it is.

    A path begins with a dot, ends with .gguf, or holds a slash and is there beside the file.
    """
    is_path = named.startswith(".") or named.endswith(".gguf") or ("/" in named and (folder / named).exists())
    return str(folder / named) if is_path and not named.startswith("~") else named


def read_yaml(path: str | Path) -> Any:
    """Raises: InputError if the file is missing or not YAML."""
    try:
        return yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def parse_settings(data: Any, origin: str, kind: type[Study] = StudySettings) -> Study:
    """Raises: InputError naming the key that is unknown, missing or out of range."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InputError(f"{origin}: {where}: {first['msg']}; got {str(first['input'])[:80]!r}{more}") from error
