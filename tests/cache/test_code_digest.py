"""Our own code is part of what cached numbers depend on: what computes them, line by line, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from circuitdiff.cache import code_digest

CODE = '''"""What the module does."""

def double(x):
    """Twice x."""
    return 2 * x  # not x + x


class Empty:
    """Nothing."""
'''


@pytest.mark.parametrize(
    ("file", "old", "new", "whole", "computation"),
    [
        ("engine/window.py", "2 * x", "3 * x", True, True),
        ("evaluation/constants.py", "return", "yield", True, True),
        ("stats/intervals.py", "def double", "def triple", True, True),
        ("methods/knockout.py", "not x + x", "never x + x", True, False),
        ("methods/knockout.py", "Twice x", "x, twice", True, False),
        ("methods/knockout.py", "What the module does", "Something", True, False),
        ("engine/window.py", "\n\n\n", "\n\n\n\n", True, False),
        ("study/records.py", "2 * x", "3 * x", True, True),
        ("study/checks.py", "2 * x", "3 * x", True, True),
        ("study/sections/completeness.py", "2 * x", "3 * x", True, False),
        ("study/context.py", "2 * x", "3 * x", True, False),
        ("models/checks.py", "2 * x", "3 * x", True, True),
        ("models/sources.py", "2 * x", "3 * x", True, False),
        ("study/verdict.py", "2 * x", "3 * x", True, False),
        ("report/page.py", "2 * x", "3 * x", True, False),
        ("tasks/scenarios.py", "2 * x", "3 * x", True, False),
        ("cli.py", "2 * x", "3 * x", True, False),
        ("report/page.css", "2 * x", "3 * x", False, False),
    ],
)
def test_a_change_shows_in_the_digest_of_computation_only_if_it_can_change_numbers(
    tmp_path, monkeypatch, file, old, new, whole, computation
):
    for name in ("engine/window.py", "study/records.py", "stats/intervals.py", file):
        written(tmp_path / name, CODE)
    monkeypatch.setattr(code_digest, "_HOME", tmp_path)
    digests = [code_digest.digest_of_code.__wrapped__, code_digest.digest_of_computation.__wrapped__]
    before = [digest() for digest in digests]
    assert old in CODE
    written(tmp_path / file, CODE.replace(old, new))
    assert [digest() != old for digest, old in zip(digests, before, strict=True)] == [whole, computation]


def test_another_package_has_a_digest_of_its_own(tmp_path):
    written(tmp_path / "own.py", CODE)
    before = code_digest.digest_of_code.__wrapped__(tmp_path)
    written(tmp_path / "own.py", CODE.replace("2 * x", "3 * x"))
    assert before != code_digest.digest_of_code.__wrapped__(tmp_path)
    assert before != code_digest.digest_of_code()


def test_every_room_that_computes_is_in_the_house():
    home = code_digest._HOME
    for room in code_digest.COMPUTES:
        place = home / room.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file()


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
