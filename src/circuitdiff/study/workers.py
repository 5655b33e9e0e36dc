"""Who carries units out: this process, other processes on this machine, or machines of a Ray cluster.

All are the same to a study: a worker holds a `Host`, and a unit's record is the same bytes whoever made it. A worker
that dies costs the unit that it was at, which another one, or a new one in its place, makes again.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from threading import Thread
from typing import Any, Protocol, runtime_checkable

import torch

from circuitdiff.errors import InputError, first_line
from circuitdiff.study.host import MODELS_AT_ONCE, RECORDS_AT_ONCE, Host
from circuitdiff.study.settings import CommonSettings

Monitor = Callable[[str, int, int], None]  # what is being done, how much of it, of how much
Rank = tuple[int, ...]  # where in the study a unit belongs: the lower ones first

_MOMENT = 0.001  # seconds, in which all who wait for a finished unit ask for their next one


class WorkerLost(Exception):
    """The process died in the midst of its work."""


@runtime_checkable
class Worker(Protocol):
    """Something that holds a `Host` and calls its methods, one after the other."""

    async def call(self, method: str, *arguments: Any) -> Any:
        """Raises: WorkerLost if it died; it is there again for the next call. InputError, as the method."""
        ...

    def end(self) -> None:
        """At once, whatever it is at."""
        ...


class ThisProcess:
    """Works in the calling process, which waits for it."""

    def __init__(self, settings: CommonSettings, device: str, monitor: Monitor) -> None:
        self._host = Host(settings, device, monitor)

    async def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._host, method)(*arguments)

    def end(self) -> None:
        pass


class LocalProcess:
    """A process of this machine, with a share of its threads."""

    def __init__(self, settings: CommonSettings, device: str, n_threads: int) -> None:
        self._arguments = (settings, device, n_threads)
        self._pool: ProcessPoolExecutor | None = None

    async def call(self, method: str, *arguments: Any) -> Any:
        try:
            return await asyncio.wrap_future(self._submit(method, arguments))
        except BrokenProcessPool as error:
            self.end()
            raise WorkerLost("a worker process was killed (too little memory?)") from error

    def _submit(self, method: str, arguments: tuple[Any, ...]) -> Future[Any]:
        if self._pool is not None:
            return self._pool.submit(_in_process, method, arguments)
        spawn = multiprocessing.get_context("spawn")  # a forked torch hangs
        self._pool = ProcessPoolExecutor(1, spawn, _begin_process, self._arguments)
        with _interrupts_blocked():  # this starts the process
            return self._pool.submit(_in_process, method, arguments)

    def end(self) -> None:
        if self._pool is None:
            return
        for process in list((self._pool._processes or {}).values()):  # a shutdown alone waits for its work
            process.kill()
        self._pool.shutdown(cancel_futures=True)
        self._pool = None


class HostOfProcess:
    """A `Host` alone in its process, with a share of the machine's threads."""

    def __init__(self, settings: CommonSettings, device: str, n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        self._host = Host(settings, device, lambda *_: None)

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Raises: InputError, whatever the method raises: the user must hear of it in one line."""
        try:
            return getattr(self._host, method)(*arguments)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"a worker failed ({type(error).__name__}: {first_line(error)}); try --workers 1 to see where"
            ) from error


_host: HostOfProcess | None = None  # of a process that was started as a worker


def _begin_process(*arguments: Any) -> None:
    global _host
    Thread(target=_end_with_parent, daemon=True).start()
    _host = HostOfProcess(*arguments)


def _in_process(method: str, arguments: tuple[Any, ...]) -> Any:
    assert _host is not None
    return _host.call(method, arguments)


def _end_with_parent() -> None:
    """A process that was killed cannot end its workers; they see that it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process that is started meanwhile never hears Ctrl-C, which the terminal sends to all: we end it ourselves."""
    resource_tracker.ensure_running()  # its start, which would come with the process's, unblocks interrupts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class Place:
    """A worker, with what it has in memory: models and given records, the latest last."""

    worker: Worker
    models: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    busy: bool = False

    def uses(self, models: Sequence[str], base: str) -> None:
        """From now on, as the host does: these are the latest, and a variant that is new comes after the base."""
        loaded = (name for model in models for name in ((model,) if model in self.models else (base, model)))
        for name in loaded:
            others = [other for other in self.models if other != name]
            self.models = [*others[-(MODELS_AT_ONCE - 1) :], name]

    def gets(self, key: str) -> None:
        self.given = [*[other for other in self.given if other != key][-(RECORDS_AT_ONCE - 1) :], key]

    def forget(self) -> None:
        self.models, self.given = [], []


@dataclass
class _Waiting:
    rank: Rank
    models: tuple[str, ...]
    place: asyncio.Future[Place]


class Workers:
    """Hands a free worker to whoever is next: first where its models are in memory, then in the study's order."""

    def __init__(self, workers: Sequence[Worker], base: str) -> None:
        self._places, self._base = [Place(worker) for worker in workers], base
        self._waiting: list[_Waiting] = []

    def __len__(self) -> int:
        return len(self._places)

    @asynccontextmanager
    async def free(self, models: tuple[str, ...], rank: Rank) -> AsyncIterator[Place]:
        """A worker for this block alone."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(rank, models, loop.create_future())
        self._waiting.append(waiting)
        loop.call_later(_MOMENT, self._hand_out)
        place = await waiting.place
        try:
            yield place
        finally:
            place.busy = False
            loop.call_later(_MOMENT, self._hand_out)

    def end(self) -> None:
        """Ends them all, whatever they are at."""
        for place in self._places:
            place.worker.end()

    def _hand_out(self) -> None:
        self._waiting = [each for each in self._waiting if not each.place.done()]  # some were cancelled
        free = [place for place in self._places if not place.busy]
        while free and self._waiting:
            place, waiting = min(
                ((place, waiting) for place in free for waiting in self._waiting),
                key=lambda pair: (len(set(pair[1].models) - set(pair[0].models)), pair[1].rank),
            )
            place.busy = True
            place.uses(waiting.models, self._base)
            waiting.place.set_result(place)
            self._waiting.remove(waiting)
            free.remove(place)


def local_workers(settings: CommonSettings, n: int, monitor: Monitor) -> list[Worker]:
    """This process alone, or `n` others, each with its device, in turn, and its share of the threads."""
    devices = settings.device
    if n == 1:
        return [ThisProcess(settings, devices[0], monitor)]
    n_threads = max(1, torch.get_num_threads() // n)
    return [LocalProcess(settings, devices[i % len(devices)], n_threads) for i in range(n)]
