"""What groups encode, as a section of a study: masks, those of another model, and sources drawn anew."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitdiff.cache.records import packed
from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine import Model
from circuitdiff.errors import InputError
from circuitdiff.methods.component_mask.fit import MaskFit, MaskOptions, Sweep, fit_mask
from circuitdiff.methods.component_mask.patching import SharedRuns
from circuitdiff.models import load_model
from circuitdiff.planted import build_planted
from circuitdiff.study.host import LoadedModel
from circuitdiff.study.prompts import TriplesOf
from circuitdiff.study.records import record_of, value_of
from circuitdiff.study.registry import SECTIONS, parse_study, read_results
from circuitdiff.study.runner import run_study
from circuitdiff.study.sections import functions
from circuitdiff.study.sections.functions_units import MaskRuns, Patched, answers_of_patched, learned_mask
from circuitdiff.tasks import get_task
from circuitdiff.tasks.desiderata import sample_triples
from helpers.tiny_folder import save_tiny_model

GROUPS = {
    "fetcher": Group("last", (Head(2, 1), Head(1, 3), Head(2, 3))),
    "reader": Group("previous_query_label", (Head(0, 2), Head(1, 1))),
}
SIZES = {"train": 8, "validation": 5, "test": 7}
OPTIONS = {
    **SIZES,
    "desiderata": ["object", "position"],
    "penalty": 0.0,
    "steps": 6,
    "prompts_per_step": 4,
    "check_every": 6,
    "random_groups": 2,
    "control_triples": 4,
    "further": {"fetcher": ["no_comma"]},
    "sweep": {"penalties": [0.5], "seeds": 2},
    "redraw": {"times": 2, "triples": 3},
}
MASK_OPTIONS = MaskOptions(
    **SIZES, penalty=0.0, steps=6, prompts_per_step=4, check_every=6, random_groups=2, control_triples=4
)
TASK = get_task("entity_tracking", n_boxes=3)
CELLS = {"fetcher": ["object", "position", "no_comma"], "reader": ["object", "position"]}  # in the circuit's own model
MAIN = {group: ["object", "position"] for group in CELLS}
ASKED = ("discovery", "functions")
OFF = {section.name: False for section in SECTIONS if section.options is not None and section.name not in ASKED}
OFF |= {"force": True}  # random weights do no task


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models "one" and "two", and a circuit."""
    folder = tmp_path_factory.mktemp("study")
    for seed, name in enumerate(("one", "two")):
        save_tiny_model(folder / name, seed)
    (folder / "mine.json").write_text(json.dumps(Circuit(GROUPS).to_dict()))
    return folder


def study_of(folder: Path, options: dict[str, Any], **changes: Any) -> Any:
    """Two models, a plan with a group of two heads and one without any, the circuit "mine", and no other section."""
    stages = [
        {"name": "chosen", "at": "last", "select": {"top": 2}},
        {"name": "empty", "at": "last", "select": {"minimum": 1000.0}},
    ]
    study: dict[str, Any] = {
        "name": "tiny",
        "base": str(folder / "one"),
        "variants": {"two": str(folder / "two")},
        "task": {"name": "entity_tracking", "options": {"n_boxes": 3}},
        "prompts": {"discovery": 6, "replication": 6, "evaluation": 9, "means": 12},
        "plans": {"main": {"stages": stages}},
        "circuits": {"mine": "mine.json"},
    }
    return parse_study(study | OFF | {"functions": options} | changes, "test", folder)


def results_of(study: Any, run_folder: Path) -> Any:
    run_study(study, run_folder)
    return read_results(run_folder)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run") / "run"


@pytest.fixture(scope="module")
def results(folder, run_folder) -> Any:
    return results_of(study_of(folder, OPTIONS | {"circuits": ["mine"]}), run_folder)


@pytest.fixture(scope="module")
def models(folder) -> dict[str, Model]:
    return {name: load_model(folder / name, dtype="float32", name=name) for name in ("one", "two")}


def places(heads) -> tuple:
    return tuple((head.layer, head.index) for head in heads)


