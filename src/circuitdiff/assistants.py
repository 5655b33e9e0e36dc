"""Other processes on this machine that fill the same run folder."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from circuitdiff.errors import InputError
from circuitdiff.models.checks import CheckError


@contextmanager
def threads_shared_by(workers: int) -> Iterator[None]:
    """While this lasts, torch uses this process's share of the threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def assisted(work: Callable[..., None], settings: Any, folder: Path, n_assistants: int) -> Iterator[None]:
    """While this lasts, so many other processes do `work(settings, folder, number)`, with as many threads each.

    What fails in one of them fails in this process, too, when it comes to the same part, and is told there.
    """
    spawn = multiprocessing.get_context("spawn")  # a forked torch hangs
    arguments = [(work, settings, folder, number, torch.get_num_threads()) for number in range(1, n_assistants + 1)]
    processes = [spawn.Process(target=_assist, args=each, daemon=True) for each in arguments]
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _assist(work: Callable[..., None], settings: Any, folder: Path, number: int, n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(settings, folder, number)
    except (InputError, CheckError, KeyboardInterrupt):
        return


def _end_with_parent() -> None:
    """A process that was killed cannot end its assistants; they see that it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
