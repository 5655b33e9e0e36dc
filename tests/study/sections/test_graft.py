"""Weight grafts as a section of a study on two tiny models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.errors import InputError
from circuitdiff.evaluation.shapes import random_group
from circuitdiff.methods.graft import Graft, graft, graft_alone, layer_ranges
from circuitdiff.methods.graft_by_role import graft_by_role
from circuitdiff.prompts import Pairs
from circuitdiff.stats.shapley import ALONE, needed_subsets
from circuitdiff.study.context import StudyContext
from circuitdiff.study.estimates import circuit_from
from circuitdiff.study.gains import Direction, RandomGroups
from circuitdiff.study.host import Host
from circuitdiff.study.plan import Sizes
from circuitdiff.study.preflight import outlined
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.records import record_of, value_of
from circuitdiff.study.registry import Results, options_of, parse_study
from circuitdiff.study.sections import graft as section
from circuitdiff.study.sections.discovery import Discovered
from circuitdiff.study.sections.graft import SECTION, GraftedParts, GraftOptions
from helpers.tiny_context import TinyContext, tiny_context, tiny_study

FOUND = Circuit(
    {
        "fetcher": Group("last", (Head(2, 1), Head(1, 3))),
        "reader": Group("previous_query_label", (Head(0, 2), Head(1, 0))),
        "nothing": Group("query_label", ()),
    }
)
TESTED = Circuit({name: FOUND.groups[name] for name in ("fetcher", "reader")})
OPTIONS = GraftOptions(prompts=5, random_groups=2, heads=True, roles=None)


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> TinyContext:
    return tiny_context(tmp_path_factory.mktemp("study"), tuned=True)


def grafted(
    context: TinyContext,
    monkeypatch: pytest.MonkeyPatch,
    options: GraftOptions = OPTIONS,
    donor: str | None = None,
    circuit: Circuit = FOUND,
) -> Any:
    """Of this circuit; as if the donor were better at 95 %, which nine prompts of a random model do not say."""
    base = context.study.base

    async def discovered(*_: Any) -> Discovered:
        return Discovered(base, None, circuit, ())

    async def direction_of(*_: Any) -> Direction:
        return Direction("tuned", base, gains=True) if donor == "tuned" else Direction(base, "tuned", gains=True)

    monkeypatch.setattr(section, "discovered", discovered)
    if donor is not None:
        monkeypatch.setattr(section, "direction_of", direction_of)
    return context.run(SECTION.run(context.study, options)).get("tuned")


def first(context: TinyContext, n: int) -> Pairs:
    return context.loaded().pairs(PromptsOf("evaluation", first=n))


def both(context: TinyContext):
    return context.loaded().model, context.loaded("tuned").model


def hold(result: GraftedParts, expected: Any) -> None:
    """The result is the library's."""
    assert result.order == expected.order
    assert result.unchanged == expected.unchanged
    for row, (subset, answers) in zip(result.runs, expected.runs.items(), strict=True):
        assert set(row.parts) == subset
        assert row.log_prob.value == pytest.approx(float(answers.log_probs.mean()), abs=1e-4)
        assert row.logit_difference.value == pytest.approx(float(answers.logit_differences.mean()), abs=1e-4)
    for score in ("log_prob", "logit_difference"):
        given, credits = result.scores[score], expected.attribution(score)
        assert given.gain.value == pytest.approx(credits.gain.value, abs=1e-4)
        for part, by_how in credits.parts.items():
            assert given.parts[part][ALONE].value == pytest.approx(by_how[ALONE].value, abs=1e-4)


def test_groups_layers_and_single_heads_are_the_librarys(context, monkeypatch):
    result, (base, tuned) = grafted(context, monkeypatch, donor="tuned"), both(context)
    pairs = first(context, 5)
    whole = graft(tuned, base, TESTED, pairs)
    hold(result, whole)
    hold(result.layers, graft(tuned, base, layer_ranges(base.n_layers, None), pairs))
    hold(result.matrices, graft(tuned, base, "matrices", pairs))
    hold(result.roles, graft_by_role(tuned, base, TESTED.roles, pairs))
    hold(result.heads, graft(tuned, base, TESTED.groups[result.heads.group], pairs, per_head=True))
    assert {"norms", "embeddings"} <= set(result.unchanged)
    assert result.also_touched["fetcher"] == ((1, 2), (2, 0))
    choose = [i for i, scenario in enumerate(pairs.scenarios) if scenario in pairs.scenarios.unique()[::2]]
    brought = {name: int(whole.runs[frozenset([name])].hits[choose].sum()) for name in TESTED.groups}
    assert result.heads.group == max(brought, key=lambda name: brought[name])
    assert circuit_from(result.groups) == TESTED


