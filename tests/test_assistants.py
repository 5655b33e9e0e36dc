"""Assistants: other processes that must not outlive the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MAIN = """
import os, sys, time
from pathlib import Path
if __name__ != "__main__":
    Path(__file__).with_name("imports").write_text(str(os.getpid()))  # the assistant, before it has torch
from circuitdiff.assistants import Assistants
from circuitdiff.errors import InputError

def work(settings, folder, number, notify):
    (folder / "assistant").write_text(str(os.getpid()))
    notify("it has begun")
    if settings == "bad input":
        raise InputError("the third line of x.jsonl is empty")
    if settings == "a fault of ours":
        raise ZeroDivisionError("division by zero")
    time.sleep(600)

if __name__ == "__main__":
    folder, settings = Path(sys.argv[1]), sys.argv[2]
    assistants = Assistants(1, work, settings, folder, lambda line: print("note:", line, flush=True))
    monitor = assistants.watched(lambda title, done, total: None)
    try:
        with assistants.at_work():
            for second in range(3000):
                monitor("work", second, 3000)
                (folder / "monitored").write_text(str(second))
                time.sleep(0.1)
    except (InputError, KeyboardInterrupt) as error:
        print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def started(tmp_path):
    """Starts a process with an assistant; both in a group of their own, as a terminal starts them."""
    (tmp_path / "main.py").write_text(MAIN)
    mains: list[subprocess.Popen[str]] = []

    def start(settings: str = "long") -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "main.py"), str(tmp_path), settings]
        pipe = subprocess.PIPE
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
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_assistant_ends_with_the_process_that_started_it(started, tmp_path, how):
    main = started()
    assistant = int(waited_for(tmp_path / "assistant"))
    assert alive(assistant)
    os.kill(main.pid, how)
    main.wait(60)
    ends = time.monotonic() + 30
    while alive(assistant) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not alive(assistant)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("bad input", "the third line of x.jsonl is empty"),
        (
            "a fault of ours",
            "another process of this run failed (ZeroDivisionError: division by zero); try --workers 1",
        ),
    ],
)
def test_an_error_in_an_assistant_ends_the_work_with_its_message(started, settings, message):
    out, err = started(settings).communicate(timeout=120)
    assert out.splitlines() == ["note: it has begun", f"InputError: {message}"]
    assert err == ""


def test_an_assistant_that_is_killed_is_told_of_and_the_work_goes_on(started, tmp_path):
    main = started()
    os.kill(int(waited_for(tmp_path / "assistant")), signal.SIGKILL)
    assert main.stdout is not None
    assert main.stdout.readline() == "note: it has begun\n"
    assert "was killed (signal 9" in main.stdout.readline()
    before = int(waited_for(tmp_path / "monitored"))
    ends = time.monotonic() + 30
    while int(waited_for(tmp_path / "monitored")) < before + 5:
        assert time.monotonic() < ends
        time.sleep(0.1)


def test_ctrl_c_is_heard_by_the_first_process_alone(started, tmp_path):
    main = started()
    os.kill(int(waited_for(tmp_path / "imports")), signal.SIGINT)
    waited_for(tmp_path / "assistant")  # it imported torch, and works
    os.killpg(main.pid, signal.SIGINT)
    out, err = main.communicate(timeout=60)
    assert out.splitlines() == ["note: it has begun", "KeyboardInterrupt: "]
    assert err == ""


def waited_for(file: Path) -> str:
    ends = time.monotonic() + 120
    while time.monotonic() < ends:
        if file.exists() and (text := file.read_text()):
            return text
        time.sleep(0.1)
    pytest.fail("no assistant was started")
