"""Our own code, as one more thing that kept numbers depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_HOME = Path(__file__).parent
# What only shows, judges or plans from kept numbers: folders, and modules wherever they are.
_NO_NUMBERS = ("report", "ground_truth", "cli", "diff", "verdict", "evidence", "planning", "costs", "preflight")


@cache
def digest_of_code() -> str:
    """The same as long as no file of circuitdiff has changed."""
    return _digest(_HOME.rglob("*.py"))


@cache
def digest_of_numbers() -> str:
    """The same as long as no file has changed that a kept number could come from."""
    return _digest(path for path in _HOME.rglob("*.py") if not _only_shows(path))


def _only_shows(path: Path) -> bool:
    return any(part in _NO_NUMBERS for part in path.relative_to(_HOME).with_suffix("").parts)


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(_HOME)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
