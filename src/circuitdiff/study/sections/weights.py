"""Is each variant another model than the base? Where their weights differ, and what else does."""

from __future__ import annotations

from dataclasses import asdict

from pydantic import TypeAdapter

from circuitdiff.cache.records import Record
from circuitdiff.models.differences import ModelDifferences, differences_of
from circuitdiff.models.weight_changes import WeightChanges, weight_changes
from circuitdiff.study.context import StudyContext
from circuitdiff.study.host import LoadedModel
from circuitdiff.study.section import Section
from circuitdiff.study.units import Unit


async def run(study: StudyContext, _: None) -> dict[str, ModelDifferences]:
    """Of each variant against the base."""
    found = await study.each(study.variants, lambda name: _differences(study, name))
    return dict(zip(study.variants, found, strict=True))


async def _differences(study: StudyContext, name: str) -> ModelDifferences:
    models = [await study.facts(each) for each in (study.base, name)]
    record = await study.record(Unit(f"weights of {name}", compared_with_base, (name, study.base)))
    changes = TypeAdapter(WeightChanges).validate_python(record.data)
    found = differences_of(
        [each.name for each in models], [each.config for each in models], [each.tokenizer for each in models], changes
    )
    if found.same_weights:
        study.warn(f"{name} has {study.base}'s weights: not one of {found.whole.n_numbers:,} numbers differs")
    return found


def compared_with_base(variant: LoadedModel, base: LoadedModel) -> Record:
    found = weight_changes(base.model, variant.model)
    return Record({}, {"weights": [asdict(each) for each in found.weights], "not_compared": list(found.not_compared)})


SECTION = Section("weights", None, dict[str, ModelDifferences], run, lambda *_: ())
