"""What a command prints, and how it ends: lines as they are, bars of progress, bad input in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typer.exceptions import TyperException

from circuitdiff.config.names import printable
from circuitdiff.errors import InputError
from circuitdiff.study.workers import Monitor

out = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)
_INTERRUPTED = 130  # what typer returns after Ctrl-C


def run_command(app: typer.Typer, command: str) -> None:
    """Runs the command; bad input, and what the system refuses, end in one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        code = _complained(command, str(error))
    except TyperException as error:
        code = _complained(command, f"{error.format_message().rstrip('.')}; see {command} --help")  # pyright: ignore
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        code = _complained(command, f"{where}{error.strerror or error}")
    if code == _INTERRUPTED:
        _complained(command, "interrupted; run again to go on, what is computed is kept")
    raise SystemExit(code)


def _complained(command: str, line: str) -> int:
    print(f"{command}: {printable(line)}", file=sys.stderr)
    return 2


def check_folder(*files: Path | None) -> None:
    """Before the work: is there a place for its results?"""
    for path in files:
        if path and not os.path.isdir(path.parent):
            raise InputError(f"there is no folder {path.parent} for {path.name}; make it, or name another file")
        if path and (os.path.isdir(path) or not os.access(path.parent, os.W_OK)):
            raise InputError(f"cannot write {path}: it is a folder, or its folder is read-only; name another file")


def say(line: str) -> None:
    """Prints a line as it is, whoever wrote it: nothing in it is markup, or obeyed by a terminal."""
    out.print(printable(line), soft_wrap=True)


@contextmanager
def progress() -> Iterator[Monitor]:
    """A bar per part of the work, with the time left; in a pipe, a line per finished part."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=out) as bars:
        known: dict[str, int] = {}

        def monitor(title: str, done: int, total: int) -> None:
            if title not in known:
                known[title] = int(bars.add_task(printable(title), total=total))
            task = bars.tasks[known[title]]
            whole = max(total, int(task.total or 0))
            bars.update(task.id, completed=whole if done >= total else done, total=whole)

        yield monitor
