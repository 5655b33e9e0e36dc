"""The command line as a user meets it: what it prints, and how it refuses."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from circuitdiff import ModelDifferences, cli, model_differences, runs, terminal
from circuitdiff.circuit import Head
from circuitdiff.circuit_files import read_circuit, read_scores
from circuitdiff.errors import InputError
from circuitdiff.evaluation import evaluate_model
from circuitdiff.models import load_model
from circuitdiff.study import accuracies
from circuitdiff.study.estimates import Estimate
from circuitdiff.study.plan import Cost, PlannedCost
from circuitdiff.study.registry import read_results, results_bytes
from circuitdiff.tasks import entity_tracking
from helpers.invented_results import invented_results
from helpers.tiny_decoders import save_decoder, save_random_adapter
from helpers.tiny_folder import CIRCUIT_ONLY, save_tiny_model, study_yaml


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def run(monkeypatch, *arguments: object) -> int:
    """The exit code of `circuitdiff ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["circuitdiff", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def refused(monkeypatch, capsys, *arguments: object) -> str:
    """The one line on standard error of a command that must exit with 2."""
    assert run(monkeypatch, *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("circuitdiff: ")]
    assert len(lines) == 1
    return lines[0]


def test_run_shows_the_plan_then_the_results_and_names_the_report(monkeypatch, capsys, model, tmp_path):
    (tmp_path / "tiny.yaml").write_text(study_yaml(model, **CIRCUIT_ONLY))
    assert run(monkeypatch, "run", tmp_path / "tiny.yaml", "--out", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert out.index("plain forwards") < out.index("faithfulness")
    assert "GB on this machine" in out
    assert f"report: {tmp_path / 'run' / 'report.html'}" in out
    assert "warning: " in out


def test_locate_prints_the_strongest_places_and_the_ceiling_and_leaves_a_study_that_runs(
    monkeypatch, capsys, model, tmp_path
):
    roles, folder = ["--role", "last", "--role", "query_label"], tmp_path / "located"
    command = ["entity_tracking", model, "-n", 6, "--seed", 3, *roles, "--out", folder, "--force"]
    assert run(monkeypatch, "locate", *command) == 0
    out = capsys.readouterr().out
    results = read_results(folder)
    [found] = results.locate.values()
    assert found.roles == ("last", "query_label")
    assert (found.n_prompts, results.study.seed, results.discovery, results.faithfulness) == (6, 3, None, None)
    for text in (
        "Strongest places in",
        "put back",
        "taken away",
        "all heads kept at",
        f"and {found.ceiling.steps[2].role}",
    ):
        assert text in out
    assert "random circuits" not in out, "no circuit, no table of circuits"
    assert f"report: {folder / 'report.html'}" in out
    before = (folder / "results.json").read_bytes()
    assert run(monkeypatch, "run", folder / "study.yaml", "--out", folder) == 0
    assert json.loads(before)["locate"] == json.loads((folder / "results.json").read_bytes())["locate"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--role", "lats"], "locate.roles names 'lats'"),
        (["-n", 3], "locate.prompts is 3"),
        (["--seed", -1], "seed: expected at least 0; got -1"),
        ([], "does not do the task"),
    ],
)
def test_what_locate_cannot_do_is_one_line(monkeypatch, capsys, model, tmp_path, arguments, message):
    line = refused(monkeypatch, capsys, "locate", "entity_tracking", model, "--out", tmp_path, *arguments)
    assert message in line


def test_without_a_terminal_progress_is_a_line_at_once_and_then_every_half_minute(monkeypatch, capsys):
    now = iter([0.0, 1.0, 29.0, 40.0, 60.0])  # of the beginning, and of each report
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(now))
    with terminal.progress() as monitor:
        for done in range(1, 5):
            monitor("find heads", done, 9)
    assert capsys.readouterr().out.splitlines() == ["0.0 min: find heads, 1 of 9", "0.7 min: find heads, 3 of 9"]


@pytest.mark.parametrize(("minutes", "said"), [(0.2, "about 1 minute to"), (2.4, "about 2 minutes to")])
def test_a_plan_says_about_how_long_it_takes(capsys, minutes, said):
    terminal.show_plan(PlannedCost((Cost("accuracy", 9, 1e9, minutes / 2),), 1.5, loading=minutes / 2))
    assert f"{said} load and run the models" in capsys.readouterr().out


def test_report_is_made_again_from_the_run_folder_alone(monkeypatch, capsys, model, tmp_path):
    (tmp_path / "tiny.yaml").write_text(study_yaml(model, **CIRCUIT_ONLY))
    run(monkeypatch, "run", tmp_path / "tiny.yaml", "--out", tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_bytes()
    (tmp_path / "run" / "report.html").unlink()
    assert run(monkeypatch, "report", tmp_path / "run") == 0
    assert (tmp_path / "run" / "report.html").read_bytes() == page


def test_check_lists_every_self_check(monkeypatch, capsys, model):
    assert run(monkeypatch, "check", model) == 0
    out = capsys.readouterr().out
    assert "LlamaForCausalLM, 3 layers x 4 heads (2 key/value heads), float32" in out
    for check in ("same logits as own attention", "heads add up", "an edit of k changes the logits"):
        assert check in out
    assert "FAILED" not in out


def test_prompts_marks_roles_and_shows_the_counterfactual_under_each(monkeypatch, capsys, model):
    assert run(monkeypatch, "prompts", "entity-tracking", "--model", model, "-n", 2) == 0
    out = capsys.readouterr().out
    assert out.count("clean: ") == out.count("counterfactual: ") == 2
    assert out.index("clean: ") < out.index("counterfactual: ")
    for role in ("last", "query_label", "previous_query_label", "correct_object"):
        assert role in out
    assert "(no valid answer)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "none.yaml"), "there is no none.yaml"),
        (("report", "nowhere"), "nowhere is not a finished run"),
        (("check", "no/such/model"), "no/such/model"),
        (("prompts", "chess"), "unknown task 'chess'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(monkeypatch, capsys, arguments, message):
    assert message in refused(monkeypatch, capsys, *arguments)


def test_an_unknown_option_exits_with_two(monkeypatch):
    assert run(monkeypatch, "run", "--sede", "1") == 2


def test_an_unknown_setting_is_named_before_any_model_is_loaded(monkeypatch, capsys, tmp_path):
    (tmp_path / "s.yaml").write_text(json.dumps({"name": "x", "base": "no/such/model", "sede": 1}))
    assert "there is no key 'sede' here (did you mean 'seed'?)" in refused(
        monkeypatch, capsys, "run", tmp_path / "s.yaml"
    )


def test_an_interrupted_run_says_that_nothing_is_lost(monkeypatch, capsys, model, tmp_path):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "run_study", interrupted)
    (tmp_path / "tiny.yaml").write_text(study_yaml(model, **CIRCUIT_ONLY))
    assert run(monkeypatch, "run", tmp_path / "tiny.yaml", "--out", tmp_path / "run") == 130
    assert "run again to go on" in capsys.readouterr().err


def test_accuracy_is_that_of_the_library_with_intervals_and_by_queried_index(monkeypatch, capsys, tmp_path):
    file = tmp_path / "table.json"
    assert run(monkeypatch, "accuracy", "entity-tracking", "planted-base", "-n", 21, "--seed", 5, "--json", file) == 0
    (row,) = json.loads(file.read_text())
    model = load_model("planted-base")
    evaluation = evaluate_model(model, entity_tracking().sample(model.tokenizer, 21, 5, "evaluation"))
    assert row["accuracy"]["hits"] == int(evaluation.hits.sum())
    assert [entry["n"] for entry in row["accuracy_by_queried"]] == [3] * 7
    assert row["accuracy"]["low"] < row["accuracy"]["value"] < row["accuracy"]["high"]
    assert f"{row['accuracy']['hits']}/21" in capsys.readouterr().out


def test_accuracy_shows_what_it_has_when_a_later_model_cannot_be_loaded(monkeypatch, capsys, tmp_path):
    file = tmp_path / "table.json"
    assert run(monkeypatch, "accuracy", "entity-tracking", "planted-base", "nothing", "-n", 7, "--json", file) == 2
    told = capsys.readouterr()
    assert "no model 'nothing'" in told.err
    assert "/7" in told.out
    assert len(json.loads(file.read_text())) == 1


def small_table(folder) -> Path:
    rows = [
        {"prompt": f"The {i} is in Box A. The {i} is in Box", "answer": "A", "foils": ["B"], "counterfactual": f"A {i}"}
        | {"split": "evaluation"}
        for i in ("book", "cup", "key")
    ]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "t.jsonl"


def test_accuracy_takes_what_a_small_table_has_and_says_so(monkeypatch, capsys, tmp_path, model):
    assert run(monkeypatch, "accuracy", small_table(tmp_path), model) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "split evaluation, seed 100: 3 prompts, which are all" in out


def test_more_prompts_than_there_are_are_refused_before_a_model_is_loaded(monkeypatch, capsys, tmp_path, model):
    monkeypatch.setattr(accuracies, "load_model", None)
    assert "-n 4: the task t has 3 prompts in split 'evaluation'; ask for fewer" in refused(
        monkeypatch, capsys, "accuracy", small_table(tmp_path), model, "-n", 4
    )


NAME = "org/chat[/b] :cat: [red]"
RED = "\x1b[31mred\x1b]0;x\a"


def test_markup_and_escape_sequences_are_printed_and_not_obeyed(monkeypatch, capsys):
    def fails(*_: object, **__: object) -> None:
        with terminal.progress() as monitor:
            monitor(f"bar of {NAME} {RED}", 1, 2)
        terminal.say(f"line of {NAME} {RED}")
        terminal.show_table([f"column of {NAME}"], [[f"cell of {NAME} {RED}"]], f"title of {NAME}")
        raise InputError(f"error of {NAME} {RED}")

    monkeypatch.setattr(cli, "read_results", fails)
    both = Both(capsys)
    line = refused(monkeypatch, both, "report", "folder")
    escaped = r"\x1b[31mred\x1b]0;x\x07"
    assert line == f"circuitdiff: error of {NAME} {escaped}"
    for what in ("bar", "line", "cell"):
        assert f"{what} of {NAME} {escaped}" in both.out
    for what in ("column", "title"):
        assert f"{what} of {NAME}" in both.out
    assert "\x1b" not in both.out + both.err


class Both:
    """What was printed, also after it was read."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def readouterr(self):
        read = self.capsys.readouterr()
        self.out, self.err = read
        return read


def test_a_strangers_results_reach_no_terminal_raw(monkeypatch, capsys, tmp_path):
    for run_name, value in (("a", 0.5), ("b", 0.9)):
        (tmp_path / run_name).mkdir()
        results = invented_results()
        accuracy = next(iter(results.accuracy.values()))
        moved = replace(accuracy, logit_difference=Estimate(value, value, value))
        moved = results.model_copy(update={"accuracy": {RED + NAME: moved}})
        (tmp_path / run_name / "results.json").write_bytes(results_bytes(moved))
    assert run(monkeypatch, "diff", tmp_path / "a", tmp_path / "b") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[31mred" in out
    assert "[/b] :cat:" in " ".join(out.split())


def test_an_output_file_that_cannot_be_written_is_one_line(monkeypatch, capsys, tmp_path):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "fsync", refuse)
    file = tmp_path / "table.json"
    line = refused(monkeypatch, capsys, "accuracy", "entity-tracking", "planted-base", "-n", 7, "--json", file)
    assert f"cannot write {file}: Permission denied; make room or name another place" in line
    assert list(tmp_path.iterdir()) == []


def test_an_output_file_that_is_a_folder_is_refused_before_the_work(monkeypatch, capsys, tmp_path):
    line = refused(monkeypatch, capsys, "accuracy", "entity-tracking", "planted-base", "--json", tmp_path)
    assert f"cannot write {tmp_path}: it is a folder" in line


def test_what_the_system_refuses_is_one_line(monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device", "some/file")

    monkeypatch.setattr(cli, "read_results", refuse)
    assert refused(monkeypatch, capsys, "report", "folder") == "circuitdiff: some/file: No space left on device"


def test_models_says_where_weights_differ_and_that_an_adapter_did_nothing(monkeypatch, capsys, tmp_path):
    base = save_decoder(tmp_path / "base")
    tuned, idle = save_random_adapter(tmp_path / "tuned"), save_random_adapter(tmp_path / "idle", scale=0)
    variants = [f"{base}+{tuned}", f"{base}+{idle}", f"{base}+{tuned}+{idle}"]
    assert run(monkeypatch, "models", base, *variants, "--json", tmp_path / "models.json") == 0
    printed = capsys.readouterr().out
    first, second, third = printed.split("settings and tokenizer are the same.")[1:]
    assert "note: " not in first
    assert printed.count("note: ") == 2
    assert f"note: {base}+{idle} is {base}, weight for weight; its adapter did nothing" in second
    assert f"note: 1 of 2 adapters of {base}+{tuned}+{idle} changed no logit of random tokens" in third
    found = json.loads((tmp_path / "models.json").read_text())
    assert [each["variant"] for each in found] == variants
    ranks = {each["kind"]: each["rank"] for each in found[0]["weights"] if each["n_changed"]}
    assert ranks == {"q": 2, "o": 2, "mlp": 2}
    assert found[1]["whole"]["n_changed"] == 0
    loaded = model_differences(load_model(base, name=str(base)), load_model(base, [tuned], name=variants[0]))
    assert found[0] == TypeAdapter(ModelDifferences).dump_python(loaded, mode="json")


def test_export_writes_a_circuit_and_its_scores_for_other_tools(monkeypatch, capsys, tmp_path):
    results, file = invented_results(), tmp_path / "graph.json"
    (tmp_path / "results.json").write_bytes(results_bytes(results))
    name, found = next(iter(results.discovery.items()))
    assert run(monkeypatch, "export", tmp_path, file) == 0
    heads = {Head(*head) for group in found.groups.values() for head in group.heads}
    assert f"circuit {name}, {len(heads)} heads: {file}" in capsys.readouterr().out
    assert read_circuit(file, ["last"]).heads_at("last") == heads
    assert read_scores(file) == found.scores
    assert run(monkeypatch, "export", tmp_path, file, "--form", "names", "--circuit", name) == 0
    assert json.loads(file.read_text()) == [f"a{head.layer}.h{head.index}" for head in sorted(heads)]
    said = refused(monkeypatch, capsys, "export", tmp_path, file, "--circuit", "nobody")
    assert "has no circuit 'nobody'; choose one of" in said