def test_controls_are_random_heads_and_the_other_readers_on_prompts_that_did_not_choose_the_group(context, monkeypatch):
    result, (base, tuned) = grafted(context, monkeypatch, donor="tuned"), both(context)
    [(name, controls)] = result.controls.items()
    assert name == result.heads.group
    assert tuple(controls) == ("same_layers", "shared_kv")
    group, touched = TESTED.groups[name], tuple(Head(*place) for place in result.also_touched[name])
    g = torch.Generator().manual_seed(context.study.settings.seed)
    drawn = [random_group(group, base.n_layers, base.n_heads, g, besides=touched) for _ in range(2)]
    drawn.append(Group(group.at, touched))
    pairs = first(context, 5)
    other = [i for i, scenario in enumerate(pairs.scenarios) if scenario not in pairs.scenarios.unique()[::2]]
    *random, readers = (each.hits[other].double().mean() for each in graft_alone(tuned, base, drawn, pairs))
    nothing = controls["same_layers"].nothing
    assert controls["same_layers"].accuracies == pytest.approx([float(each) for each in random])
    assert controls["shared_kv"].value == pytest.approx(float(readers) - nothing)
    assert (controls["same_layers"].n, controls["same_layers"].n_prompts) == (2, len(other))
    assert 0 < len(other) < 5


def test_random_heads_are_none_that_read_the_groups_own_keys_and_values(context, monkeypatch):
    drawn: list[Group] = []
    monkeypatch.setattr(section, "random_group", lambda *a, **k: drawn.append(random_group(*a, **k)) or drawn[-1])
    result = grafted(context, monkeypatch, replace(OPTIONS, random_groups=12), donor="tuned")
    touched = {Head(*place) for place in result.also_touched[result.heads.group]}
    assert len(drawn) == 12
    assert not touched & {head for group in drawn for head in group.heads}


def test_heads_that_read_no_keys_of_others_have_no_such_control(context, monkeypatch):
    result = grafted(context, monkeypatch, replace(OPTIONS, projections=("q", "o")), donor="tuned")
    [controls] = result.controls.values()
    assert tuple(controls) == ("same_layers",)
    assert result.also_touched == {}


def test_several_questions_are_asked_about_the_evaluation_scenarios(context, monkeypatch):
    options = replace(OPTIONS, prompts=8, queries_per_scenario=2, heads=False)
    result, (base, tuned) = grafted(context, monkeypatch, options, donor="tuned"), both(context)
    assert (result.n_prompts, result.n_scenarios) == (8, 4)
    evaluation, seed = context.loaded().pairs(PromptsOf("evaluation")), context.study.settings.seed
    asked = context.study.task.sample(base.tokenizer, 8, seed, "evaluation", 2)
    for i, scenario in enumerate(asked.scenarios.tolist()):
        begin = asked.positions["query_box"][i]
        same = int((evaluation.scenarios == scenario).nonzero()[0])
        assert torch.equal(asked.clean[i, :begin], evaluation.clean[same, :begin]), "of the held-out scenarios"
    hold(result, graft(tuned, base, TESTED, asked))
    [controls] = result.controls.values()
    assert (controls["same_layers"].n_prompts, controls["same_layers"].n_scenarios) == (4, 2)
    more = replace(options, prompts=1000, random_groups=1, layers=(), matrices=False, roles=())
    result = grafted(context, monkeypatch, more, donor="tuned")
    assert (result.n_prompts, result.n_scenarios) == (18, 9), "nine evaluation prompts, of as many scenarios"
    assert (result.layers, result.matrices, result.roles) == (None, None, None)


def test_of_a_variant_that_is_worse_the_base_is_the_donor(context, monkeypatch):
    result, (base, tuned) = grafted(context, monkeypatch, donor="base"), both(context)
    for parts in (result, result.heads, result.layers):
        assert (parts.donor, parts.recipient) == (base.name, "tuned")
    hold(result, graft(base, tuned, TESTED, first(context, 5)))


def test_without_a_gain_fewer_prompts_are_run_and_no_controls(context, monkeypatch):
    result = grafted(context, monkeypatch, replace(OPTIONS, without_gain=3))
    for parts in (result, result.heads, result.layers):
        assert parts.n_prompts == 3
        assert "covers 0" in parts.scores["accuracy"].together.undefined
    assert result.controls == {}


def test_a_second_time_nothing_is_computed_and_the_same_comes_back(context, monkeypatch):
    once = grafted(context, monkeypatch, donor="tuned")
    monkeypatch.setattr(Host, "run", lambda *_: pytest.fail("computed again"))
    assert grafted(context.again(context.study.store.folder), monkeypatch, donor="tuned") == once


def test_a_circuit_without_heads_has_no_results(context, monkeypatch):
    assert grafted(context, monkeypatch, circuit=Circuit({"nothing": Group("last", ())})) is None


