"""A study says whether its variants are other models than its base."""

from __future__ import annotations

import pytest

from circuitdiff import model_differences
from circuitdiff.models import load_model
from circuitdiff.study.sections import weights
from helpers.tiny_context import TinyContext, save_tuned, tiny_study
from helpers.tiny_folder import save_tiny_model


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> TinyContext:
    """A tuned variant, and one that is the base under another name."""
    folder = tmp_path_factory.mktemp("study")
    base = save_tiny_model(folder / "base")
    variants = {"tuned": str(save_tuned(base, folder / "tuned")), "same": str(base)}
    return TinyContext.of(tiny_study(base, variants=variants), folder / "run")


def test_each_variant_is_compared_as_by_the_library(context):
    found = context.run(weights.run(context.study, None))
    assert list(found) == ["tuned", "same"]
    models = context.study.settings.models
    base, *variants = (load_model(each.source, name=name) for name, each in models.items())
    for variant in variants:
        assert found[variant.name] == model_differences(base, variant)
    changed = {(each.layer, each.kind) for each in found["tuned"].weights if each.n_changed}
    assert changed == {(1, "v"), (2, "mlp")}


def test_a_variant_with_the_bases_weights_is_warned_of(context):
    context.run(weights.run(context.study, None))
    (warning,) = context.study.warnings
    assert warning.startswith("same has base's weights: not one of ")
