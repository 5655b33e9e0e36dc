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
from circuitdiff.assistants import assisted

def work(settings, folder, number):
    (folder / "assistant").write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    with assisted(work, None, Path(sys.argv[1]), n_assistants=1):
        time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Also false of a process that has ended and that nobody has asked for yet."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc whether a process lives")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_assistant_ends_with_the_process_that_started_it(tmp_path, how):
    (tmp_path / "main.py").write_text(MAIN)
    main = subprocess.Popen([sys.executable, str(tmp_path / "main.py"), str(tmp_path)])
    try:
        assistant = int(waited_for(tmp_path / "assistant"))
        assert alive(assistant)
        os.kill(main.pid, how)
        main.wait(60)
    finally:
        main.kill()
        main.wait()
    ends = time.monotonic() + 30
    while alive(assistant) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not alive(assistant)


def waited_for(file: Path) -> str:
    ends = time.monotonic() + 120
    while time.monotonic() < ends:
        if file.exists() and (text := file.read_text()):
            return text
        time.sleep(0.1)
    pytest.fail("no assistant was started")
