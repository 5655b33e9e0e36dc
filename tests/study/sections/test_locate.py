"""Where it happens, as a section of a study on two tiny models, against the library's own functions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from circuitdiff.errors import InputError
from circuitdiff.evaluation import Evaluation, mean_activations
from circuitdiff.methods.knockout import Blocking, attention_knockout
from circuitdiff.methods.locate import RoleCeiling, residual_patching, role_ceiling
from circuitdiff.stats.intervals import normalised_ratio_interval
from circuitdiff.study.preflight import outlined
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.registry import options_of
from circuitdiff.study.runner import refuse
from circuitdiff.study.sections import locate
from circuitdiff.study.sections.locate import SECTION, LocateOptions, Location, layers_of, roles_of
from helpers.tiny_context import TinyContext, tiny_context

ROLES = ("query_label", "last", "previous_query_label")
OPTIONS = LocateOptions(prompts=8, roles=ROLES, layer_step=2, metric="log_prob")


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> TinyContext:
    return tiny_context(tmp_path_factory.mktemp("study"), tuned=True, discovery=False)


@pytest.fixture(scope="module")
def tuned(context) -> Location:
    results = context.run(SECTION.run(context.study, OPTIONS))
    assert list(results) == [context.study.base, "tuned"]
    return results["tuned"]


def pairs_of(context: TinyContext):
    return context.loaded("tuned").pairs(PromptsOf("evaluation", first=8))


def test_the_maps_are_the_librarys_in_both_directions(context, tuned):
    model, pairs = context.loaded("tuned").model, pairs_of(context)
    assert (tuned.n_prompts, tuned.roles, tuned.residuals.layers) == (8, ROLES, (0, 2))
    for direction in ("restore", "remove"):
        found = residual_patching(model, pairs, ROLES, direction=direction, layers=(0, 2), metric="log_prob")
        places = getattr(tuned.residuals, direction)
        assert [(each.layer, each.role) for each in places] == [(n, role) for n in (0, 2) for role in ROLES]
        effects = [each.effect.value for each in places]
        np.testing.assert_allclose(effects, found.effects.flatten(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose([each.effect.low for each in places], found.intervals().low.flatten(), atol=1e-4)
        shares = np.array([each.share.value for each in places], dtype=float)
        np.testing.assert_allclose(shares, found.shares().value.flatten(), atol=1e-4)
        assert tuned.residuals.distance.value == pytest.approx(float(found.distance.mean()), abs=1e-5)
    assert tuned.residuals.metric == "log_prob"


def test_the_matrix_blocks_each_role_from_those_before_it_in_all_layers(context, tuned):
    model, pairs = context.loaded("tuned").model, pairs_of(context)
    cells = {(cell.query, cell.key): cell for cell in tuned.matrix.cells if cell.answer is not None}
    assert set(cells) == {
        ("last", "query_label"),
        ("last", "previous_query_label"),
        ("query_label", "previous_query_label"),
    }
    _, blocked = attention_knockout(model, pairs, [Blocking(*places) for places in cells])
    assert [cell.accuracy.hits for cell in cells.values()] == [int(each.hits.sum()) for [each] in blocked]
    assert set(tuned.matrix.control) == {"last", "query_label"}


def test_the_ceiling_is_the_librarys_under_both_means(context, tuned):
    loaded, pairs = context.loaded("tuned"), pairs_of(context)
    means = {by: mean_activations(loaded.model, loaded.pairs(PromptsOf("means")), by) for by in ("slot", "kind")}
    found = role_ceiling(loaded.model, pairs, means, ROLES)
    steps = tuned.ceiling.steps
    assert [step.role for step in steps] == [None, *found.roles]
    assert [step.by_slot.hits for step in steps] == [int(each.hits.sum()) for each in found.alone["slot"]]
    assert [step.by_kind.hits for step in steps] == [int(each.hits.sum()) for each in found.alone["kind"]]
    assert tuned.ceiling.model.hits == int(found.model.hits.sum())
    assert (tuned.ceiling.n_choosing, tuned.ceiling.model.n) == (4, 4)


def test_steps_are_told_by_their_own_hits_and_shares_begin_at_no_role(monkeypatch):
    asked, scenarios, nothing = [], torch.arange(12), torch.zeros(12)

    def answers(n_hits: int) -> Evaluation:
        return Evaluation(scenarios < n_hits, nothing.long(), nothing, nothing, scenarios)

    def ratio(circuit, ablated, model, scenarios):
        asked.append((circuit.sum(), ablated.sum(), model.sum()))
        return normalised_ratio_interval(circuit, ablated, model, scenarios)

    monkeypatch.setattr(locate, "normalised_ratio_interval", ratio)
    alone = {"slot": tuple(map(answers, (1, 6, 5))), "kind": tuple(map(answers, (0, 3, 4)))}
    found = locate.ceiling(RoleCeiling(("last", "query_label"), alone, answers(11)), 13)
    assert [(each.role, each.by_slot.hits, each.by_kind.hits) for each in found.steps] == [
        (None, 1, 0),
        ("last", 6, 3),
        ("query_label", 5, 4),
    ]
    assert asked == [(1, 1, 11), (6, 1, 11), (5, 1, 11)]
    assert (found.model.hits, found.n_choosing) == (11, 13)


def test_roles_are_by_default_those_of_no_segment_in_the_prompts_order(context):
    pairs = pairs_of(context)
    roles = roles_of(LocateOptions(), pairs)
    assert not any("." in role for role in roles)
    at = [float(pairs.positions[role].double().mean()) for role in roles]
    assert at == sorted(at)
    assert {"last", "query_label", "correct_object"} <= set(roles)
    lacking = {role: each.clone() for role, each in pairs.counterfactual_positions.items()}
    lacking["query_label"][1] = -1
    fewer = replace(pairs, counterfactual_prompts=replace(pairs.counterfactual_prompts, positions=lacking))
    assert set(roles) - set(roles_of(LocateOptions(), fewer)) == {"query_label"}


def test_layers_are_twelve_at_most_unless_a_step_is_given():
    assert layers_of(3, LocateOptions()) == (0, 1, 2)
    assert layers_of(30, LocateOptions()) == tuple(range(0, 30, 3))
    assert layers_of(30, LocateOptions(layer_step=10)) == (0, 10, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LocateOptions(roles=("lats",)), "locate.roles names 'lats'.*did you mean 'last'"),
        (LocateOptions(prompts=3), "locate.prompts is 3.*set it to 4 or more"),
    ],
)
def test_what_cannot_be_located_is_refused_before_weights_are_read(context, options, message):
    settings = context.study.settings
    with pytest.raises(InputError, match=message):
        SECTION.check(outlined(settings), options)


def test_nobody_is_asked_where_it_happens_unless_they_say_so(context):
    assert options_of(context.study.settings, SECTION) is None


def test_without_discovery_sections_about_circuits_are_refused_by_name(context):
    with pytest.raises(InputError, match=r"discovery is false.*: leave it on, or set faithfulness: false, minimality"):
        refuse(context.study.settings)
