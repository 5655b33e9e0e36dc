"""A whole study on a tiny model: what it writes, and what it does not do twice."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import circuitdiff.study.host
import circuitdiff.study.sections.discovery
from circuitdiff import cli
from circuitdiff.circuit import Circuit
from circuitdiff.errors import InputError
from circuitdiff.evaluation import evaluate_circuit, evaluate_model, mean_activations
from circuitdiff.models import load_model
from circuitdiff.models.checks import CheckError
from circuitdiff.models.family_registry import caution_about
from circuitdiff.prompts import Pairs
from circuitdiff.study.estimates import circuit_from
from circuitdiff.study.host import Host
from circuitdiff.study.prompts import PromptsOf, PromptSource
from circuitdiff.study.records import Deviation
from circuitdiff.study.registry import read_results
from circuitdiff.study.runner import files_of, inputs_of, run_study
from circuitdiff.study.settings import CommonSettings
from circuitdiff.study.workers import ThisProcess
from helpers.tiny_folder import CIRCUIT_ONLY, N_HEADS, N_LAYERS, save_tiny_model, settings_of, silent, study_yaml

NOT_COMPARED = {"overlap": "false", "verdict": "false"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_study(settings_of(folder, model), folder / "run", silent)
    return folder / "run"


def pairs_of(settings: CommonSettings, tokenizer: object, split: str) -> Pairs:
    return PromptSource(settings, settings.base.name, tokenizer).pairs(PromptsOf(split))  # pyright: ignore[reportArgumentType]


def test_the_results_are_those_of_the_library(finished, model, tmp_path):
    results, name = read_results(finished), model.name
    settings = settings_of(tmp_path, model)
    loaded = load_model(model)
    evaluation, means = (pairs_of(settings, loaded.tokenizer, split) for split in ("evaluation", "means"))
    circuit = circuit_from(results.discovery[name].groups)
    assert circuit == Circuit.from_json(finished / "circuit-main.json")
    own = evaluate_circuit(loaded, circuit, evaluation, mean_activations(loaded, means))
    whole = evaluate_model(loaded, evaluation)
    entry = results.faithfulness[name][name]
    assert entry.circuit_accuracy.hits == int(own.hits.sum())
    assert entry.agreement.hits == int((own.predictions == whole.predictions).sum())
    assert results.accuracy[name].accuracy.hits == int(whole.hits.sum())
    assert sum(row.n for row in results.accuracy[name].accuracy_by_queried) == len(evaluation)


def test_the_results_have_every_section(finished, model):
    results, name = read_results(finished), model.name
    assert set(results.discovery) == {name, f"{name} (other)"}
    sweep = results.discovery[name].stages[1]
    assert (sweep.at, sweep.via, sweep.receivers_from) == ("last", "q", "fetcher")
    assert [len(sweep.effects), len(sweep.effects[0])] == [N_LAYERS, N_HEADS]
    drawn = results.faithfulness[name][name].random
    assert len(drawn.accuracies) == 5
    assert drawn.rank_p is None, "five are too few for a rank"
    assert drawn.low <= drawn.mean <= drawn.high
    assert drawn.mean == pytest.approx(sum(drawn.accuracies) / 5)
    rows = results.faithfulness[name][name].rows
    assert {(row.kept, row.mean_by) for row in rows} >= {("circuit", "kind"), ("all_heads", "kind")}
    assert not any("segment" in row.kept for row in rows), "all heads are at `last`: that is the circuit itself"
    margins = [row.logit_difference for row in rows]
    assert all(margin.low < margin.value < margin.high for margin in margins)
    assert all(check.passed for check in results.checks)
    names = {check.name for check in results.checks}
    assert {"window executor vs full executor", "our buckets vs the model's padded batch"} <= names
    assert any("9 scenarios only" in warning for warning in results.warnings)


def test_a_second_run_computes_nothing_and_writes_the_same_bytes(finished, model, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.suffix == ".json"}
    monkeypatch.setattr(Host, "run", lambda *_: pytest.fail("computed again"))
    (finished / "finished.json").unlink()
    run_study(settings_of(tmp_path, model), finished, silent)
    assert {name: (finished / name).read_bytes() for name in before} == before


def test_a_finished_run_loads_no_model_unless_a_file_of_it_was_touched(finished, model, tmp_path, monkeypatch):
    loaded: list[str] = []

    class Loaded(Exception):
        pass

    def load(source: str, *_: object, **__: object) -> None:
        loaded.append(source)
        raise Loaded

    monkeypatch.setattr(circuitdiff.study.host, "load_model", load)
    settings = settings_of(tmp_path, model)
    assert run_study(settings, finished, silent) == finished / "results.json"
    assert not loaded
    weights = next(iter(model.glob("*.safetensors")))
    os.utime(weights, ns=(0, 0))
    with pytest.raises(Loaded):
        run_study(settings, finished, silent)
    assert loaded == [str(model)]


def test_a_finished_run_depends_on_the_files_that_it_names(model, tmp_path):
    triples = tmp_path / "mine.jsonl"
    triples.write_text("one")
    wanted = {"functions": f"{{desiderata: [{triples}], further: {{fetcher: [{tmp_path / 'other.jsonl'}]}}}}"}
    settings = settings_of(tmp_path, model, **wanted)
    before = inputs_of(settings, files_of(settings))
    assert inputs_of(settings, files_of(settings)) == before
    triples.write_text("two")
    assert inputs_of(settings, files_of(settings)) != before
    triples.write_text("one")
    (tmp_path / "other.jsonl").write_text("three")
    assert inputs_of(settings, files_of(settings)) != before


class Interrupted(ThisProcess):
    """Works until its so-manieth unit."""

    n_units = 7

    async def call(self, method: str, *arguments: object) -> object:
        self.n_units -= method == "run"
        if self.n_units == 0:
            raise KeyboardInterrupt
        return await super().call(method, *arguments)


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(finished, model, tmp_path):
    settings = settings_of(tmp_path, model)
    with pytest.raises(KeyboardInterrupt):
        run_study(settings, tmp_path / "run", silent, workers=[Interrupted(settings, "cpu", silent)])
    gc.collect()  # tasks that were left pending would complain now
    assert len(list((tmp_path / "run" / "records").iterdir())) == 6
    assert not list((tmp_path / "run" / "locks").rglob("*.lock"))
    run_study(settings, tmp_path / "run", silent)
    assert (tmp_path / "run" / "results.json").read_bytes() == (finished / "results.json").read_bytes()


def test_weights_that_change_while_a_study_runs_are_not_taken_for_those_that_it_knows(model, tmp_path):
    changing, settings = shutil.copytree(model, tmp_path / "model"), settings_of(tmp_path, tmp_path / "model")

    class Reloading(ThisProcess):
        """Its model is gone from memory at the third unit, and another one on disk, under the same name."""

        n_units = 0

        async def call(self, method: str, *arguments: object) -> object:
            self.n_units += method == "run"
            if self.n_units == 3:
                save_tiny_model(changing, seed=5)
                self._host._loaded.clear()
            return await super().call(method, *arguments)

    with pytest.raises(InputError, match=r"depends on has changed since the study began .*: run the study again"):
        run_study(settings, tmp_path / "run", silent, workers=[Reloading(settings, "cpu", silent)])
    assert len(list((tmp_path / "run" / "records").iterdir())) == 2


def test_names_may_look_like_paths_and_markup_through_a_whole_run(model, tmp_path, monkeypatch, capsys):
    plan = "{stages: [{name: '[b]x/', at: last, select: {top: 2}}]}"
    variants = f"{{'org/chat[/b]': {save_tiny_model(tmp_path / 'other', seed=1)}}}"
    path = tmp_path / "tiny.yaml"
    path.write_text(
        study_yaml(model, **CIRCUIT_ONLY | {"variants": variants, "plans": f"{{'a/b': {plan}, ../c: {plan}}}"})
    )
    monkeypatch.setattr(sys, "argv", ["circuitdiff", "run", str(path), "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "org/chat[/b] against its base:" in capsys.readouterr().out
    assert "org/chat[/b]" in (tmp_path / "run" / "report.html").read_text()
    circuits = sorted(file.name for file in (tmp_path / "run").glob("circuit-*.json"))
    assert [re.sub("~.{8}", "~", name) for name in circuits] == [
        "circuit-_._c~.json",
        "circuit-a_b~.json",
        "circuit-a_b~@org_chat__b_~.json",
    ]
    assert {file.name for file in tmp_path.iterdir()} == {"other", "tiny.yaml", "run"}


def test_another_rule_keeps_the_sweeps_and_another_seed_does_not(finished, model, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    one = "\n  main: {stages: [{name: fetcher, at: last, select: {top: 1}}]}"
    sweep = f"fetcher (discovery) in {model.name}"
    assert sweep not in newly_computed(folder, settings_of(tmp_path, model, plans=one))
    assert sweep in newly_computed(folder, settings_of(tmp_path, model, plans=one, seed=1))


def newly_computed(folder: Path, settings: CommonSettings) -> list[str]:
    """The titles of what a run of the study computes that the folder does not have."""
    log = folder / "timings.jsonl"
    before, told = len(log.read_text().splitlines()), []
    run_study(settings, folder, silent, notify=told.append)
    assert ["results of other settings, which are replaced" in line for line in told] == [True]
    return [json.loads(line)["unit"] for line in log.read_text().splitlines()[before:]]


def test_another_number_of_prompts_for_the_means_evaluates_circuits_anew(finished, model, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    prompts = "{discovery: 6, replication: 6, evaluation: 9, means: 15}"
    new = newly_computed(folder, settings_of(tmp_path, model, prompts=prompts))
    assert f"circuit {model.name} in {model.name}, slot means" in new
    assert not any("discovery)" in title or title.startswith("answers") for title in new)


def test_a_variant_is_measured_and_the_bases_circuit_evaluated_in_it(model, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=1)
    settings = settings_of(tmp_path, model, variants=f"{{second: {other}}}", **NOT_COMPARED)
    run_study(settings, tmp_path / "run", silent)
    results = read_results(tmp_path / "run")
    assert set(results.models) == {model.name, "second"}
    entries = results.faithfulness[model.name]
    assert set(entries) == {model.name, "second"}
    assert entries["second"].model_accuracy == results.accuracy["second"].accuracy
    assert set(results.discovery) == {model.name, f"{model.name} (other)", "second"}
    assert results.discovery["second"].model == "second"
    assert set(results.faithfulness["second"]) == {model.name, "second"}  # its own circuit, also in the base
    drawn = {circuit: {m for m, e in models.items() if e.random} for circuit, models in results.faithfulness.items()}
    assert drawn["second"] == {model.name, "second"}
    assert drawn[model.name] == {model.name}  # random circuits: in the base and where it was found
    shape = [check for check in results.checks if check.name == "base and variant have the same shape"]
    assert [check.model for check in shape] == ["second"]


def test_a_failed_check_stops_the_study_and_keeps_its_stages(model, tmp_path, monkeypatch):
    def fails(*_: object, **__: object) -> Deviation:
        return Deviation(0.5, 1e-3)

    monkeypatch.setattr("circuitdiff.study.sections.discovery_units.executors_on_path", fails)
    with pytest.raises(CheckError, match=r"window executor vs full executor.*no result would be right"):
        run_study(settings_of(tmp_path, model), tmp_path / "run", silent)
    assert not (tmp_path / "run" / "results.json").exists()
    assert list((tmp_path / "run" / "records").iterdir())


def test_a_plan_with_an_unknown_role_stops_before_any_work(model, tmp_path):
    plans = "\n  main: {stages: [{name: fetcher, at: lst, select: {top: 1}}]}"
    with pytest.raises(InputError, match=r"names role 'lst', which the task lacks \(did you mean 'last'\?\)"):
        run_study(settings_of(tmp_path, model, plans=plans), tmp_path / "run", silent)
    assert not (tmp_path / "run").exists()


def test_the_splits_share_no_prompt(model, tmp_path):
    settings, tokenizer = settings_of(tmp_path, model), load_model(model).tokenizer
    splits = ("discovery", "replication", "evaluation", "means")
    rows = [tuple(row) for split in splits for row in pairs_of(settings, tokenizer, split).clean.tolist()]
    assert len(rows) == len(set(rows)) == 6 + 6 + 9 + 12


def test_results_do_not_depend_on_what_ran_before_in_the_process(finished, model, tmp_path):
    torch.manual_seed(1234)
    torch.randn(7)
    run_study(settings_of(tmp_path, model), tmp_path / "run", silent)
    assert (tmp_path / "run" / "results.json").read_bytes() == (finished / "results.json").read_bytes()


def test_what_must_be_known_of_a_shipped_model_is_known_by_its_name(model):
    assert "installed circuit" in caution_about("tracker-base")
    assert caution_about("tracker-plus") == caution_about("tracker-base")
    assert caution_about("smollm2") == caution_about(str(model)) == ""


def test_a_circuit_file_is_evaluated_like_a_circuit_that_is_found(model, tmp_path):
    given = {"groups": {"mine": {"at": "last", "heads": [[0, 1], [2, 3]]}}}
    (tmp_path / "c.json").write_text(json.dumps(given))
    changes = {"circuits": f"{{published: {tmp_path / 'c.json'}}}", "ablations": "{}"}
    run_study(settings_of(tmp_path, model, **changes), tmp_path / "run", silent)
    results = read_results(tmp_path / "run")
    assert list(results.ablations) == [model.name, "published"]
    published = results.discovery["published"]
    assert (published.model, published.plan, published.stages) == (model.name, None, ())
    assert circuit_from(published.groups) == Circuit.from_dict(given)
    loaded, settings = load_model(model), settings_of(tmp_path, model)
    evaluation, means = (pairs_of(settings, loaded.tokenizer, split) for split in ("evaluation", "means"))
    own = evaluate_circuit(loaded, Circuit.from_dict(given), evaluation, mean_activations(loaded, means))
    entry = results.faithfulness["published"][model.name]
    assert entry.circuit_accuracy.hits == int(own.hits.sum())
    assert len(entry.random.accuracies) == 5


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"at": "last", "heads": [[9, 0]]}, r"c\.json: .*9\.0"),
        ({"at": "nowhere", "heads": [[0, 0]]}, r"c\.json: .*nowhere"),
        ({"at": "last", "heads": []}, r"c\.json: group 'mine' has no heads"),
        ({"at": "last", "heads": [[-1, 0]]}, r"c\.json: .*head -1\.0"),
        ({"at": "last", "heads": [[0, -2]]}, r"c\.json: .*head 0\.-2"),
        ({"at": "last", "heads": [[1.5, 0]]}, r"c\.json is not a circuit: .*two whole numbers; got 1\.5"),
        ({"at": "last", "heads": [["1", 0]]}, r"c\.json is not a circuit: .*two whole numbers; got '1'"),
    ],
)
def test_a_circuit_file_that_does_not_fit_is_refused_before_any_work(model, tmp_path, group, message):
    (tmp_path / "c.json").write_text(json.dumps({"groups": {"mine": group}}))
    settings = settings_of(tmp_path, model, circuits=f"{{published: {tmp_path / 'c.json'}}}")
    with pytest.raises(InputError, match=message):
        run_study(settings, tmp_path / "run", silent)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_another_study_is_refused_with_nothing_lost(finished, model, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    before = (folder / "results.json").read_bytes()
    with pytest.raises(InputError, match="holds the study 'tiny', and this one is 'other': choose another run folder"):
        run_study(settings_of(tmp_path, model, name="other"), folder, silent)
    assert (folder / "results.json").read_bytes() == before
    (folder / "settings.json").write_text('{"name')
    (folder / "finished.json").unlink()
    run_study(settings_of(tmp_path, model), folder, silent)
    assert (folder / "results.json").read_bytes() == before


def test_a_variant_with_added_tokens_is_compared_with_a_base_without_them(model, tmp_path):
    tuned = save_tiny_model(tmp_path / "tuned", seed=1)
    module, tokenizer = AutoModelForCausalLM.from_pretrained(tuned), AutoTokenizer.from_pretrained(tuned)
    assert tokenizer.add_tokens(["<|user|>", "<|end|>"]) == 2
    module.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    module.save_pretrained(tuned)
    tokenizer.save_pretrained(tuned)
    sections = {
        "cross_model": "{prompts: 4, random_groups: 2}",
        "graft": "{prompts: 4, random_groups: 1}",
        "overlap": "{prompts: 3}",
    }
    run_study(settings_of(tmp_path, model, variants=f"{{tuned: {tuned}}}", **sections), tmp_path / "run", silent)
    results = read_results(tmp_path / "run")
    assert set(results.cross_model) == set(results.graft) == {"tuned"}
    assert all(check.passed for check in results.checks)


def test_a_variant_whose_config_computes_otherwise_is_told_of(model, tmp_path):
    tuned = save_tiny_model(tmp_path / "tuned", seed=1, rms_norm_eps=1e-3)
    settings = settings_of(tmp_path, model, variants=f"{{tuned: {tuned}}}", **NOT_COMPARED)
    run_study(settings, tmp_path / "run", silent)
    told = [text for text in read_results(tmp_path / "run").warnings if "more than weights" in text]
    assert told == [f"tuned and {model.name} differ in more than weights: rms_norm_eps (0.001, not 1e-06)"]


def test_a_variant_without_a_tokenizer_can_take_the_bases(model, tmp_path):
    tuned = save_tiny_model(tmp_path / "tuned", seed=1)
    for file in tuned.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match=r"cannot read a tokenizer from .*tuned"):
        run_study(settings_of(tmp_path, model, variants=f"{{tuned: {tuned}}}"), tmp_path / "run", silent)
    variants = f"{{tuned: {{source: {tuned}, tokenizer: {model}}}}}"
    run_study(settings_of(tmp_path, model, variants=variants, **NOT_COMPARED), tmp_path / "run", silent)
    assert set(read_results(tmp_path / "run").models) == {model.name, "tuned"}
