"""A study carried out by several processes, of which one is killed, gives the bytes of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from circuitdiff.study.runner import run_study
from circuitdiff.study.workers import LocalProcess, local_workers
from helpers.tiny_folder import save_tiny_model, settings_of, silent


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_study(settings_of(folder, model), folder / "run", silent)
    return folder / "run"


def test_three_processes_give_the_bytes_of_one_though_one_is_killed_and_compute_nothing_twice(
    finished, model, tmp_path
):
    settings, told = settings_of(tmp_path, model), list[str]()
    workers = local_workers(settings, 3, silent)
    first = workers[0]
    assert isinstance(first, LocalProcess)
    records = tmp_path / "run" / "records"

    def kill_the_first_in_the_middle() -> None:
        while not records.is_dir() or len(list(records.iterdir())) < 4:
            time.sleep(0.02)
        assert first._pool is not None
        (process,) = first._pool._processes
        os.kill(process, signal.SIGKILL)

    killer = Thread(target=kill_the_first_in_the_middle)
    killer.start()
    run_study(settings, tmp_path / "run", silent, workers=workers, notify=told.append)
    killer.join()
    assert all("a worker process was killed" in line for line in told)
    assert (tmp_path / "run" / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    titles = [json.loads(line)["unit"] for line in (tmp_path / "run" / "timings.jsonl").read_text().splitlines()]
    assert sorted(titles) == sorted(
        json.loads(line)["unit"] for line in (finished / "timings.jsonl").read_text().splitlines()
    )
    assert not list((tmp_path / "run" / "locks").rglob("*.lock"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for Ray's processes in /proc")
def test_ray_gives_the_bytes_of_one_process_though_a_worker_is_killed(finished, model, tmp_path):
    pytest.importorskip("ray")
    settings_of(tmp_path, model)  # writes the study's file
    command = [sys.executable, "-m", "circuitdiff", "run", str(tmp_path / "tiny.yaml"), "--out", "run"]
    pipe, text = subprocess.PIPE, {"cwd": tmp_path, "text": True}
    running = subprocess.Popen([*command, "--ray", "local", "--workers", "2"], stdout=pipe, stderr=pipe, **text)
    records = tmp_path / "run" / "records"
    while running.poll() is None and (not records.is_dir() or len(list(records.iterdir())) < 3):
        time.sleep(0.02)
    assert killed_an_actor()
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    assert "a Ray worker died; what it was at is computed again" in out
    assert (tmp_path / "run" / "results.json").read_bytes() == (finished / "results.json").read_bytes()


def killed_an_actor() -> bool:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::HostOfProcess"):
                os.kill(int(folder.name), signal.SIGKILL)
                return True
    return False
