"""Attention knockout as a section of a study on two tiny models."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.circuit import Circuit
from circuitdiff.errors import InputError
from circuitdiff.evaluation import Evaluation
from circuitdiff.methods.knockout import Blocking, attention_knockout, random_keys, roles_before
from circuitdiff.study.preflight import outlined
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.sections import knockout
from circuitdiff.study.sections.discovery import Discovered
from circuitdiff.study.sections.knockout import SECTION, KnockoutOptions, Knockouts, cell_of, layers_of
from helpers.tiny_context import PLANS, TinyContext, tiny_context

OPTIONS = KnockoutOptions(prompts=6, layer_step=2, roles=("last", "previous_query_label"))
QUESTION = ["query_box", "query_label", "after_query_label", "last"]


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> TinyContext:
    return tiny_context(tmp_path_factory.mktemp("study"), tuned=True, plans={"main": PLANS["other"]})


@pytest.fixture(scope="module")
def tuned(context) -> Knockouts:
    results = context.run(SECTION.run(context.study, OPTIONS))
    assert list(results) == [context.study.base, "tuned"]
    return results["tuned"]


def test_curves_are_the_librarys(context, tuned):
    loaded = context.loaded("tuned")
    pairs = loaded.pairs(PromptsOf("evaluation", first=6))
    curves = {(curve.query, curve.key): curve for curve in tuned.curves}
    assert list(curves) == [("last", "previous_query_label"), ("last", None)]
    keys = random_keys(pairs, "last", QUESTION, seed=context.study.settings.seed)
    for key, blocked in (("previous_query_label", "previous_query_label"), (None, keys)):
        _, [by_hand] = attention_knockout(loaded.model, pairs, [Blocking("last", blocked, (0, 2))])
        points = curves["last", key].points
        assert [point.layer for point in points] == [0, 2]
        assert [point.hits for point in points] == [int(each.hits.sum()) for each in by_hand]
        assert not curves["last", key].single_layers


def test_the_matrix_is_the_librarys(context, tuned):
    loaded = context.loaded("tuned")
    pairs = loaded.pairs(PromptsOf("evaluation", first=6))
    before = roles_before(pairs, OPTIONS.roles)
    drawn = random_keys(pairs, "last", QUESTION, seed=context.study.settings.seed)
    wanted = [*(Blocking(*cell) for cell in before), Blocking("last", drawn)]
    clean, blocked = attention_knockout(loaded.model, pairs, wanted)
    *cells, control = (each for [each] in blocked)
    assert tuned.matrix.roles == OPTIONS.roles
    assert tuned.matrix.clean.hits == int(clean.hits.sum())
    assert {query: each.hits for query, each in tuned.matrix.control.items()} == {"last": int(control.hits.sum())}
    by_hand = dict(zip(before, cells, strict=True))
    for cell in tuned.matrix.cells:
        ran = by_hand.get((cell.query, cell.key))
        assert (ran is None) == (cell.answer is None)
        if ran is not None:
            assert cell.accuracy.hits == int(ran.hits.sum())
    assert (tuned.n_prompts, tuned.n_scenarios) == (6, 6)


def test_what_is_blocked_is_what_the_record_holds(context, tuned, monkeypatch):
    """Log probabilities tell apart what hits of a random model cannot."""
    kept = []
    run = knockout.knocked_out
    monkeypatch.setattr(knockout, "knocked_out", lambda *a, **k: kept.append(run(*a, **k)) or kept[-1])
    options = KnockoutOptions(prompts=6, layer_step=1, single_layers=True, roles=OPTIONS.roles)
    results = context.run(SECTION.run(context.study, options))
    loaded = context.loaded("tuned")
    pairs = loaded.pairs(PromptsOf("evaluation", first=6))
    clean, cells, curves = kept[list(results).index("tuned")]
    pair, layers = ("last", "previous_query_label"), range(loaded.model.n_layers)
    wanted = [Blocking(*pair, layers, upward=False), Blocking(*pair)]
    _, [by_hand, [everywhere]] = attention_knockout(loaded.model, pairs, wanted)
    for mine, each in zip(curves[pair], by_hand, strict=True):
        torch.testing.assert_close(mine.log_probs, each.log_probs, rtol=0, atol=1e-5)
    cell = cells[pair]
    torch.testing.assert_close(cell.log_probs, everywhere.log_probs, rtol=0, atol=1e-5)
    assert float((cell.log_probs - clean.log_probs).abs().max()) > 1e-3


def test_by_default_what_the_last_token_reads_at_the_answer_is_asked_in_every_layer(context, tmp_path):
    """The circuit is at the last token alone."""
    found = context.run(SECTION.run(context.again(tmp_path).study, KnockoutOptions(prompts=6)))["tuned"]
    loaded = context.loaded("tuned")
    pairs, n_layers = loaded.pairs(PromptsOf("evaluation", first=6)), loaded.model.n_layers
    assert found.matrix.roles == ("last", "correct_object")
    _, [by_hand] = attention_knockout(loaded.model, pairs, [Blocking("last", "correct_object", range(n_layers))])
    [curve, random] = found.curves
    assert [(each.query, each.key) for each in found.curves] == [("last", "correct_object"), ("last", None)]
    assert [point.layer for point in curve.points] == [point.layer for point in random.points] == [*range(n_layers)]
    assert [point.hits for point in curve.points] == [int(each.hits.sum()) for each in by_hand]
    cell = next(cell for cell in found.matrix.cells if cell.answer is not None)
    assert (cell.query, cell.key) == ("last", "correct_object")


def test_curves_have_no_more_points_than_can_be_read_unless_a_step_is_given():
    by_default = {n: layers_of(n, KnockoutOptions()) for n in (1, 24, 25, 48, 49)}
    assert {n: (len(layers), layers.step) for n, layers in by_default.items()} == {
        1: (1, 1),
        24: (24, 1),
        25: (13, 2),
        48: (24, 2),
        49: (17, 3),
    }
    assert layers_of(49, KnockoutOptions(layer_step=5)) == range(0, 49, 5)


def test_queries_without_a_random_position_are_left_out_unless_they_are_named(context, tmp_path, monkeypatch):
    monkeypatch.setattr(knockout, "has_random_keys", lambda pairs, query, avoided: query != "last")
    context = context.again(tmp_path)
    found = context.run(SECTION.run(context.study, KnockoutOptions(prompts=6)))["tuned"]
    assert (found.matrix.control, found.curves) == ({}, ())
    assert all(cell.answer is None for cell in found.matrix.cells)
    named = KnockoutOptions(prompts=6, roles=("last", "correct_object"))
    assert len(context.run(SECTION.run(context.study, named))["tuned"].curves) == 2


def test_both_executors_are_checked_on_every_model(context, tuned):
    checks = [check for check in context.study.checks if "attention between roles" in check.detail]
    assert {check.model for check in checks} == {context.study.base, "tuned"}
    assert all("3 runs x 2 prompts" in check.detail for check in checks)


def test_without_a_circuit_or_roles_there_is_nothing_to_knock_out(context, monkeypatch):
    async def nothing(study, name):
        return Discovered(study.base, "main", Circuit({}), ())

    monkeypatch.setattr(knockout, "discovered", nothing)
    assert context.run(SECTION.run(context.study, KnockoutOptions(prompts=6))) == {}


def test_roles_that_the_task_lacks_are_refused(context):
    study = outlined(context.study.settings)
    for options, where in (
        (KnockoutOptions(roles=("lats",)), "roles"),
        (KnockoutOptions(curves=(("last", "lats"),)), "curves"),
        (KnockoutOptions(query_roles=("lats",)), "query_roles"),
    ):
        with pytest.raises(InputError, match=rf"knockout\.{where} names 'lats'"):
            SECTION.check(study, options)
    SECTION.check(study, OPTIONS)


def answers(hits: list[int]) -> Evaluation:
    n, nothing = len(hits), torch.zeros(len(hits))
    return Evaluation(
        torch.tensor(hits, dtype=torch.bool), torch.zeros(n, dtype=torch.long), nothing, nothing, torch.arange(n)
    )


@pytest.mark.parametrize(
    ("blocked", "control", "answer"),
    [
        ([0] * 20, [1] * 20, "yes"),  # blocking the key costs all, a random position nothing
        ([0] * 20, [0] * 20, "not established"),  # so does a random position
        ([1] * 80, [1] * 80, "no"),
        ([1] * 20, [1] * 20, "not established"),  # 20 prompts do not show that it would cost none of others
        ([1] * 18 + [0] * 2, [1] * 20, "not established"),
    ],
)
def test_information_flows_where_blocking_costs_more_than_a_random_position(blocked, control, answer):
    cell = cell_of("last", "object", answers([1] * len(blocked)), answers(blocked), answers(control), margin=0.05)
    assert cell.answer == answer
    assert cell_of("a", "b", answers([1]), None, None, 0.05).answer is None


def test_a_model_with_nothing_to_lose_is_not_said_to_lose_nothing():
    """As `smollm2` with an accuracy of 0.07: that no key costs it 0.05 says nothing of the key."""
    for n_right, answer in ((12, "not established"), (60, "no")):
        model = answers([1] * n_right + [0] * (160 - n_right))
        cell = cell_of("last", "object", model, model, model, margin=0.05)
        assert cell.loss.high < 0.05
        assert cell.answer == answer
