"""Other processes on this machine that fill the same run folder."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from circuitdiff.errors import InputError, first_line

Monitor = Callable[[str, int, int], None]  # what is being done, how much of it, of how much
Notify = Callable[[str], None]  # is told, in a line, what the user should know


@contextmanager
def threads_shared_by(workers: int) -> Iterator[None]:
    """While this lasts, torch uses this process's share of the threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Assistants:
    """Processes that do `work(settings, folder, number, notify)`, with as many threads each as this one.

    An error in one of them is raised in this process, with its message. One that is killed is not missed: what it was
    at is done here.
    """

    def __init__(self, n: int, work: Callable[..., None], settings: Any, folder: Path, notify: Notify) -> None:
        self._arguments = [(work, settings, folder, number) for number in range(1, n + 1)]
        self._notify = notify
        self._failure: str | None = None
        self._released = False  # from here on they may die

    def watched(self, monitor: Monitor) -> Monitor:
        """`monitor`, which this process's work calls all the time; the place where an assistant's error ends the work.

        Raises: InputError.
        """

        def watching(title: str, done: int, total: int) -> None:
            self._refuse_failure()
            monitor(title, done, total)

        return watching

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """They begin, and end with the block.

        Raises: InputError if one of them failed.
        """
        with ExitStack() as stack:
            for arguments in self._arguments:
                stack.callback(self._end, *self._start(arguments))
            yield
        self._refuse_failure()

    def _refuse_failure(self) -> None:
        if self._failure is not None:
            raise InputError(self._failure)

    def _start(self, arguments: tuple[Any, ...]) -> tuple[SpawnProcess, Thread]:
        spawn = multiprocessing.get_context("spawn")  # a forked torch hangs
        messages, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_assist, args=(*arguments, torch.get_num_threads(), sender), daemon=True)
        with _interrupts_blocked():
            process.start()
        sender.close()  # the process has its own: when that is closed, it has ended
        listener = Thread(target=self._listen, args=(process, messages), daemon=True)
        listener.start()
        return process, listener

    def _end(self, process: SpawnProcess, listener: Thread) -> None:
        self._released = True
        process.terminate()
        listener.join()

    def _listen(self, process: SpawnProcess, messages: Connection) -> None:
        """Until the process has ended; alone with waiting for its end, so that it is no zombie for long."""
        try:
            while True:
                is_failure, text = messages.recv()
                if is_failure:
                    self._failure = text
                else:
                    self._notify(text)
        except (EOFError, OSError):  # OSError: killed in the midst of a message
            process.join()
        if self._released or self._failure is not None or not process.exitcode:
            return
        if process.exitcode < 0:
            self._notify(
                f"another process of this run was killed (signal {-process.exitcode}: too little memory for two?); "
                f"this one goes on without it"
            )
        else:
            self._failure = f"another process of this run ended with exit code {process.exitcode}; try --workers 1"


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process that is started meanwhile never hears Ctrl-C, which the terminal sends to all: we end it ourselves."""
    resource_tracker.ensure_running()  # its start, which would come with the process's, unblocks interrupts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _assist(
    work: Callable[..., None], settings: Any, folder: Path, number: int, n_threads: int, sender: Connection
) -> None:
    torch.set_num_threads(n_threads)
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(settings, folder, number, lambda text: sender.send((False, text)))
    except InputError as error:
        sender.send((True, str(error)))
    except Exception as error:  # whatever ends this process, the user must hear of it, in one line
        kind = type(error).__name__
        sender.send((True, f"another process of this run failed ({kind}: {first_line(error)}); try --workers 1"))


def _end_with_parent() -> None:
    """A process that was killed cannot end its assistants; they see that it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
