"""Which process on this machine is computing a record, so that several can fill one folder and none does it twice."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def claimed(records: Sequence[Path]) -> Iterator[list[Path]]:
    """Those of the records that no other living process has claimed; ours until the block ends."""
    mine: list[Path] = []
    try:
        for record in records:
            if _claim(record):
                mine.append(record)
        yield mine
    finally:
        for record in mine:
            _file(record).unlink(missing_ok=True)


def _claim(record: Path) -> bool:
    """If two find the claim of a dead process at once both may get it, and compute the same."""
    if _holder(record) is not None:
        return False
    file = _file(record)
    file.unlink(missing_ok=True)
    try:
        with file.open("x") as new:
            new.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True


def _holder(record: Path) -> int | None:
    """The other living process that has claimed the record; 0 if it has not written its number yet."""
    try:
        written = _file(record).read_text()
    except FileNotFoundError:
        return None
    process = int(written or 0)
    return process if process == 0 or (process != os.getpid() and psutil.pid_exists(process)) else None


def _file(record: Path) -> Path:
    return record.with_suffix(".claim")
