"""All sections of a study, in their order; and from them the form of a study's settings and of its results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter, create_model

from circuitdiff.cache.store import RESULTS
from circuitdiff.config.reading import read_json, read_yaml
from circuitdiff.config.validation import validated
from circuitdiff.errors import InputError
from circuitdiff.readable import ByName
from circuitdiff.study.plan import Part, Sizes
from circuitdiff.study.results import SCHEMA_VERSION, CommonResults
from circuitdiff.study.section import Section
from circuitdiff.study.sections import (
    ablations,
    accuracy,
    attention,
    completeness,
    cross_model,
    curves,
    discovery,
    faithfulness,
    functions,
    graft,
    knockout,
    locate,
    minimality,
    overlap,
    verdict,
    weights,
)
from circuitdiff.study.settings import CommonSettings, chat_seen_from
from circuitdiff.study.sizes import capped, fitted

Options = TypeVar("Options")
Result = TypeVar("Result")

SECTIONS: tuple[Section[Any, Any], ...] = tuple(
    each.SECTION
    for each in (
        *(accuracy, discovery, faithfulness, minimality, completeness, ablations, knockout, attention),
        *(functions, overlap, cross_model, graft, verdict, weights, curves, locate),
    )
)

_PARTS = {section.name: (Annotated[section.result | None, AfterValidator(ByName.of)], None) for section in SECTIONS}
_OPTIONS = {
    section.name: (
        section.options | Literal[False],
        Field(default_factory=section.options) if section.by_default else False,
    )
    for section in SECTIONS
    if section.options is not None
}

# A section that is `false` is left out. Those that compare models need a variant.
StudySettings = create_model("StudySettings", __base__=CommonSettings, __module__=__name__, **_OPTIONS)  # pyright: ignore
Results = create_model("Results", __base__=CommonResults, __module__=__name__, **_PARTS)  # pyright: ignore


def options_of(settings: CommonSettings, section: Section[Options, Any]) -> Options | None:
    """The section's settings; None if it is left out, or has none."""
    return getattr(settings, section.name, None) or None


def check_discovery(settings: CommonSettings) -> None:
    """Raises: InputError if sections are asked of circuits, and none is looked for."""
    if options_of(settings, discovery.SECTION) is None:
        asked = [each.name for each in SECTIONS if each.of_circuits and options_of(settings, each) is not None]
        if asked:
            off = ", ".join(f"{name}: false" for name in asked)
            raise InputError(f"discovery is false, and these sections ask about circuits: leave it on, or set {off}")


def part_of(results: CommonResults, section: Section[Any, Result]) -> Result:
    """The section's part of the results, by what it is of; empty if it was left out."""
    return getattr(results, section.name) or {}  # pyright: ignore[reportReturnType]


def cells_of(
    results: CommonResults, section: Section[Any, dict[str, dict[str, Result]]]
) -> list[tuple[str, str, Result]]:
    """Circuit, model, and the section's part on the circuit in the model."""
    return [(name, model, each) for name, models in part_of(results, section).items() for model, each in models.items()]


def planned_parts(sizes: Sizes) -> list[Part]:
    asked = [(section, options_of(sizes.settings, section)) for section in SECTIONS]
    chosen = [(section, options) for section, options in asked if options is not None or section.options is None]
    return [part for section, options in chosen for part in section.cost(sizes, options) if part.forwards]


def read_study(path: str | Path) -> CommonSettings:
    """The study in a YAML file; paths in it are relative to it.

    Raises: InputError naming the key that is unknown, missing or out of range.
    """
    return parse_study(read_yaml(path), str(path), Path(path).parent)


def parse_study(data: Any, origin: str, folder: Path = Path()) -> CommonSettings:
    """`folder`: which paths are relative to. Raises: InputError as `read_study`."""
    study = validated(StudySettings, data, origin, folder=folder)
    seen = {
        "task": study.task.seen_from(folder),
        "chat": chat_seen_from(study.chat, folder),
        "base": study.base.seen_from(folder),
        "variants": {name: model.seen_from(folder) for name, model in study.variants.items()},
        "circuits": {name: folder / file for name, file in study.circuits.items()},
    }
    for section in SECTIONS:
        options: Any = options_of(study, section)
        if hasattr(options, "seen_from"):
            seen[section.name] = options.seen_from(folder)
    return capped(fitted(study.model_copy(update=seen)))


def results_bytes(results: CommonResults) -> bytes:
    """As they stand in results.json; what is undefined is null."""
    return results.model_dump_json(indent=1, warnings="error").encode() + b"\n"


def results_schema() -> dict[str, Any]:
    return TypeAdapter(Results).json_schema(mode="serialization")


def read_results(folder: str | Path) -> Any:
    """The `Results` of a run folder.

    Raises: InputError if there are none, they are damaged, or an earlier version of circuitdiff wrote them.
    """
    path = Path(folder) / RESULTS
    if not path.exists():
        raise InputError(f"{folder} is not a finished run: it has no {RESULTS}; run the study, or name its run folder")
    try:
        data = read_json(path)
        if data.get("schema_version") != SCHEMA_VERSION:
            raise InputError(f"{path}: expected schema_version {SCHEMA_VERSION}; got {data.get('schema_version')}")
        return validated(Results, data, str(path))
    except InputError as error:
        raise InputError(f"{error}; run the study again, finished records are kept") from error
