"""`circuitdiff diff --fail-on`: named numbers that moved end it with exit code 1."""

from __future__ import annotations

import sys

import pytest

from circuitdiff.cli import main
from circuitdiff.errors import InputError
from circuitdiff.report.diff import failures
from circuitdiff.study.registry import results_bytes
from helpers.invented_results import cell
from helpers.invented_runs import near, results

MOVED = results(accuracy={"base": near(0.95), "tuned": near(0.83)})  # 0.45 beyond the interval, and 0.03 within it


@pytest.mark.parametrize(
    ("wanted", "failed"),
    [
        ("moved", True),
        ("accuracy / base / accuracy", True),
        ("accuracy / tuned / accuracy", False),
        ("accuracy / *", True),
        ("accuracy / tune? / *", False),
        ("accuracy / tuned / accuracy=0.02", True),
        ("accuracy / tuned / accuracy=0.04", False),
        ("accuracy / *=0.5", False),
        ("moved=0.02", True),
        ("discovery / *", False),
    ],
)
def test_a_named_number_fails_if_it_moved_beyond_its_interval_or_by_more_than_its_limit(wanted, failed):
    lines = failures(results(), MOVED, [wanted])
    assert [line.partition(": ")[0] for line in lines] == ([f"--fail-on {wanted}"] if failed else [])
    assert failures(results(), results(), [wanted]) == []


def test_a_failure_names_the_numbers_and_each_wish_has_its_line():
    lines = failures(results(), MOVED, ["moved", "discovery / *=0", "accuracy / *=0"])
    assert lines == [
        "--fail-on moved: accuracy / base / accuracy (0.500 [0.400, 0.600], then 0.950 [0.850, 1.050])",
        "--fail-on accuracy / *=0: accuracy / base / accuracy (0.500 [0.400, 0.600], then 0.950 [0.850, 1.050]); "
        "accuracy / tuned / accuracy (0.800 [0.700, 0.900], then 0.830 [0.730, 0.930])",
    ]


@pytest.mark.parametrize("wanted", ["accuracy / base / accuracy", "accuracy / base / *=0.9", "moved"])
def test_a_number_that_is_undefined_in_one_run_has_moved(wanted):
    undefined = results(accuracy={"base": near(None), "tuned": near(0.8)})
    assert len(failures(results(), undefined, [wanted])) == len(failures(undefined, results(), [wanted])) == 1
    assert failures(undefined, undefined, [wanted]) == []


def test_a_bracket_or_an_equals_sign_of_a_name_stands_for_itself():
    one, other = (results(accuracy={"lr=[12]": near(value), "lr=1": near(0.5)}) for value in (0.5, 0.95))
    for wanted in ("accuracy / lr=[12] / accuracy", "accuracy / lr=[12] / *", "accuracy / lr=[12] / *=0.4"):
        assert len(failures(one, other, [wanted])) == 1
    assert failures(one, other, ["accuracy / lr=1 / *"]) == []
    cells = [results(faithfulness={"base": {"lr=9": cell(value)}}) for value in (0.5, 0.9)]
    assert len(failures(*cells, ["faithfulness / base / lr=9"])) == 1, "a name, no limit of 9"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("accuracy / bsae / accuracy", r"no number 'accuracy / bsae / accuracy'.*mean 'accuracy / base / accuracy'"),
        ("nothing*=0.1", r"no number 'nothing\*' that both runs have; a name is like 'accuracy / base / accuracy'"),
        ("moved=-1", "expected a change of 0 or more"),
        ("moved=nan", "expected a change of 0 or more"),
    ],
)
def test_a_name_or_limit_that_cannot_be_is_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        failures(results(), MOVED, ["moved", wanted])


@pytest.mark.parametrize(("wanted", "code"), [("accuracy / *", 1), ("discovery / *", 0), ("acuracy / *", 2)])
def test_the_command_ends_with_one_after_the_tables_if_a_wanted_number_moved(
    tmp_path, monkeypatch, capsys, wanted, code
):
    for name, data in (("a", results()), ("b", MOVED)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_bytes(results_bytes(data))
    monkeypatch.setattr(
        sys, "argv", ["circuitdiff", "diff", *(str(tmp_path / each) for each in "ab"), "--fail-on", wanted]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in ((code,) if code else (0, None))
    output = capsys.readouterr()
    assert ("1 of 5 numbers" in output.out) == (code < 2)
    assert ("--fail-on accuracy / *: accuracy / base" in output.out) == (code == 1)
    assert len(output.err.splitlines()) == (code == 2)
