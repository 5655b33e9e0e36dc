"""Is each variant another model than the base? Where their weights differ, and what else does."""

from __future__ import annotations

from circuitdiff.models.differences import ModelDifferences, differences_of
from circuitdiff.models.weight_changes import WeightChanges, weight_changes
from circuitdiff.study.section import LoadedModel, Section, StudyContext


async def run(study: StudyContext, _: None) -> dict[str, ModelDifferences]:
    """Of each variant against the base."""
    return await study.by_item(study.variants, lambda name: _differences(study, name))


async def _differences(study: StudyContext, name: str) -> ModelDifferences:
    models = [await study.facts(each) for each in (study.base, name)]
    changes = await study.value(f"weights of {name}", compared_with_base, name, study.base)
    found = differences_of(
        [each.name for each in models], [each.config for each in models], [each.tokenizer for each in models], changes
    )
    if found.same_weights:
        study.warn(f"{name} has {study.base}'s weights: not one of {found.whole.n_numbers:,} numbers differs")
    return found


def compared_with_base(variant: LoadedModel, base: LoadedModel) -> WeightChanges:
    return weight_changes(base.model, variant.model)


SECTION = Section("weights", None, dict[str, ModelDifferences], run, lambda *_: ())
