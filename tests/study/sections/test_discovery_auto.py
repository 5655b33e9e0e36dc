"""An automatic plan in a study: as in the library, and in variants the plan that was found in the base."""

from __future__ import annotations

import math

import pytest
import yaml

from circuitdiff.circuit import Circuit
from circuitdiff.evaluation import mean_activations
from circuitdiff.methods.auto_plan import AutoPlan, find_circuit
from circuitdiff.models import load_model
from circuitdiff.report.page import report_page
from circuitdiff.stats.selection import Discoveries
from circuitdiff.study.common_units import circuit_answers
from circuitdiff.study.prompts import PromptsOf, PromptSource
from circuitdiff.study.registry import read_results
from circuitdiff.study.runner import run_study
from circuitdiff.study.sections.discovery import discovered
from helpers.tiny_context import tiny_context
from helpers.tiny_folder import save_tiny_model, settings_of, silent

RULE = AutoPlan(Discoveries(0.95, 0.0, replicated=False), screen=None, enough=9.0, most_groups=3)
SELECT = "{error_rate: 0.95, minimum: 0.0, replicated: false}"
PLAN = f"{{main: {{select: {SELECT}, screen: null, enough: 9.0, most_groups: 3}}}}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def study(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto")
    sizes = "{discovery: 30, replication: 6, evaluation: 9, means: 12}"
    (folder / "theirs.json").write_text('["a1.h0", "a0.h2"]')
    variants = f"{{second: {save_tiny_model(folder / 'second', 1)}}}"
    more = {"plans": PLAN, "variants": variants, "circuits": "{theirs: theirs.json}"}
    settings = settings_of(folder, model, prompts=sizes, **more)
    run_study(settings, folder / "run", silent)
    return settings, folder / "run"


def test_the_base_has_the_circuit_of_the_library(study, model):
    settings, folder = study
    loaded = load_model(model)
    prompts = PromptSource(settings, settings.base.name, loaded.tokenizer)
    splits = {"discovery": prompts.pairs(PromptsOf("discovery"))}
    found = find_circuit(loaded, splits, mean_activations(loaded, prompts.pairs(PromptsOf("means")), by="kind"), RULE)
    result = read_results(folder).discovery[model.name]
    assert Circuit.from_json(folder / "circuit-main.json") == found.circuit
    assert [stage.name for stage in result.stages] == [each.stage.name for each in found.stages]
    assert len(found.stages) > 3, "a second family was tested"
    assert (result.reached is None) == math.isnan(found.reached)
    assert result.reached is None or result.reached == pytest.approx(found.reached, rel=1e-5)
    assert result.automatic == "search"
    without = [name for name in (stage.name for stage in result.stages) if name not in result.groups]
    assert result.gaps == (f"no group of their own: {', '.join(without)}",)


def test_the_variant_is_asked_by_the_plan_that_the_base_wrote_and_which_can_be_run_as_it_stands(study, model, tmp_path):
    _, folder = study
    results = read_results(folder)
    in_base, in_variant = (results.discovery[name] for name in (model.name, "second"))
    assert {stage.name for stage in in_variant.stages} <= {stage.name for stage in in_base.stages}
    assert (in_variant.automatic, in_variant.reached) == ("plan", None)
    assert all(group.heads for group in in_variant.groups.values())
    written = yaml.safe_load((folder / "plan-main.yaml").read_text())["plans"]
    again = settings_of(tmp_path, model, plans=yaml.safe_dump(written, default_flow_style=True))
    assert [stage.name for stage in again.plans["main"].stages] == [stage.name for stage in in_base.stages]


def test_the_page_says_how_far_the_search_came_and_where_it_found_nothing(study, model):
    _, folder = study
    results = read_results(folder)
    page = report_page(results)
    assert "found by an automatic plan" in page
    assert "at other roles nobody looked" in page
    assert all(gap in page for gap in results.discovery[model.name].gaps)


def test_another_tools_heads_are_a_circuit_at_every_role(study):
    groups = read_results(study[1]).discovery["theirs"].groups
    assert {"last", "query_label", "previous_query_label"} <= set(groups)
    assert {group.heads for group in groups.values()} == {((0, 2), (1, 0))}
    assert all(name == group.at for name, group in groups.items())


def test_a_search_ends_by_kind_means_which_do_not_say_which_slot_it_is(tmp_path, monkeypatch):
    asked = []

    async def noted(study, model, title, circuits, by, prompts):
        asked.append(by)
        return await circuit_answers(study, model, title, circuits, by, prompts)

    monkeypatch.setattr("circuitdiff.study.sections.discovery_units.circuit_answers", noted)
    context = tiny_context(tmp_path, plans={"main": {"most_groups": 1}})
    context.run(discovered(context.study, context.study.base))
    assert asked == ["kind"]
