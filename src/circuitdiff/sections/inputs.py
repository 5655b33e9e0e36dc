"""All that a finished study depends on: if nothing of it has changed, there is nothing to run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitdiff import results as form
from circuitdiff.cache.code_digest import digest_of_code
from circuitdiff.config.settings import ModelSettings
from circuitdiff.finetune.recipes import is_made, made_by
from circuitdiff.models.origins import origin_of
from circuitdiff.sections.functions_settings import FILE
from circuitdiff.sections.whole_study import WholeStudy


def files_of(study: WholeStudy) -> dict[str, Any]:
    """Settings, versions, our own code, and the files of circuits and triples."""
    return {
        "settings": study.model_dump(mode="json"),
        "versions": form.versions(),
        "code": digest_of_code(),
        "circuits": {name: _digest(Path(path)) for name, path in study.circuits.items()},
        "triples": {path: _digest(Path(path)) for path in _files_of_triples(study)},
    }


def inputs_of(study: WholeStudy, files: Mapping[str, Any]) -> dict[str, Any] | None:
    """`files`, as they were when the study began, and those of the models; None if a model is not there yet.

    Raises: InputError if a model's package, adapter or recipe cannot be read.
    """
    origins = {name: _origin(model) for name, model in study.models.items()}
    return None if None in origins.values() else {**files, "models": origins}


def _files_of_triples(study: WholeStudy) -> list[str]:
    if not study.functions:
        return []
    wanted = [study.functions.desiderata or (), *study.functions.further.values()]
    return sorted({name for names in wanted for name in names if name.endswith(FILE)})


def _origin(model: ModelSettings) -> list[Any] | None:
    if model.recipe is None:
        tokenizer = [] if model.tokenizer is None else origin_of(model.tokenizer)
        origin = origin_of(model.source, model.adapters)
        return None if origin is None or tokenizer is None else [*origin, *tokenizer]
    return origin_of(*made_by(model.recipe)) if is_made(model.recipe) else None


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
