"""Our own code is part of what kept numbers depend on."""

from __future__ import annotations

from pathlib import Path

import pytest

from circuitdiff import own_code


@pytest.mark.parametrize(
    ("file", "whole", "numbers"),
    [
        ("engine/window.py", True, True),
        ("sections/edges.py", True, True),
        ("statistics.py", True, True),
        ("sections/verdict.py", True, False),
        ("report/page.py", True, False),
        ("cli.py", True, False),
        ("report/page.css", False, False),
    ],
)
def test_a_change_shows_in_the_digests_that_it_can_change_numbers_of(tmp_path, monkeypatch, file, whole, numbers):
    for name in ("engine/window.py", "sections/edges.py", "statistics.py"):
        written(tmp_path / name, "a = 1")
    written(tmp_path / file, "a = 1")
    monkeypatch.setattr(own_code, "_HOME", tmp_path)
    digests = [own_code.digest_of_code.__wrapped__, own_code.digest_of_numbers.__wrapped__]
    before = [digest() for digest in digests]
    written(tmp_path / file, "a = 2")
    assert [digest() != old for digest, old in zip(digests, before, strict=True)] == [whole, numbers]


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
