"""What groups encode, as a section of a study on two tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from circuitdiff.cache.store import Record, Store, to_json
from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine import Model
from circuitdiff.errors import InputError
from circuitdiff.methods.component_mask import SharedRuns, fit_mask
from circuitdiff.planted import build_planted
from circuitdiff.sections.functions import functions_section
from circuitdiff.sections.functions_cells import Cells
from circuitdiff.sections.functions_settings import FunctionSettings, RedrawSettings, SweepSettings
from circuitdiff.settings import read_settings
from circuitdiff.tasks import get_task
from circuitdiff.tasks.desiderata import sample_triples
from circuitdiff.workbench import Workbench
from helpers.tiny_folder import save_tiny_model, study_yaml

GROUPS = {
    "fetcher": Group("last", (Head(2, 1), Head(1, 3), Head(2, 3))),
    "reader": Group("previous_query_label", (Head(0, 2), Head(1, 1))),
}
FOUND = Circuit(GROUPS | {"nothing": Group("query_label", ())})
SETTINGS = FunctionSettings(
    desiderata=("object", "position"),
    train=8,
    validation=5,
    test=7,
    penalty=0.0,
    steps=6,
    prompts_per_step=4,
    check_every=6,
    random_groups=2,
    control_triples=4,
    further={"fetcher": ("no_comma",)},
    sweep=SweepSettings(penalties=(0.5,), seeds=2),
    redraw=RedrawSettings(times=2, triples=3),
)
TASK = get_task("entity_tracking", n_boxes=3)
CELLS = {"fetcher": ["object", "position", "no_comma"], "reader": ["object", "position"]}  # in the circuit's own model
MAIN = {group: ["object", "position"] for group in CELLS}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Workbench:
    folder = tmp_path_factory.mktemp("study")
    models = [save_tiny_model(folder / name, seed) for seed, name in enumerate(("one", "two"))]
    (folder / "tiny.yaml").write_text(study_yaml(models[0], variants=f"{{other: {models[1]}}}"))
    return Workbench(read_settings(folder / "tiny.yaml"), Store.open(folder / "run"), lambda *_: None)


@pytest.fixture(scope="module")
def entries(bench) -> dict:
    """By model: the section as results.json has it, strict JSON."""
    models = (bench.base, "other")
    found = {model: functions_section(bench, model, "mine", FOUND, SETTINGS) for model in models}
    return {model: json.loads(to_json(each))["functions"]["mine"][model] for model, each in found.items()}


def places(heads) -> list:
    return [[head.layer, head.index] for head in heads]


@pytest.mark.parametrize("model", ["base", "other"])
def test_the_section_holds_the_librarys_numbers_for_every_group_and_desideratum(bench, entries, model):
    model = bench.base if model == "base" else model
    subject = bench.subject(model).model
    at_home = model == bench.base
    assert {group: list(found) for group, found in entries[model].items()} == (CELLS if at_home else MAIN)
    for group, wanted in (("reader", "position"), ("fetcher", "no_comma" if at_home else "object")):
        swept = group == "fetcher" and model == bench.base
        options = SETTINGS.options(0, swept=swept)
        [triples] = TASK.triples(subject.tokenizer, [wanted], sum(options.n_triples), 0)
        fit = fit_mask(subject, GROUPS[group], triples, options)
        entry = entries[model][group][wanted]
        assert entry["heads"] == places(fit.heads)
        assert [entry["accuracy"], entry["low"], entry["high"]] == pytest.approx(list(fit.accuracy()))
        assert entry["floor"] == fit.accuracy(fit.floor).value
        assert entry["above_floor"]["value"] == pytest.approx(fit.above_floor.value)
        assert entry["carries"] == fit.carries
        assert entry["controls"]["all"]["value"] == fit.accuracy("all").value
        assert entry["controls"]["random"] == pytest.approx(fit.random_accuracy)
        assert [point["n_heads"] for point in entry["trade_off"]] == [len(m.patched) for m, _ in fit.trade_off()]
        assert len(entry["trade_off"]) == (3 if swept else 1)
        assert sum(point["n"] for point in entry["by_queried"]) == entry["n_test"] == 7


def test_the_bases_masks_are_tested_unchanged_in_the_variant(bench, entries):
    subject = bench.subject("other").model
    for group, found in entries["other"].items():
        for wanted, entry in found.items():
            heads = entries[bench.base][group][wanted]["heads"]
            assert entry["transferred"]["heads"] == heads
            assert entry["transferred"]["from"] == bench.base
            triples = sample_triples(TASK, subject.tokenizer, wanted, 20)
            patching = SharedRuns(subject, GROUPS, triples.base).patching(group, triples)
            test = torch.arange(13, 20)
            hits = patching.answers([Head(*head) for head in heads], test) == triples.targets[test]
            assert entry["transferred"]["value"] == pytest.approx(float(hits.double().mean()))
            difference = entry["transferred"]["value"] - entry["accuracy"]
            assert entry["transferred"]["above_own_mask"]["value"] == pytest.approx(difference)
    assert "transferred" not in entries[bench.base]["fetcher"]["object"]


def test_redrawn_accuracies_are_those_of_the_bases_heads_on_sources_drawn_anew(bench, entries):
    for model, found in entries.items():
        subject = bench.subject(model).model
        assert "redrawn" not in found["fetcher"].get("no_comma", {})
        for group, wanted in (("fetcher", "object"), ("reader", "position")):
            entry, expected = found[group][wanted]["redrawn"], []
            heads = [Head(*head) for head in entries[bench.base][group][wanted]["heads"]]
            for redraw in (1, 2):
                triples = sample_triples(TASK, subject.tokenizer, wanted, 20, redraw=redraw)
                patching = SharedRuns(subject, GROUPS, triples.base).patching(group, triples)
                test = torch.arange(13, 16)
                expected.append(float((patching.answers(heads, test) == triples.targets[test]).double().mean()))
            assert entry["accuracies"] == pytest.approx(expected)
            assert entry["mean"] == pytest.approx(sum(expected) / 2)


def test_a_second_run_takes_nothing_from_the_models(bench, entries, monkeypatch):
    monkeypatch.setattr(Model, "forward", lambda *_: pytest.fail("a model ran"))
    again = functions_section(bench, "other", "mine", FOUND, SETTINGS)
    assert json.loads(to_json(again))["functions"]["mine"]["other"] == entries["other"]


def test_masks_are_checked_by_both_executors(bench, entries):
    names = [
        check["detail"] for check in bench.results["checks"] if check["name"] == "window executor vs full executor"
    ]
    assert sum("masks of fetcher of mine" in name for name in names) >= 2
    assert sum("masks of reader of mine" in name for name in names) >= 2


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> tuple[Workbench, Circuit]:
    """A study of a planted model, whose fetchers do carry objects."""
    folder = tmp_path_factory.mktemp("planted")
    task = "{name: entity_tracking, options: {n_boxes: 7}}"
    (folder / "planted.yaml").write_text(study_yaml(Path("planted-base"), task=task))
    bench = Workbench(read_settings(folder / "planted.yaml"), Store.open(folder / "run"), lambda *_: None)
    return bench, Circuit({"value_fetcher": build_planted("planted-base").circuit.groups["value_fetcher"]})


SMALL = FunctionSettings(
    desiderata=("object",), train=8, validation=6, test=24, steps=2, random_groups=0, sweep=None,
    redraw=RedrawSettings(times=2, triples=20),
)  # fmt: skip


def test_other_models_heads_are_patched_not_the_models_own(planted):
    bench, circuit = planted
    group, model = circuit.groups["value_fetcher"], bench.subject(bench.base).model
    cells = Cells(bench, bench.base, "mine", circuit, "elsewhere", SMALL)
    given = Record({}, {"heads": places(group.heads)})
    found, redrawn = (
        cells.transferred("value_fetcher", "object", given),
        cells.redrawn({("value_fetcher", "object"): given}),
    )
    assert cells.fit("value_fetcher", "object").data["heads"] == []  # two steps are too few to choose any
    task, test = get_task("entity_tracking"), torch.arange(14, 38)

    def accuracies(redraw: int, rows) -> float:
        triples = sample_triples(task, model.tokenizer, "object", 38, redraw=redraw)
        patching = SharedRuns(model, circuit.groups, triples.base).patching("value_fetcher", triples)
        return float((patching.answers(group.heads, rows) == triples.targets[rows]).double().mean())

    assert found["value"] == pytest.approx(accuracies(0, test))
    assert found["value"] > 0.3
    entry = redrawn["value_fetcher"]["object"]
    assert entry["accuracies"] == pytest.approx([accuracies(redraw, test[:20]) for redraw in (1, 2)])
    assert entry["accuracies"][0] != entry["accuracies"][1]
    assert (found["from"], entry["from"]) == ("elsewhere", "elsewhere")


def test_triples_of_ones_own_are_tested_beside_the_tasks(bench, tmp_path):
    tokenizer = bench.subject(bench.base).model.tokenizer
    drawn = sample_triples(TASK, tokenizer, "position", 20)
    lines = []
    for i in range(20):
        base, source = (
            tokenizer.decode(p.tokens[i, : p.lengths[i]], skip_special_tokens=True) for p in (drawn.base, drawn.source)
        )
        words = [tokenizer.decode([int(tokens[i])]) for tokens in (drawn.answers, drawn.targets)]
        lines.append({"base": base, "source": source, "answer": f" {words[0]}", "target": f" {words[1]}"})
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    settings = SETTINGS.model_copy(
        update={"desiderata": (str(path), "position"), "further": {}, "redraw": RedrawSettings(times=0)}
    )
    circuit = Circuit({"fetcher": GROUPS["fetcher"]})
    found = functions_section(bench, bench.base, "files", circuit, settings)["functions"]["files"][bench.base][
        "fetcher"
    ]
    assert list(found) == ["mine", "position"]
    assert found["mine"]["accuracy"] == found["position"]["accuracy"]
    assert found["mine"]["heads"] == found["position"]["heads"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"desiderata": ("colour",)}, "there is no desideratum 'colour'.*; choose one of object"),
        ({"desiderata": ("none.jsonl",)}, "there is no file none.jsonl of triples"),
        ({"desiderata": ("next_segment",)}, "3 boxes are too few"),
    ],
)
def test_a_desideratum_that_cannot_be_tested_is_refused(bench, changes, message):
    with pytest.raises(InputError, match=message):
        functions_section(bench, bench.base, "mine", FOUND, SETTINGS.model_copy(update=changes))


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        FunctionSettings(penalties=(1.0,))  # pyright: ignore[reportCallIssue]
