"""Workers: processes that tell their errors, and must not outlive the one that started them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from circuitdiff.study.workers import Place, Workers

MAIN = """
import asyncio, os, signal, sys, time
from pathlib import Path
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes would not hear it
else:
    Path(__file__).with_name("imports").write_text(str(os.getpid()))  # the worker, before it has torch
from circuitdiff.errors import InputError
from circuitdiff.study.registry import parse_study
from circuitdiff.study.workers import LocalProcess, WorkerLost

HERE = Path(__file__).parent

def work(loaded):
    (HERE / "worker").write_text(str(os.getpid()))
    kind = (HERE / "kind").read_text()
    if kind == "bad input":
        raise InputError("the third line of x.jsonl is empty")
    if kind == "a fault of ours":
        raise ZeroDivisionError("division by zero")
    if kind == "once":
        (HERE / "kind").write_text("done")
        (HERE / "once").write_text(str(os.getpid()))
        time.sleep(600)
    return kind if kind == "done" else time.sleep(600)

async def asked(worker, settings):
    return await worker.call("ask", work, "planted-base", {"planted-base": settings.base})

async def several(worker, settings, kinds):
    for kind in kinds:
        (HERE / "kind").write_text(kind)
        try:
            print(await asked(worker, settings), flush=True)
        except InputError as error:
            print(f"InputError: {error}", flush=True)
        except WorkerLost as error:
            print("lost:", error, flush=True)
            print(await asked(worker, settings))

if __name__ == "__main__":
    settings = parse_study({"name": "s", "base": "planted-base", "task": "entity_tracking"}, "test")
    worker = LocalProcess(settings, "cpu", 1)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(several(worker, settings, sys.argv[1:]))
    except KeyboardInterrupt as error:
        print(f"{type(error).__name__}: {error}")
    finally:
        worker.end()
"""


@pytest.fixture
def started(tmp_path):
    """Starts a process with a worker; both in a group of their own, as a terminal starts them."""
    (tmp_path / "main.py").write_text(MAIN)
    mains: list[subprocess.Popen[str]] = []

    def start(*kinds: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [sys.executable, str(tmp_path / "main.py"), *kinds]
        mains.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True))
        return mains[-1]

    yield start
    for main in mains:
        main.kill()
        main.communicate()


def alive(pid: int) -> bool:
    """Also false of a process that has ended and that nobody has asked for yet."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc whether a process lives")
def test_a_worker_ends_with_the_process_that_started_it(started, tmp_path):
    main = started("long")
    worker = int(waited_for(tmp_path / "worker"))
    assert alive(worker)
    os.kill(main.pid, signal.SIGKILL)
    main.wait(60)
    ends = time.monotonic() + 30
    while alive(worker) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not alive(worker)


def test_an_error_in_a_worker_is_raised_with_its_message_and_a_killed_one_is_there_again(started, tmp_path):
    main = started("bad input", "a fault of ours", "once")
    os.kill(int(waited_for(tmp_path / "once")), signal.SIGKILL)
    out, err = main.communicate(timeout=120)
    assert out.splitlines() == [
        "InputError: the third line of x.jsonl is empty",
        "InputError: a worker failed (ZeroDivisionError: division by zero); try --workers 1 to see where",
        "lost: a worker process was killed (too little memory?)",
        "done",
    ]
    assert err == ""


def test_ctrl_c_is_heard_by_the_first_process_alone_and_ends_all(started, tmp_path):
    main = started("long")
    os.kill(int(waited_for(tmp_path / "imports")), signal.SIGINT)
    worker = int(waited_for(tmp_path / "worker"))  # it imported torch, and works
    os.killpg(main.pid, signal.SIGINT)
    out, err = main.communicate(timeout=60)
    assert (out.splitlines(), err) == (["KeyboardInterrupt: "], "")
    ends = time.monotonic() + 30
    while alive(worker) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not alive(worker)


def waited_for(file: Path) -> str:
    ends = time.monotonic() + 120
    while time.monotonic() < ends:
        if file.exists() and (text := file.read_text()):
            return text
        time.sleep(0.1)
    pytest.fail("no worker was started")


class Idle:
    """A worker that is only handed out."""

    async def call(self, method: str, *arguments: Any) -> None: ...

    def end(self) -> None: ...


def handed_out(n_workers: int, requests: list[tuple[tuple[str, ...], tuple[int, ...]]]) -> list[int]:
    """The numbers of the requests, in the order in which they get a worker."""

    async def run() -> list[int]:
        workers, order = Workers([Idle() for _ in range(n_workers)], "a"), list[int]()

        async def one(number: int, models: tuple[str, ...], rank: tuple[int, ...]) -> None:
            async with workers.free(models, rank):
                order.append(number)
                await asyncio.sleep(0.01)

        await asyncio.gather(*(one(i, *request) for i, request in enumerate(requests)))
        return order

    return asyncio.run(run())


def test_a_worker_goes_on_with_the_model_that_it_has_and_else_in_the_studys_order():
    requests = [(("b",), (3,)), (("a",), (0,)), (("b",), (1,)), (("a",), (2,)), (("c",), (0, 1))]
    assert handed_out(1, requests) == [1, 3, 4, 2, 0]


def test_a_unit_goes_to_the_worker_that_has_its_model():
    async def run() -> list[bool]:
        workers = Workers([Idle(), Idle()], "a")
        async with workers.free(("a",), (0,)) as first, workers.free(("b",), (0,)) as second:
            assert first is not second
        async with workers.free(("b",), (0,)) as again, workers.free(("a",), (0,)) as other:
            return [again is second, other is first]

    assert asyncio.run(run()) == [True, True]


def test_what_a_worker_has_in_memory_is_known_as_the_worker_keeps_it():
    place = Place(Idle())
    place.uses(("b",), base="a")
    assert place.models == ["a", "b"]
    place.uses(("c",), base="a")
    assert place.models == ["a", "c"]
    place.uses(("c", "a"), base="a")
    assert place.models == ["c", "a"]
    for key in ("k1", "k2", "k3", "k4", "k1", "k5"):
        place.gets(key)
    assert place.given == ["k3", "k4", "k1", "k5"]
