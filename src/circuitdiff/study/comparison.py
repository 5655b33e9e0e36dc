"""Studies of what a command names, models and a task, as a file that can be edited and run again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from circuitdiff.cache.files import write_whole
from circuitdiff.config.names import file_name
from circuitdiff.config.reading import split_adapters
from circuitdiff.errors import InputError
from circuitdiff.models.family_registry import member_of
from circuitdiff.study.registry import SECTIONS, parse_study
from circuitdiff.study.runner import plan_study
from circuitdiff.study.settings import CommonSettings, PromptSettings
from circuitdiff.study.sizes import first_look
from circuitdiff.study.workers import Monitor
from circuitdiff.tasks import is_task_file
from circuitdiff.tasks.chat import AUTO, OFF

STUDY_FILE = "study.yaml"


def comparison(
    base: str,
    variants: Sequence[str],
    task: str,
    *,
    quick: bool = False,
    minutes: float | None = None,
    monitor: Monitor = lambda *_: None,
    n_workers: int = 1,
    **settings: Any,
) -> CommonSettings:
    """The study that asks every section of the models; `quick`: a first look; `minutes`: as much as that allows.

    `settings`: others of a study, such as `chat`, `dtype`, `device` and `force`.

    Models are sources that `load_model` takes, SOURCE+ADAPTER merges an adapter; a task is a name or a file.

    Raises: InputError if there is no variant, a model or the task cannot be read, or the task has no plan.
    """
    if not variants:
        raise InputError("expected a base and at least one variant to compare it with; got a base only")
    names = _names([base, *variants])
    name, by_name = file_name(f"{names[0]}-{Path(task).stem}"), dict(zip(names[1:], variants, strict=True))
    study = parse_study({"name": name, "base": base, "variants": by_name, "task": task, **settings}, "compare")
    if quick:
        return first_look(study)
    return study if minutes is None else plan_study(study, monitor, n_workers, minutes)[0]


def location(
    model: str, task: str, *, n_prompts: int, seed: int = 0, roles: Sequence[str] = (), **settings: Any
) -> CommonSettings:
    """The study that asks of one model where it does the task, and nothing else.

    Raises: InputError as `comparison`.
    """
    [name] = _names([model])
    asked = {
        "name": file_name(f"{name}-{Path(task).stem}-locate"),
        "base": model,
        "task": task,
        "seed": seed,
        "prompts": {"evaluation": n_prompts},
        **{each.name: False for each in SECTIONS if each.options is not None},
        "locate": {"prompts": n_prompts, "roles": list(roles)},
    }
    return parse_study({**asked, **settings}, "locate")


def write_study(settings: CommonSettings, folder: Path) -> Path:
    """The study as a YAML file in the folder, with paths as seen from there and without what is a default anyway."""
    models, task = {name: _model(model, folder) for name, model in settings.models.items()}, settings.task
    plain = {"name": settings.name, "base": settings.base.model_dump(), "task": settings.task.model_dump()}
    default = parse_study(plain, "defaults").model_dump(mode="json")
    default["prompts"] = PromptSettings().model_dump(mode="json")
    written = {
        "name": settings.name,
        "base": models.pop(settings.base.name),
        "variants": models,
        "task": {**task.model_dump(), "name": _path(task.name, folder, is_task_file(task.name))},
    }
    if settings.chat not in (OFF, AUTO):
        written["chat"] = _path(settings.chat, folder, True)
    rest = {name: value for name, value in settings.model_dump(mode="json").items() if name not in written}
    written |= {name: changed for name, value in rest.items() if (changed := _changed(value, default[name])) != {}}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / STUDY_FILE, yaml.safe_dump(written, sort_keys=False, width=110).encode())
    return folder / STUDY_FILE


def _changed(value: Any, default: Any) -> Any:
    """What differs from the default; {} for nothing."""
    if isinstance(value, dict) and isinstance(default, dict):
        inner = {name: _changed(each, default.get(name)) for name, each in value.items()}
        return {name: each for name, each in inner.items() if each != {}}
    return {} if value == default else value


def _names(models: Sequence[str]) -> list[str]:
    """What each is called: the last part of its source or last adapter, with a number where two would be alike."""
    names: list[str] = []
    for model in models:
        stem = Path(split_adapters(model)[-1]).expanduser().name or model
        numbered = (stem if i == 1 else f"{stem}-{i}" for i in range(1, len(models) + 1))
        names.append(next(name for name in numbered if name not in names))
    return names


def _model(model: Any, folder: Path) -> Any:
    named = (model.source, *model.adapters)
    sources = [_path(each, folder, os.path.exists(each) and member_of(each) is None) for each in named]
    return {"source": sources[0], **({"adapters": sources[1:]} if sources[1:] else {})}


def _path(named: str, folder: Path, is_path: bool) -> str:
    if not is_path:
        return named
    seen = os.path.relpath(Path(named).expanduser(), folder)
    return seen if seen.startswith(".") else f"./{seen}"