def heads_of(cell: functions.MaskCell) -> list[Head]:
    return [Head(*place) for place in cell.heads]


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_section_holds_the_librarys_numbers_for_every_group_and_desideratum(results, models, name):
    model, by_group, at_home = models[name], results.functions["mine"][name], name == "one"
    assert {group: list(cells) for group, cells in by_group.items()} == (CELLS if at_home else MAIN)
    for group, desideratum in (("reader", "position"), ("fetcher", "no_comma" if at_home else "object")):
        swept = group == "fetcher" and at_home
        [triples] = TASK.triples(model.tokenizer, [desideratum], sum(MASK_OPTIONS.n_triples), 0)
        fit = fit_mask(model, GROUPS[group], triples, MASK_OPTIONS, sweep=Sweep((0.5,), 2) if swept else None)
        cell = by_group[group][desideratum]
        assert (cell.heads, cell.group, cell.at) == (places(fit.heads), places(GROUPS[group].heads), GROUPS[group].at)
        assert [cell.accuracy, cell.low, cell.high] == pytest.approx(list(fit.accuracy()))
        assert (cell.floor, cell.floor_is) == (fit.accuracy(fit.floor).value, fit.floor)
        assert cell.above_floor.value == pytest.approx(fit.above_floor.value)
        assert cell.carries == fit.carries
        assert cell.controls.all.value == fit.accuracy("all").value
        assert cell.controls.random == pytest.approx(fit.random_accuracy)
        assert [point.n_heads for point in cell.trade_off] == [len(mask.patched) for mask, _ in fit.trade_off()]
        assert len(cell.trade_off) == (3 if swept else 1)
        assert sum(share.n for share in cell.by_queried) == cell.n_test == cell.n_scenarios == 7


@pytest.fixture(scope="module")
def with_heads(folder, run_folder, results, tmp_path_factory) -> Any:
    """The results as if all masks of the base patched the group's first head, and those of the variant nothing."""
    copy, learned = tmp_path_factory.mktemp("with_heads") / "run", functions._Masks._fit
    shutil.copytree(run_folder, copy)
    for name in ("finished.json", "results.json"):
        (copy / name).unlink()

    async def fit(self, model: str, group: str, desideratum: str):
        fit = await learned(self, model, group, desideratum)
        keep = torch.ones(len(fit.group.heads))
        keep[0] = 0.0 if model == "one" else 1.0
        return replace(fit, mask=replace(fit.mask, keep=keep))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functions._Masks, "_fit", fit)
        return results_of(study_of(folder, OPTIONS | {"circuits": ["mine"]}), copy)


def test_the_bases_masks_are_tested_unchanged_in_the_variant(with_heads, models):
    home, model = with_heads.functions["mine"]["one"], models["two"]
    for group, cells in with_heads.functions["mine"]["two"].items():
        for desideratum, cell in cells.items():
            transferred = cell.transferred
            assert (transferred.heads, transferred.from_model) == (places(GROUPS[group].heads[:1]), "one")
            assert (cell.heads, home[group][desideratum].heads) == ((), transferred.heads)
            triples = sample_triples(TASK, model.tokenizer, desideratum, 20)
            patching = SharedRuns(model, GROUPS, triples.base).patching(group, triples)
            test = torch.arange(13, 20)
            hits = patching.answers(heads_of(home[group][desideratum]), test) == triples.targets[test]
            assert transferred.value == pytest.approx(float(hits.double().mean()))
            assert transferred.above_own_mask.value == pytest.approx(transferred.value - cell.accuracy)
    assert home["fetcher"]["object"].transferred is None


def test_redrawn_accuracies_are_those_of_the_bases_heads_on_sources_drawn_anew(with_heads, models):
    home = with_heads.functions["mine"]["one"]
    assert home["fetcher"]["no_comma"].redrawn is None
    for name, model in models.items():
        for group, desideratum in (("fetcher", "object"), ("reader", "position")):
            redrawn, expected = with_heads.functions["mine"][name][group][desideratum].redrawn, []
            for redraw in (1, 2):
                triples = sample_triples(TASK, model.tokenizer, desideratum, 20, redraw=redraw)
                patching = SharedRuns(model, GROUPS, triples.base).patching(group, triples)
                test = torch.arange(13, 16)
                hits = patching.answers(heads_of(home[group][desideratum]), test) == triples.targets[test]
                expected.append(float(hits.double().mean()))
            assert redrawn.accuracies == pytest.approx(tuple(expected))
            assert redrawn.mean == pytest.approx(sum(expected) / 2)
            assert (redrawn.from_model, redrawn.n_triples) == ("one", 3)
            assert redrawn.heads == places(GROUPS[group].heads[:1])


