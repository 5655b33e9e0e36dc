"""The settings that all sections of a study share, read from YAML. `registry.StudySettings` adds those of sections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, model_validator

from circuitdiff.config.settings import (
    Count,
    Dtype,
    FolderName,
    Gigabytes,
    ModelSettings,
    Name,
    Prompts,
    Seed,
    Settings,
)
from circuitdiff.config.validation import validated
from circuitdiff.errors import choices, naming
from circuitdiff.methods.auto_plan import AutoPlan
from circuitdiff.methods.discovery import Plan
from circuitdiff.tasks import Task, get_task, is_task_file
from circuitdiff.tasks.chat import AUTO, OFF


def _check_device(name: str) -> str:
    try:
        torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"expected one of torch's devices, such as cpu, cuda or cuda:1; got {name!r}") from error
    return name


def _as_several(value: Any) -> Any:
    """A lone name is a list of one."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _check_one_kind(names: tuple[str, ...]) -> tuple[str, ...]:
    """Numbers of two kinds of devices differ in their last digits, and records do not say which computed them."""
    if len(kinds := {torch.device(name).type for name in names}) > 1:
        raise ValueError(f"expected devices of one kind; got {' and '.join(sorted(kinds))}")
    return names


Device = Annotated[str, AfterValidator(_check_device)]
Devices = Annotated[
    tuple[Device, ...], BeforeValidator(_as_several), Field(min_length=1), AfterValidator(_check_one_kind)
]


class TaskSettings(Settings):
    """A built-in task, or the path of a task file; a lone text will do. Options are those that its file names."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _a_lone_text_is_a_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def seen_from(self, folder: Path) -> TaskSettings:
        """The same with a path, which is relative to the file in `folder` that names it, as seen from here."""
        if not is_task_file(self.name) or self.name.startswith("~"):
            return self
        return self.model_copy(update={"name": str(folder / self.name)})


class AskedModel(ModelSettings):
    """A model of a study. `chat`: what stands before its prompts, where this is not the study's `chat`."""

    chat: str | None = None

    def seen_from(self, folder: Path) -> AskedModel:
        """The same with its paths, which are relative to the file in `folder` that names them, as seen from here."""
        chat = self.chat and chat_seen_from(self.chat, folder)
        return AskedModel(**{**super().seen_from(folder).model_dump(), "chat": chat})


def chat_seen_from(chat: str, folder: Path) -> str:
    return chat if chat in (OFF, AUTO) else str(folder / Path(chat).expanduser())


PURPOSES = ("discovery", "replication", "evaluation", "means")
SPLIT_OF = {"means": "mask"}  # the task's name of a split, where it is another


class PromptSettings(Settings):
    """How many prompts each purpose gets, or one number for all; splits are disjoint. No section takes more."""

    discovery: Prompts = 100
    replication: Prompts = 100  # for stages that want their discoveries replicated
    evaluation: Prompts = 300
    means: Prompts = 300  # their counterfactuals are always of the task's first kind
    queries_per_scenario: Count = 1
    counterfactual: str | None = None  # one of the task's kinds; None: its first

    @model_validator(mode="before")
    @classmethod
    def _a_lone_number_is_for_all(cls, value: Any) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        return dict.fromkeys(PURPOSES, value)


AnyPlan = Plan | AutoPlan | Literal["auto"]


