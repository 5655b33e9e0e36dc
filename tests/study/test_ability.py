"""A study of a base that does not do the task ends after its first accuracy, unless it is told to go on."""

from __future__ import annotations

import sys

import pytest

from circuitdiff import cli
from circuitdiff.errors import InputError
from circuitdiff.study.context import StudyContext
from circuitdiff.study.registry import read_results
from circuitdiff.study.runner import run_study
from helpers.tiny_folder import save_tiny_model, settings_of, silent

REFUSED = (
    r"base does not do the task entity_tracking: accuracy 0\.\d\d \[.*\] where guessing gives 0\.33, logit difference "
    r".*: ask another model or task, or go on all the same with --force \(force: true\)"
)


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """The titles of what is asked for."""
    titles: list[str] = []
    whole = StudyContext.record

    async def record(study, unit):
        titles.append(unit.title)
        return await whole(study, unit)

    monkeypatch.setattr(StudyContext, "record", record)
    return titles


def test_nothing_but_the_bases_accuracy_is_computed_where_it_does_not_do_the_task(tmp_path, computed):
    settings = settings_of(tmp_path, save_tiny_model(tmp_path / "base"), force="false")
    with pytest.raises(InputError, match=REFUSED):
        run_study(settings, tmp_path / "run", silent)
    assert computed == ["answers of base"]
    forced = settings.model_copy(update={"force": True})
    run_study(forced, tmp_path / "run", silent)
    assert read_results(tmp_path / "run").discovery


def test_a_base_that_does_the_task_needs_no_force(tmp_path, computed):
    plan = "{main: {stages: [{name: fetcher, at: last, select: {top: 1}}]}}"
    off = {"faithfulness": "false", "plans": plan, "task": "entity_tracking"}
    prompts = "{discovery: 4, replication: 4, evaluation: 20, means: 8}"
    run_study(settings_of(tmp_path, "planted-base", force="false", prompts=prompts, **off), tmp_path / "run", silent)
    assert len(computed) > 1


def test_the_command_says_so_in_one_line_with_exit_code_2(tmp_path, monkeypatch, capsys):
    settings_of(tmp_path, save_tiny_model(tmp_path / "base"), force="false")
    command = ["circuitdiff", "run", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "does not do the task entity_tracking" in said
    monkeypatch.setattr(sys, "argv", [*command, "--force"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