def test_masks_are_checked_by_both_executors(results):
    checked = [(each.model, each.detail) for each in results.checks if each.name == "window executor vs full executor"]
    for model in ("one", "two"):
        for group in GROUPS:
            assert [f"masks of {group} of mine" in detail for name, detail in checked if name == model].count(True) == 1


def test_records_are_read_not_computed_again(folder, run_folder, results, monkeypatch):
    monkeypatch.setattr(SharedRuns, "__init__", lambda *_, **__: pytest.fail("a mask was learned"))
    for name in ("finished.json", "results.json"):
        (run_folder / name).unlink()
    again = results_of(study_of(folder, OPTIONS | {"circuits": ["mine"]}), run_folder)
    assert again.functions == results.functions


def loaded(model: Model, study: Any) -> LoadedModel:
    return LoadedModel(model, study, lambda *_: None)


def test_a_records_bytes_do_not_depend_on_what_ran_before(folder, models):
    """Of two circuits, desiderata with and without the same source prompts, and one drawn anew; in both orders."""
    names, study, units = ("object", "position", "no_comma"), study_of(folder, OPTIONS), []
    for groups in (GROUPS, {"reader": Group("last", (Head(0, 0), Head(2, 2)))}):
        shared, group = MaskRuns(tuple(groups.items()), 2, 0, 1.0), next(iter(groups))
        for name, tested in (("position", (*groups,)), ("no_comma", (group,))):
            common = {"triples": TriplesOf(name, MASK_OPTIONS.n_triples, names), "tested": tested, "shared": shared}
            units.append((learned_mask, common | {"group": group, "options": MASK_OPTIONS, "sweep": None}))
        drawn = replace(common["triples"], desideratum="position", redraw=1, n_redrawn=7)
        units.append((answers_of_patched, common | {"patched": (Patched(group, drawn, groups[group].heads),)}))

    def contents(order: list[int]) -> dict[int, bytes]:
        subject = loaded(models["one"], study)
        return {i: packed(record_of(units[i][0](subject, **units[i][1]))) for i in order}

    order = list(range(len(units)))
    forth, back = contents(order), contents(order[::-1])
    assert forth == back
    assert len({*forth.values()}) == len(units)


def test_a_fit_is_read_from_its_record_as_it_was(models):
    [triples] = TASK.triples(models["one"].tokenizer, ["object"], 20, 0)
    options = replace(MASK_OPTIONS, minimum=0.0)
    fit = fit_mask(models["one"], GROUPS["fetcher"], triples, options, sweep=Sweep((0.5, 3.0), 2))
    for shuffled in (None, fit.others[0]):
        answers = {name: each for name, each in fit.answers.items() if name != "shuffled"}
        answers |= {} if shuffled is None else {"shuffled": fit.answers["nothing"] + 1}
        changed = replace(fit, shuffled=shuffled, answers=answers)
        read = MaskFit(**value_of(record_of(vars(changed) | {"test": None})) | {"test": fit.test})
        assert functions.cell_of(read) == functions.cell_of(changed)
        assert [*read.mask.checks] == [*fit.mask.checks]
        assert (read.shuffled is None) == (shuffled is None)
        assert [(mask.penalty, mask.seed) for mask in read.others] == [(m.penalty, m.seed) for m in fit.others]


@pytest.fixture(scope="module")
def planted(folder) -> LoadedModel:
    """A planted model, whose fetchers do carry objects."""
    study = parse_study({"name": "planted", "base": "planted-base", "task": "entity_tracking"} | OFF, "test", folder)
    return loaded(load_model("planted-base", dtype="float32"), study)


