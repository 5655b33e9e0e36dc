"""A comparison in one call from Python."""

from __future__ import annotations

import sys

import pytest

import circuitdiff as cd
from circuitdiff import cli
from circuitdiff.study.comparison import STUDY_FILE
from circuitdiff.study.registry import read_results, read_study
from circuitdiff.study.sections.faithfulness import FaithfulnessOptions
from circuitdiff.study.settings import CommonSettings, PromptSettings
from helpers.tiny_context import save_tuned
from helpers.tiny_folder import FURTHER, save_tiny_model


def test_a_comparison_from_python_is_the_commands_and_prints_nothing(monkeypatch, capfd, tmp_path):
    base = save_tiny_model(tmp_path / "base")
    tuned, folder = save_tuned(base, tmp_path / "tuned"), tmp_path / "run"
    asked = {"discovery": 6, "replication": 6, "evaluation": 9, "means": 30}

    def look(settings: CommonSettings) -> CommonSettings:
        few = settings.model_copy(update={"prompts": PromptSettings(**asked), **dict.fromkeys(FURTHER, False)})
        return few.model_copy(update={"faithfulness": FaithfulnessOptions(random_circuits=2)})

    monkeypatch.setattr("circuitdiff.study.comparison.first_look", look)
    capfd.readouterr()
    results = cd.compare(str(base), str(tuned), task="entity_tracking", quick=True, folder=folder, force=True)
    assert capfd.readouterr() == ("", "")
    assert results == read_results(folder)
    assert [*results.models] == ["base", "tuned"]
    assert read_study(folder / STUDY_FILE).name == results.study.name
    written = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert {"study.yaml", "results.json", "report.html"} <= {*written}
    command = [
        "compare",
        str(base),
        str(tuned),
        "--task",
        "entity_tracking",
        "--quick",
        "--out",
        str(folder),
        "--force",
    ]
    monkeypatch.setattr(sys, "argv", ["circuitdiff", *command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == written
    said = capfd.readouterr().out
    assert f"report: {folder / 'report.html'}" in said
    assert f"study: {folder / STUDY_FILE}" in said


def test_a_comparison_needs_a_variant():
    with pytest.raises(cd.InputError, match="at least one variant"):
        cd.compare("smollm2", task="ioi")
