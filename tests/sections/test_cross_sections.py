"""Cross-model patching, grafting, knockout and the verdict as sections of a study on two tiny models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from circuitdiff.sections import cross_entries
from circuitdiff.sections.cross_entries import cross_from, cross_record
from circuitdiff.sections.cross_model import cross_model_section
from circuitdiff.sections.cross_settings import CrossModelSettings, GraftSettings, KnockoutSettings, VerdictSettings
from circuitdiff.sections.directions import Direction, direction_of
from circuitdiff.sections.gains import control_entry, random_entry
from circuitdiff.sections.graft import graft_from, graft_record, graft_section, layer_ranges
from circuitdiff.sections.knockout import RANDOM, knockout_section, matrix_cell
from circuitdiff.sections.verdict import failed_checks, transfer, verdict_section
from circuitdiff.stages import Stages
from circuitdiff.verdict import SHARED
from circuitdiff.workbench import Workbench
from pydantic import ValidationError

from circuitdiff.cache.store import to_json
from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.errors import InputError
from circuitdiff.evaluation import Evaluation, evaluate_model
from circuitdiff.methods.cross_model import patch_across
from circuitdiff.methods.graft import graft, graft_alone
from circuitdiff.methods.knockout import attention_knockout, knockout_matrix, random_keys
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


@pytest.fixture
def gains(monkeypatch):
    """As if a model were surely better: nine prompts of a random model do not say so."""

    def say(donor: str, recipient: str) -> None:
        for section in ("cross_model", "graft", "verdict"):
            known = f"circuitdiff.sections.{section}.direction_of"
            monkeypatch.setattr(known, lambda *_: Direction(donor, recipient, gains=True))

    return say


def stored(sections: dict) -> dict:
    """As results.json has it: strict JSON, nan as null."""
    return json.loads(to_json(sections))


def first(bench: Workbench, n: int):
    return bench.subject(bench.base).splits.evaluation.select(torch.arange(n))


def test_the_patching_section_holds_the_librarys_numbers(bench):
    entry = stored(cross_model_section(bench, "tuned", FOUND, PATCHING))["cmap"]["tuned"]
    base, tuned, pairs = bench.subject(bench.base).model, bench.subject("tuned").model, first(bench, 5)
    for direction, donor, recipient in (("to_base", tuned, base), ("to_variant", base, tuned)):
        for what in PATCHING.what:
            found, given = patch_across(donor, recipient, TESTED, pairs, what=what), entry[direction][what]
            assert given["order"] == ["reader", "fetcher"]
            assert (given["donor"], given["recipient"]) == (donor.name, recipient.name)
            for row, (subset, ran) in zip(given["runs"], found.runs.items(), strict=True):
                assert set(row["parts"]) == subset
                assert row["log_prob"]["value"] == pytest.approx(float(ran.answers.log_probs.mean()), abs=1e-4)
                assert row["distance"] == pytest.approx(float(ran.distance.mean()), abs=1e-4)
            expected = found.attribution("log_prob")
            assert given["scores"]["log_prob"]["gain"]["value"] == pytest.approx(expected.gain.value, abs=1e-4)
            for part, credits in expected.parts.items():
                given_value = given["scores"]["log_prob"]["parts"][part]["shapley"]["value"]
                assert given_value == pytest.approx(credits["shapley"].value, abs=1e-4)
    assert entry["circuit"] == TESTED.to_dict()
    assert set(entry["null_donors"]) == {"tuned"}
    checks = [check for check in bench.results["checks"] if "own activations" in check["name"]]
    assert checks
    assert all(check["passed"] for check in checks)


def test_the_patching_sections_controls_name_what_was_done(bench, gains):
    gains("tuned", bench.base)
    entry = stored(cross_model_section(bench, "tuned", FOUND, PATCHING))["cmap"]["tuned"]
    assert entry["heads"]["group"] in TESTED.groups
    assert len(entry["heads"]["order"]) == 2
    for group in TESTED.groups:
        found = entry["controls"][group]
        assert {"group", "any_layer", "elsewhere", "noise", "scaled", "same_layers"} <= set(found)
        assert found["same_layers"]["n"] == 3
        assert len(found["same_layers"]["accuracies"]) == 3
        assert found["n_prompts"] == 4
    assert entry["controls"]["reader"]["other_role"] == "other_label"
    assert entry["controls"]["fetcher"]["other_role"] == "after_query_label"


def far_in(found: dict) -> set[str]:
    return {name for name, each in found.items() if isinstance(each, dict) and each.get("incompatible")}


def test_a_control_that_ends_far_from_clean_runs_has_no_share(bench, gains, monkeypatch):
    gains("tuned", bench.base)
    asked: dict[float, list[bool]] = {}
    for distance in (1e-9, 1e9):
        told = asked.setdefault(distance, [])
        monkeypatch.setattr(
            cross_entries,
            "control_entry",
            lambda *args, compatible=True, told=told: told.append(compatible) or control_entry(*args),
        )
        patching = PATCHING.model_copy(update={"distance": distance})
        entry = cross_model_section(bench, "tuned", FOUND, patching)["cmap"]["tuned"]["controls"]["reader"]
        assert entry["what"] == "z"
        assert len(far_in(entry)) == (5 if distance < 1 else 0)
    assert (any(asked[1e-9]), all(asked[1e9])) == (False, True)


def test_a_second_run_takes_nothing_from_the_models(bench, monkeypatch):
    sections = [
        lambda: cross_model_section(bench, "tuned", FOUND, PATCHING),
        lambda: graft_section(bench, "tuned", FOUND, GRAFTING),
        lambda: knockout_section(bench, "tuned", FOUND, KNOCKOUT),
    ]
    once = [stored(section()) for section in sections]
    for model in (bench.base, "tuned"):
        monkeypatch.setattr(bench.subject(model).model.module, "forward", None)
    assert [stored(section()) for section in sections] == once


def test_records_of_patching_and_grafting_come_back_as_they_were(bench):
    base, tuned, pairs = bench.subject(bench.base).model, bench.subject("tuned").model, first(bench, 4)
    patched = patch_across(tuned, base, TESTED, pairs)
    again = cross_from(cross_record(patched), per_head=False)
    assert again.bases == patched.bases
    assert list(again.runs) == list(patched.runs)
    assert all(torch.equal(again.runs[s].answers.log_probs, r.answers.log_probs) for s, r in patched.runs.items())
    for n_heads in (2, 3, 4):  # of three heads, as many runs are needed as there are subsets, in another order
        group = Group("query_label", tuple(Head(1, i) for i in range(n_heads)))
        heads = patch_across(tuned, base, group, pairs, per_head=True)
        assert list(cross_from(cross_record(heads), per_head=True).runs) == list(heads.runs)
    grafted = graft(tuned, base, TESTED, pairs)
    kept = graft_from(graft_record(grafted))
    assert list(kept.runs) == list(grafted.runs)
    assert kept.parts["reader"].also_touched == grafted.parts["reader"].also_touched
    assert (kept.order, kept.unchanged) == (grafted.order, grafted.unchanged)


def test_the_graft_section_holds_the_librarys_numbers(bench, gains):
    gains("tuned", bench.base)
    entry = stored(graft_section(bench, "tuned", FOUND, GRAFTING))["graft"]["tuned"]
    base, tuned, pairs = bench.subject(bench.base).model, bench.subject("tuned").model, first(bench, 5)
    found = graft(tuned, base, TESTED, pairs)
    for row, (subset, answers) in zip(entry["runs"], found.runs.items(), strict=True):
        assert set(row["parts"]) == subset
        assert row["log_prob"]["value"] == pytest.approx(float(answers.log_probs.mean()), abs=1e-4)
    assert entry["unchanged"] == list(found.unchanged)
    assert {"norms", "embeddings"} <= set(entry["unchanged"])
    assert entry["also_touched"]["fetcher"] == [[1, 2], [2, 0]]
    [(group, controls)] = entry["controls"].items()
    assert set(controls) == {"random heads of any layer", "random heads of the same layers", SHARED}
    assert entry["heads"]["group"] == group
    drawn = controls["random heads of the same layers"]
    assert (drawn["n"], drawn["n_prompts"]) == (2, 4)
    split = graft(tuned, base, layer_ranges(base.n_layers, None), pairs)
    assert entry["layers"]["order"] == list(split.order)
    for row, answers in zip(entry["layers"]["runs"], split.runs.values(), strict=True):
        assert row["log_prob"]["value"] == pytest.approx(float(answers.log_probs.mean()), abs=1e-4)


def test_grafts_ask_several_questions_about_the_evaluation_scenarios(bench, gains):
    gains("tuned", bench.base)
    settings = GRAFTING.model_copy(update={"prompts": 8, "queries_per_scenario": 2, "heads": False})
    entry = stored(graft_section(bench, "tuned", FOUND, settings))["graft"]["tuned"]
    assert (entry["n_prompts"], entry["n_scenarios"]) == (8, 4)
    subject, evaluation = bench.subject(bench.base), bench.subject(bench.base).splits.evaluation
    asked = bench.task.sample(subject.model.tokenizer, 8, bench.settings.seed, "evaluation", 2)
    for i, scenario in enumerate(asked.scenarios.tolist()):
        context = asked.positions["query_box"][i]
        same = int((evaluation.scenarios == scenario).nonzero()[0])
        assert torch.equal(asked.clean[i, :context], evaluation.clean[same, :context]), "of the held-out scenarios"
    found = graft(bench.subject("tuned").model, subject.model, TESTED, asked)
    for row, answers in zip(entry["runs"], found.runs.values(), strict=True):
        assert row["log_prob"]["value"] == pytest.approx(float(answers.log_probs.mean()), abs=1e-4)
    [controls] = entry["controls"].values()
    drawn = controls["random heads of the same layers"]
    assert (drawn["n_prompts"], drawn["n_scenarios"]) == (4, 2)
    more = settings.model_copy(update={"prompts": 1000, "control_prompts": 2, "layers": ()})
    entry = graft_section(bench, "tuned", FOUND, more)["graft"]["tuned"]
    assert (entry["n_prompts"], entry["n_scenarios"]) == (18, 9), "nine evaluation prompts, of as many scenarios"


def test_a_control_grafts_the_other_readers_of_the_groups_keys_and_values(tmp_path, gains, monkeypatch):
    bench, asked = two_model_bench(tmp_path), []

    def spy(donor, recipient, groups, *args, **kwargs):
        asked.append([group.heads for group in groups])
        return graft_alone(donor, recipient, groups, *args, **kwargs)

    monkeypatch.setattr("circuitdiff.sections.graft.graft_alone", spy)
    gains("tuned", bench.base)
    entry = graft_section(bench, "tuned", FOUND, GRAFTING)["graft"]["tuned"]
    [(group, controls)] = entry["controls"].items()
    drawn, shared = asked
    assert (len(drawn), shared) == (3, [tuple(Head(*place) for place in entry["also_touched"][group])])
    assert SHARED in controls


def test_without_a_gain_fewer_prompts_are_run_and_no_controls(bench):
    patched = cross_model_section(bench, "tuned", FOUND, PATCHING.model_copy(update={"without_gain": 3}))
    grafted = graft_section(bench, "tuned", FOUND, GRAFTING.model_copy(update={"without_gain": 3}))
    for entry in (patched["cmap"]["tuned"]["to_base"]["z"], grafted["graft"]["tuned"]):
        assert entry["n_prompts"] == 3
        assert "covers 0" in entry["scores"]["accuracy"]["together"]["undefined"]
    assert not {"controls", "heads"} & set(patched["cmap"]["tuned"]), "there is nothing that a head could carry"
    assert "controls" not in grafted["graft"]["tuned"]


def test_of_a_variant_that_is_worse_the_base_is_the_donor(bench, gains):
    gains(bench.base, "tuned")
    base, tuned, pairs = bench.subject(bench.base).model, bench.subject("tuned").model, first(bench, 5)
    grafted = graft_section(bench, "tuned", FOUND, GRAFTING)["graft"]["tuned"]
    for entry in (grafted, grafted["heads"], grafted["layers"]):
        assert (entry["donor"], entry["recipient"]) == (base.name, "tuned")
    found = graft(base, tuned, TESTED, pairs)
    for row, answers in zip(grafted["runs"], found.runs.values(), strict=True):
        assert row["log_prob"]["value"] == pytest.approx(float(answers.log_probs.mean()), abs=1e-4)
    patched = cross_model_section(bench, "tuned", FOUND, PATCHING.model_copy(update={"both_directions": False}))
    entry = patched["cmap"]["tuned"]
    assert "to_base" not in entry
    assert (entry["heads"]["donor"], entry["heads"]["recipient"]) == (base.name, "tuned")
    assert set(entry["controls"]) == set(TESTED.groups)


@pytest.mark.parametrize(
    ("hits", "expected"),
    [((1, 0), ("tuned", "base", True)), ((0, 1), ("base", "tuned", True)), ((1, 1), ("tuned", "base", False))],
)
def test_the_donor_is_the_model_that_is_surely_better(bench, monkeypatch, hits, expected):
    by_name = {"tuned": answers([hits[0]] * 20), bench.base: answers([hits[1]] * 20)}
    monkeypatch.setattr(Stages, "answers", lambda stages, _: by_name[stages.model.name])
    donor, recipient, gains = direction_of(bench, "tuned")
    names = {"tuned": "tuned", "base": bench.base}
    assert (donor, recipient, gains) == (names[expected[0]], names[expected[1]], expected[2])


def test_ranges_of_layers_begin_where_they_are_told_and_hold_every_layer_once():
    assert layer_ranges(7, None) == {"layers 0 to 2": range(3), "layers 3 to 6": range(3, 7)}
    three = layer_ranges(7, (2, 6))
    assert list(three) == ["layers 0 to 1", "layers 2 to 5", "layers 6 to 6"]
    assert [layer for each in three.values() for layer in each] == list(range(7))
    for begins in ((0,), (3, 3), (7,)):
        with pytest.raises(InputError, match="rising layers between 1 and 6"):
            layer_ranges(7, begins)


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


def test_controls_are_shares_of_the_gain_and_random_groups_have_a_percentile():
    donor, nothing = answers([1] * 16 + [0] * 4), answers([1] * 6 + [0] * 14)
    half = answers([1] * 11 + [0] * 9)
    assert control_entry(donor, nothing, half)["share"] == pytest.approx(0.5)
    far = control_entry(donor, nothing, half, compatible=False)
    assert (np.isnan(far["share"]), "the run with control" in far["undefined"]) == (True, True)
    drawn = [answers([1] * n + [0] * (20 - n)) for n in (6, 7, 8, 11)]
    entry = random_entry(donor, nothing, half, drawn)
    assert entry["percentile"] == pytest.approx(87.5)  # beats three, ties with one
    assert entry["share"] == pytest.approx(np.mean([0, 0.1, 0.2, 0.5]))
    bounds = [control_entry(donor, nothing, each) for each in drawn]  # of each group, over prompts
    assert entry["share_low"] == pytest.approx(np.quantile([each["share_low"] for each in bounds], 0.025))
    assert entry["share_high"] == pytest.approx(np.quantile([each["share_high"] for each in bounds], 0.975))
    alone = random_entry(donor, nothing, half, drawn[3:])
    assert (alone["share"], alone["n_scenarios"]) == (pytest.approx(0.5), 20)
    assert alone["share_low"] < 0.45 < 0.55 < alone["share_high"], "one group's share is no surer than its prompts"
    far = random_entry(donor, nothing, half, drawn, [3])
    assert (far["n_far"], far["share"]) == (1, pytest.approx(0.1)), "a run far from clean ones has no share"
    assert far["value"] == entry["value"]
    assert random_entry(donor, nothing, half, drawn, range(4))["share"] is None
    none = random_entry(nothing, nothing, half, drawn)
    assert none["share"] is None
    assert "covers 0" in none["undefined"]


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
    for kind in (CrossModelSettings, GraftSettings, KnockoutSettings, VerdictSettings):
        with pytest.raises(ValidationError, match="Extra inputs"):
            kind(promts=3)


def test_a_circuit_without_heads_is_an_error(bench):
    with pytest.raises(InputError, match="has none"):
        cross_model_section(bench, "tuned", Circuit({"nothing": Group("last", ())}), PATCHING)