def test_given_heads_are_patched_not_those_of_the_models_own_mask(planted):
    group, model = build_planted("planted-base").circuit.groups["value_fetcher"], planted.model
    of, task, test = TriplesOf("object", (8, 6, 24), ("object",)), get_task("entity_tracking"), torch.arange(14, 38)
    shared = MaskRuns((("value_fetcher", group),), 0, 0, 1.0)
    options = MaskOptions(train=8, validation=6, test=24, steps=2, random_groups=0)
    common = {"triples": of, "tested": ("value_fetcher",), "shared": shared}
    fit = learned_mask(planted, group="value_fetcher", options=options, sweep=None, **common)
    own = MaskFit(**fit | {"test": planted.triples(of).select(test)})
    assert own.heads == ()  # two steps are too few to choose any
    draws = (of, *(replace(of, redraw=redraw, n_redrawn=20) for redraw in (1, 2)))
    patched = (*(Patched("value_fetcher", each, group.heads) for each in draws), Patched("value_fetcher", draws[1], ()))
    answers = answers_of_patched(planted, patched=patched, **common)

    def accuracy(redraw: int, rows) -> float:
        triples = sample_triples(task, model.tokenizer, "object", 38, redraw=redraw)
        patching = SharedRuns(model, {"value_fetcher": group}, triples.base).patching("value_fetcher", triples)
        expected = patching.answers(group.heads, rows)
        assert torch.equal(answers[redraw], expected)
        return float((expected == triples.targets[rows]).double().mean())

    transferred = functions.transferred_of(group.heads, answers[0], own, "elsewhere")
    assert transferred.value == pytest.approx(accuracy(0, test))
    assert transferred.value > 0.3
    assert transferred.above_own_mask.value == pytest.approx(transferred.value - float(own.accuracy().value))
    hits = [answers[i] == planted.triples(draws[i]).targets for i in (1, 2)]
    redrawn = functions.redrawn_of(hits, group.heads, "elsewhere")
    assert redrawn.accuracies == pytest.approx(tuple(accuracy(redraw, test[:20]) for redraw in (1, 2)))
    assert redrawn.accuracies[0] != redrawn.accuracies[1]
    assert torch.equal(answers[3], own.answers["nothing"][:20])
    assert (transferred.from_model, redrawn.from_model) == ("elsewhere", "elsewhere")


def test_triples_of_ones_own_are_tested_beside_the_tasks(folder, models, tmp_path):
    tokenizer = models["one"].tokenizer
    drawn = sample_triples(TASK, tokenizer, "position", 20)
    lines = []
    for i in range(20):
        base, source = (
            tokenizer.decode(p.tokens[i, : p.lengths[i]], skip_special_tokens=True) for p in (drawn.base, drawn.source)
        )
        words = [tokenizer.decode([int(tokens[i])]) for tokens in (drawn.answers, drawn.targets)]
        lines.append({"base": base, "source": source, "answer": f" {words[0]}", "target": f" {words[1]}"})
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "fetcher.json").write_text(json.dumps(Circuit({"fetcher": GROUPS["fetcher"]}).to_dict()))
    options = OPTIONS | {"desiderata": ["own.jsonl", "position"], "further": {}, "redraw": {"times": 0}}
    study = study_of(folder, options | {"circuits": ["mine"]}, circuits={"mine": "fetcher.json"}, variants={})
    assert study.functions.files == [str(folder / "own.jsonl")]
    cells = results_of(study, tmp_path / "run").functions["mine"]["one"]["fetcher"]
    assert list(cells) == ["own", "position"]
    assert cells["own"].accuracy == cells["position"].accuracy
    assert cells["own"].heads == cells["position"].heads


SMALL = {
    "desiderata": ["position"],
    "train": 6,
    "validation": 4,
    "test": 4,
    "steps": 6,
    "check_every": 1,
    "random_groups": 1,
    "sweep": None,
    "redraw": {"times": 1, "triples": 4},
}