def test_results_come_back_from_json_as_they_were(context, monkeypatch):
    result = grafted(context, monkeypatch, donor="tuned")
    form = TypeAdapter(Results.__pydantic_fields__["graft"].annotation)
    [back] = form.validate_json(form.dump_json({"tuned": result})).values()
    assert back == result
    [controls] = back.controls.values()
    assert isinstance(controls["same_layers"], RandomGroups)
    assert not isinstance(controls["shared_kv"], RandomGroups)


def without_slices(whole: Graft) -> Graft:
    return replace(whole, parts={name: replace(part, slices=()) for name, part in whole.parts.items()})


def test_records_come_back_as_they_were(context):
    (base, tuned), pairs = both(context), first(context, 4)
    grafts = [graft(tuned, base, parts, pairs) for parts in (TESTED, layer_ranges(3, None), TESTED.groups["reader"])]
    for back, expected in zip(value_of(record_of([without_slices(each) for each in grafts])), grafts, strict=True):
        assert (back.order, back.unchanged) == (expected.order, expected.unchanged)
        assert back.whole_graft_error == expected.whole_graft_error
        assert list(back.runs) == list(expected.runs)
        for subset, answers in expected.runs.items():
            assert torch.equal(back.runs[subset].log_probs, answers.log_probs)
        assert torch.equal(back.donor.log_probs, expected.donor.log_probs)
        for name, part in expected.parts.items():
            assert (back.parts[name].heads, back.parts[name].also_touched) == (part.heads, part.also_touched)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"promts": 3}, "prompts"), ({"projections": []}, "graft.projections"), ({"projections": ["x"]}, "projections")],
)
def test_settings_that_cannot_be_are_refused(tmp_path, setting, message):
    with pytest.raises(InputError, match=message):
        parse_study(tiny_study(tmp_path, graft=setting), "test")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"layers": [0]}, "ranges of layers begin at rising layers between 1 and 2; got 0"),
        ({"layers": [40]}, "ranges of layers .*; got 40"),
        ({"projections": ["q", "q"]}, r"graft\.projections are some of q, k, v, o, each once"),
        ({"queries_per_scenario": 4}, "graft: queries_per_scenario must be from 1 to 3; got 4"),
        ({"layers": [1, 2], "projections": ["q", "o"], "queries_per_scenario": 3}, None),
    ],
)
def test_what_cannot_be_grafted_is_refused(context, setting, message):
    refuse(context, message, graft=setting)


def test_a_stage_must_not_be_called_like_what_the_groups_leave(context):
    message = "'mlps' is the name of what the groups leave in a graft"
    refuse(context, message, plans={"main": {"stages": [{"name": "mlps", "at": "last"}]}})


def refuse(context: TinyContext, message: str | None, **changes: Any) -> None:
    source = context.study.settings.base.source
    settings = parse_study(tiny_study(source, variants={"second": source}, **changes), "test")
    options = options_of(settings, SECTION)
    assert options is not None
    study = outlined(settings)
    if message is None:
        SECTION.check(study, options)
    else:
        with pytest.raises(InputError, match=message):
            SECTION.check(study, options)


def test_the_plan_counts_runs_and_controls_and_that_questions_about_one_scenario_share_a_row(context):
    async def sizes(study: StudyContext) -> Sizes:
        prompts = await study.prompts_of(study.base)
        base, speed = await study.facts(study.base), await study.speed()
        return Sizes(study.settings, study.plans, study.task, base, speed, prompts)

    known = context.run(sizes(context.study))
    options = GraftOptions(prompts=8, random_groups=0, matrices=False)
    [one], [two] = (SECTION.cost(known, replace(options, queries_per_scenario=n)) for n in (1, 2))
    # Two groups and five kinds; two ranges and three kinds outside. Both have the donor, the recipient, either end
    # alone and left out, and all but the ends.
    assert one.forwards == two.forwards == 8 * (len(needed_subsets("abcdefg")) + len(needed_subsets("abcde")) - 2 - 5)
    layers, head = known.base.n_layers * known.speed.flop_of_layer, known.speed.flop_of_head
    question = max(known.width(role) for role in known.task.question_roles if role in known.roles)
    whole, shared = known.length * layers + head, (question + (known.length - question) / 2) * layers + head
    assert two.flop / one.flop == pytest.approx(shared / whole, rel=0.03)  # eight prompts are the donor's
    [more] = SECTION.cost(known, replace(options, random_groups=3))
    assert more.forwards - one.forwards == 8 * (3 + 1)
    [more] = SECTION.cost(known, replace(options, matrices=True))
    assert more.forwards - one.forwards == 8 * (6 + 6 + 4)  # six alone, six left out, two to five of them in order
    [more] = SECTION.cost(known, replace(options, roles=("last", "query_label")))
    assert more.forwards - one.forwards == 8 * len(needed_subsets("abc"))