class CommonSettings(Settings):
    """What a study depends on beside the settings of its sections."""

    name: FolderName
    base: AskedModel
    variants: dict[Name, AskedModel] = Field(default_factory=dict)
    task: TaskSettings
    prompts: PromptSettings = Field(default_factory=PromptSettings)
    circuits: dict[Name, Path] = Field(default_factory=dict)  # circuit files to evaluate beside those that are found
    series: dict[Name, dict[str, Seed]] = Field(default_factory=dict)  # by title: models and their training steps
    plans: dict[Name, AnyPlan] = Field(default_factory=dict)  # empty: the task's own plan
    discover_in: tuple[str, ...] | None = None  # variants whose own circuit is looked for, too; None: all
    chat: str = OFF  # a chat template before each prompt: off, auto (the tokenizer's own), or the path of one
    force: bool = False  # go on though the base does not do the task
    seed: Seed = 0
    dtype: Dtype = "float32"
    device: Devices = ("cpu",)  # of torch's, such as cuda:1; a lone one will do; of several, each worker gets one
    executor: Literal["window", "full"] = "window"  # full: the whole model for every run, to compare with
    memory_gb: Gigabytes = 1.0  # for runs at work and kept clean runs, beside the models' weights; of each worker

    @model_validator(mode="after")
    def _names_differ(self) -> CommonSettings:
        if self.base.name in self.variants:
            raise ValueError(f"a variant is called {self.base.name!r}, like the base")
        if unknown := set(self.discover_in or ()) - set(self.variants):
            raise ValueError(
                f"discover_in names {min(unknown)!r}, no variant of this study{choices(min(unknown), self.variants)}"
            )
        of_plans = {f"{self.base.name} ({plan})" for plan in self.plans}
        if taken := set(self.circuits) & {*self.models, *of_plans}:
            raise ValueError(f"a circuit file is called {min(taken)!r}, like a circuit that is found")
        if taken := set(self.variants) & of_plans:
            raise ValueError(f"a variant is called {min(taken)!r}, like a circuit of the base")
        for title, steps in self.series.items():
            if unknown := set(steps) - set(self.models):
                models = choices(min(unknown), self.models)
                raise ValueError(f"series {title!r} names {min(unknown)!r}, which is no model of this study{models}")
            if len(steps) < 2 or len(set(steps.values())) < len(steps):
                raise ValueError(f"series {title!r} needs two models or more, each at another step")
        return self

    def chat_of(self, model: str) -> str:
        own = self.models[model].chat
        return self.chat if own is None else own

    @property
    def searched(self) -> tuple[str, ...]:
        """The models in which the main plan is run, the base first. A model's main circuit goes by its name."""
        return self.base.name, *(self.variants if self.discover_in is None else self.discover_in)

    @property
    def models(self) -> dict[str, AskedModel]:
        return {self.base.name: self.base, **self.variants}


class _Plans(Settings):
    plans: dict[Name, AnyPlan]


def task_of(settings: CommonSettings) -> Task:
    """Raises: InputError if there is no such task, or it takes no such options."""
    return get_task(settings.task.name, **settings.task.options)


def plans_of(settings: CommonSettings) -> dict[str, Plan | AutoPlan]:
    """The study's plans, or the task's own; the first one is the main plan.

    Raises: InputError if a plan names a role that the task lacks.
    """
    task = task_of(settings)
    return checked_plans(settings.plans, task) if settings.plans else own_plans(task)


def own_plans(task: Task) -> dict[str, Plan | AutoPlan]:
    """The plans of a task's file. Raises: InputError if one is not a plan, or names a role that the task lacks."""
    return checked_plans(validated(_Plans, {"plans": task.plans}, f"task {task.name}").plans, task)


def checked_plans(plans: Mapping[str, AnyPlan], task: Task) -> dict[str, Plan | AutoPlan]:
    whole = {name: AutoPlan() if plan == "auto" else plan for name, plan in plans.items()}
    for name, plan in expected(whole, task).items():
        with naming(f"plans.{name}"):
            plan.check(task.roles)
    return whole


def expected(plans: Mapping[str, Plan | AutoPlan], task: Task) -> dict[str, Plan]:
    """With the stages that automatic plans are expected to find, by which they are checked and reckoned."""
    return {name: plan if isinstance(plan, Plan) else plan.expected(task.roles) for name, plan in plans.items()}


def plan_file(name: str, plan: Plan) -> bytes:
    """A plan as it stands in a study's file, without what is a default anyway."""
    written = TypeAdapter(Plan).dump_python(plan, mode="json", exclude_defaults=True)
    return yaml.safe_dump({"plans": {name: written}}, sort_keys=False, width=110).encode()