def test_every_chosen_circuit_is_tested_in_every_model_and_its_own_masks_are_moved(folder, tmp_path):
    homes = {"mine": "one", "two": "two"}
    tested = results_of(study_of(folder, SMALL | {"circuits": ["mine", "two"]}), tmp_path / "run").functions
    assert list(tested) == list(homes)
    for circuit, home in homes.items():
        assert list(tested[circuit]) == ["one", "two"]
        for model, groups in tested[circuit].items():
            assert list(groups) == (["fetcher", "reader"] if circuit == "mine" else ["chosen"])
            for group, cells in groups.items():
                cell, own = cells["position"], tested[circuit][home][group]["position"]
                assert cell.redrawn.from_model == home
                assert (cell.transferred is None) == (model == home)
                if cell.transferred is not None:
                    assert (cell.transferred.from_model, cell.transferred.heads) == (home, own.heads)


def test_a_circuit_without_heads_is_not_tested_and_only_chosen_models_are(folder, tmp_path):
    plans = {"main": {"stages": [{"name": "chosen", "at": "last", "select": {"minimum": 1000.0}}]}}
    options = SMALL | {"circuits": ["two", "mine"], "models": ["two"]}
    tested = results_of(study_of(folder, options, plans=plans), tmp_path / "run").functions
    assert {circuit: [*models] for circuit, models in tested.items()} == {"mine": ["two"]}


def test_a_circuit_is_tested_once_and_only_those_that_are_looked_for_unless_they_are_named(folder):
    def chosen(options: dict[str, Any], **changes: Any) -> list[str]:
        study = study_of(folder, options, **changes)
        return study.functions.circuits_of(study)

    assert chosen(SMALL) == ["one", "two"]
    assert chosen(SMALL, discover_in=[]) == ["one"]
    assert chosen(SMALL | {"circuits": ["mine", "one", "mine"]}) == ["mine", "one"]


def test_a_task_without_desiderata_is_said_to_have_none(folder, tmp_path, monkeypatch):
    without = replace(TASK, desiderata=())
    monkeypatch.setattr("circuitdiff.study.settings.get_task", lambda *_, **__: without)
    results = results_of(study_of(folder, {}, variants={}), tmp_path / "run")
    assert results.functions == {}
    assert any("no desiderata are written for the task entity_tracking" in warning for warning in results.warnings)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"circuits": ["one", "twu"]}, {}, r"functions\.circuits names 'twu'.*choose one of one, two, mine$"),
        ({"circuits": ["two"]}, {"discover_in": []}, r"functions\.circuits names 'two'.*choose one of one, mine$"),
        ({"models": ["one", "mine"]}, {}, r"functions\.models names 'mine', .* lacks; choose one of one, two$"),
        ({"further": {"nope": ["order"]}}, {}, r"functions\.further names 'nope', .*; choose one of chosen, empty$"),
        ({"sweep": {"group": "nope"}}, {}, r"functions\.sweep\.group names 'nope'"),
        ({"desiderata": ["colour"]}, {}, "the task entity_tracking has no desideratum 'colour'; choose one of object"),
        ({"desiderata": ["none.jsonl"]}, {}, "there is no file .*none.jsonl of triples"),
        ({"desiderata": ["next_segment"]}, {}, "3 items are too few for answers that all differ"),
        ({"learning_rate": 0.01}, {}, r"functions\.steps must be at least 51 .*; got 40"),
        ({"gates": "hard_concrete", "steps": 11}, {}, r"functions\.steps must be at least 12 .*; got 11"),
    ],
)
def test_what_cannot_be_tested_is_refused_before_any_work(folder, tmp_path, monkeypatch, options, changes, message):
    monkeypatch.setattr("circuitdiff.study.host.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=message):
        run_study(study_of(folder, options, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalties": [1.0]}, "functions: there is no key 'penalties' here"),
        ({"desiderata": []}, "functions.desiderata: "),
        ({"penalty": -1.0}, "functions.penalty: expected at least 0"),
        ({"sweep": {"penalties": [-0.1]}}, r"functions\.sweep\.penalties\.0: expected at least 0; got -0\.1"),
        ({"gates": "soft"}, "functions.gates: unknown 'soft'"),
        ({"test": 1}, "functions.test: expected at least 2"),
        ({"learning_rate": 0}, "functions.learning_rate: expected greater than 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_name(folder, options, message):
    with pytest.raises(InputError, match=message):
        study_of(folder, options)
