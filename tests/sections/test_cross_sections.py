"""Knockout and the verdict as sections of a study on two tiny models.

To be ported to tests/study/sections; patching and grafting have been (test_cross_model.py, test_graft.py).
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from circuitdiff.cache.store import to_json
from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.evaluation import Evaluation, evaluate_model
from circuitdiff.methods.knockout import attention_knockout, knockout_matrix, random_keys
from circuitdiff.sections.cross_settings import CrossModelSettings, GraftSettings, KnockoutSettings, VerdictSettings
from circuitdiff.sections.knockout import RANDOM, knockout_section, matrix_cell
from circuitdiff.sections.verdict import failed_checks, transfer, verdict_section
from circuitdiff.workbench import Workbench
from helpers.two_tiny_folders import two_model_bench

FOUND = Circuit(
    {
        "fetcher": Group("last", (Head(2, 1), Head(1, 3))),
        "reader": Group("previous_query_label", (Head(0, 2), Head(1, 0))),
        "nothing": Group("query_label", ()),
    }
)
TESTED = Circuit({name: FOUND.groups[name] for name in ("fetcher", "reader")})
PATCHING = CrossModelSettings(
    what=("z", "contribution"), prompts=5, random_groups=3, control_prompts=4, null_donors=("tuned",)
)
GRAFTING = GraftSettings(prompts=5, random_groups=2, control_prompts=4, heads=True)
KNOCKOUT = KnockoutSettings(prompts=6, layer_step=2)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Workbench:
    return two_model_bench(tmp_path_factory.mktemp("study"))


def stored(sections: dict) -> dict:
    """As results.json has it: strict JSON, nan as null."""
    return json.loads(to_json(sections))


def first(bench: Workbench, n: int):
    return bench.subject(bench.base).splits.evaluation.select(torch.arange(n))


def test_a_second_run_takes_nothing_from_the_models(bench, monkeypatch):
    sections = [
        lambda: knockout_section(bench, "tuned", FOUND, KNOCKOUT),
    ]
    once = [stored(section()) for section in sections]
    for model in (bench.base, "tuned"):
        monkeypatch.setattr(bench.subject(model).model.module, "forward", None)
    assert [stored(section()) for section in sections] == once


def test_the_knockout_section_holds_the_librarys_numbers(bench):
    entry = stored(knockout_section(bench, "tuned", FOUND, KNOCKOUT))["knockout"]["tuned"]
    model, pairs = bench.subject("tuned").model, first(bench, 6)
    assert entry["matrix"]["roles"] == ["last", "previous_query_label"]
    curve_of = {(curve["query"], curve["key"]): curve for curve in entry["curves"]}
    assert list(curve_of) == [("last", "previous_query_label"), ("last", RANDOM)]
    curve = curve_of["last", "previous_query_label"]
    found = attention_knockout(model, pairs, "last", "previous_query_label", layers=[0, 2])
    assert [point["layer"] for point in curve["points"]] == [0, 2]
    for point, ran in zip(curve["points"], found.blocked, strict=True):
        assert point["hits"] == int(ran.hits.sum())
    drawn = curve_of[("last", RANDOM)]["points"]
    roles = ["query_box", "query_label", "after_query_label", "last"]
    keys = random_keys(pairs, "last", roles, seed=bench.settings.seed)
    at_random = attention_knockout(model, pairs, "last", keys, layers=[0, 2])
    assert [point["hits"] for point in drawn] == [int(ran.hits.sum()) for ran in at_random.blocked]
    matrix = knockout_matrix(model, pairs, entry["matrix"]["roles"], query_roles=roles)
    for cell in entry["matrix"]["cells"]:
        ran = matrix.blocked.get((cell["query"], cell["key"]))
        assert (ran is None) == (cell["answer"] is None)
        if ran is not None:
            assert cell["accuracy"]["hits"] == int(ran.hits.sum())


def answers(hits: list[int], scenarios: list[int] | None = None) -> Evaluation:
    n = len(hits)
    nothing = torch.zeros(n)
    rows = torch.tensor(scenarios or list(range(n)))
    return Evaluation(torch.tensor(hits, dtype=torch.bool), torch.zeros(n, dtype=torch.long), nothing, nothing, rows)


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
    cell = matrix_cell("last", "object", answers([1] * len(blocked)), answers(blocked), answers(control), margin=0.05)
    assert cell["answer"] == answer
    assert matrix_cell("a", "b", answers([1]), None, None, 0.05)["answer"] is None


def test_transfer_is_the_difference_of_normalised_faithfulness():
    model, ablated = answers([1] * 8 + [0] * 2), answers([1] * 1 + [0] * 9)
    base, own = answers([1] * 5 + [0] * 5), answers([1] * 7 + [0] * 3)
    entry = transfer(model, base, own, ablated)
    assert entry["value"] == pytest.approx((0.5 - 0.7) / (0.8 - 0.1))
    among = np.array([False] * 4 + [True] * 4 + [False] * 2)
    only = transfer(model, base, own, ablated, among)
    assert (only["value"], only["n"]) == (pytest.approx((1 - 3) / 4), 4)
    assert transfer(model, base, own, ablated, np.arange(10) == 5)["note"] == "there are 1 such scenarios"
    paired = answers([1] * 8 + [0] * 2, scenarios=[0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    assert transfer(paired, base, own, ablated, among)["n"] == 2


def test_the_verdict_says_nothing_on_so_few_prompts_and_says_on_how_many(bench):
    bench.add(cross_model_section(bench, "tuned", FOUND, PATCHING))
    bench.add(graft_section(bench, "tuned", FOUND, GRAFTING))
    circuits = {bench.base: FOUND, "tuned": TESTED}
    entry = stored(verdict_section(bench, "tuned", circuits, VerdictSettings()))["verdict"]["tuned"]
    numbers = {"better": 9, "same_circuit": 6, "improved_part": 5, "cause_layers": 5, "visible_part": 5}
    for sentence in entry["sentences"]:
        assert sentence["answer"] == "not established"
        n = numbers.get(sentence["claim"], 9)
        assert f"only {n} held-out scenarios" in sentence["text"]
    scopes = {sentence["claim"]: sentence["scope"].split("; ", 2)[2] for sentence in entry["sentences"][:2]}
    assert scopes["better"] == "accuracy on 9 held-out prompts of 9 scenarios"
    assert scopes["same_circuit"].endswith("effects on 6 other prompts; attention heads only")
    patched = entry["sentences"][-1]["scope"]
    on = "on 5 held-out prompts of 5 scenarios; attention heads only"
    assert patched.endswith(f"accuracy with patched contribution {on}")
    gain = float((_hits(bench, "tuned") - _hits(bench, bench.base)).mean())
    assert entry["evidence"]["gain"]["value"] == pytest.approx(gain)
    same = entry["evidence"]["circuits"]["mean by slot"]["transfer"]
    assert same["value"] in (None, 0.0), "both own circuits are the same"
    assert entry["thresholds"]["scenarios"] == 50


def _hits(bench: Workbench, name: str) -> torch.Tensor:
    subject = bench.subject(name)
    return evaluate_model(subject.model, subject.splits.evaluation).hits.double()


def test_failed_checks_are_named_and_none_at_all_is_not_a_pass():
    rows = [{"name": "a", "passed": True}, {"name": "b", "passed": False}]
    assert failed_checks({"checks": rows}) == ["b"]
    assert failed_checks({"checks": rows[:1]}) == []
    assert failed_checks({"checks": []}) is None


def test_an_unknown_setting_is_an_error():
    for kind in (KnockoutSettings, VerdictSettings):
        with pytest.raises(ValidationError, match="Extra inputs"):
            kind(promts=3)
