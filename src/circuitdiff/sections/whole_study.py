"""The settings of a whole study: what `StudySettings` has, and a part for each further section."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from circuitdiff.sections.circuit_settings import (
    AblationsSettings,
    CompletenessSettings,
    MinimalitySettings,
    OverlapSettings,
)
from circuitdiff.sections.cross_settings import CrossModelSettings, GraftSettings, KnockoutSettings, VerdictSettings
from circuitdiff.sections.functions_settings import FILE, FunctionSettings
from circuitdiff.settings import StudySettings, read_settings

Off = Literal[False]


class WholeStudy(StudySettings):
    """A section that is `false` is left out. Those that compare models need a variant."""

    minimality: MinimalitySettings | Off = Field(default_factory=MinimalitySettings)
    completeness: CompletenessSettings | Off = Field(default_factory=CompletenessSettings)
    ablations: AblationsSettings | Off = Field(default_factory=AblationsSettings)
    overlap: OverlapSettings | Off = Field(default_factory=OverlapSettings)
    functions: FunctionSettings | Off = Field(default_factory=FunctionSettings)
    cross_model: CrossModelSettings | Off = Field(default_factory=CrossModelSettings)
    graft: GraftSettings | Off = Field(default_factory=GraftSettings)
    knockout: KnockoutSettings | Off = Field(default_factory=KnockoutSettings)
    verdict: VerdictSettings | Off = Field(default_factory=VerdictSettings)


def asked_circuits(study: WholeStudy) -> list[str]:
    """The circuits whose groups' functions are asked for, by name: those chosen, or each model's own main circuit."""
    if not study.functions:
        return []
    chosen = study.functions.circuits
    return list(main_circuits(study) if chosen is None else dict.fromkeys(chosen))


def main_circuits(study: StudySettings) -> tuple[str, ...]:
    """The models in which the main plan is run; a model's main circuit goes by its name."""
    return study.base.name, *study.searched


def read_study(path: str | Path) -> WholeStudy:
    """The study in a YAML file; paths in it are relative to it.

    Raises: InputError naming the key that is unknown, missing or out of range.
    """
    study = read_settings(path, WholeStudy)
    if not study.functions:
        return study
    folder, wanted = Path(path).parent, study.functions
    further = {group: _found_from(folder, names) for group, names in wanted.further.items()}
    desiderata = None if wanted.desiderata is None else _found_from(folder, wanted.desiderata)
    functions = wanted.model_copy(update={"desiderata": desiderata, "further": further})
    return study.model_copy(update={"functions": functions})


def _found_from(folder: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Desiderata, those that are files as seen from here."""
    return tuple(str(folder / name) if name.endswith(FILE) else name for name in names)
