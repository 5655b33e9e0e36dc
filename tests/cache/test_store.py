"""The run folder: nothing is computed twice, nothing half-written is believed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file, save_file

import circuitdiff.cache.store
from circuitdiff.cache.records import hashed
from circuitdiff.cache.store import Record, Store
from circuitdiff.errors import InputError


def counting(store: Store):
    calls: list[int] = []

    def compute() -> Record:
        calls.append(1)
        return Record({"x": torch.arange(3.0)}, {"n": [1, float("nan")]})

    return calls, compute


def test_a_stage_is_computed_once_for_each_key(tmp_path):
    store = Store.open(tmp_path)
    calls, compute = counting(store)
    first = store.stage("effects", {"seed": 0}, compute)
    again = Store.open(tmp_path).stage("effects", {"seed": 0}, compute)
    assert len(calls) == 1
    assert torch.equal(again.tensors["x"], first.tensors["x"])
    assert again.data == {"n": [1, None]}
    store.stage("effects", {"seed": 1}, compute)
    assert len(calls) == 2


@pytest.fixture
def record(tmp_path) -> Path:
    """The file of a record, of a store that is asked for it again in `asked_again`."""
    store = Store.open(tmp_path)
    store.stage("effects", 0, counting(store)[1])
    (path,) = (tmp_path / "records").iterdir()
    return path


def asked_again(record: Path) -> tuple[int, list[str]]:
    """How often it is computed when it is asked for again, and what the user is told."""
    told: list[str] = []
    store = Store.open(record.parents[1], told.append)
    calls, compute = counting(store)
    again = store.stage("effects", 0, compute)
    assert torch.equal(again.tensors["x"], torch.arange(3.0))
    assert again.data == {"n": [1, None]}
    return len(calls), told


def without_our_metadata(path: Path) -> None:
    save_file(load_file(path), path)


def with_other_metadata(path: Path) -> None:
    save_file(load_file(path), path, {"record": "not json", "data": "[["})


def a_folder(path: Path) -> None:
    path.unlink()
    (path / "somebody's").mkdir(parents=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(path.read_bytes()[:50]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage" * 99),
        without_our_metadata,
        with_other_metadata,
        a_folder,
    ],
)
def test_a_damaged_record_is_told_of_and_computed_again(record, damage):
    damage(record)
    times, (line,) = asked_again(record)
    assert times == 1
    assert f"{record} is damaged" in line
    assert asked_again(record) == (0, [])


def test_no_bit_of_a_record_can_flip_unseen(record):
    content = record.read_bytes()
    used = []
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        record.write_bytes(flipped)
        if asked_again(record)[0] != 1:
            used.append(place)
    assert len(content) > 100
    assert used == []
    assert record.read_bytes() == content


def test_a_record_is_a_safetensors_file_with_the_hash_of_its_whole_content(record):
    content = record.read_bytes()
    assert torch.equal(load_file(record)["x"], torch.arange(3.0))
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    digest = json.loads(header["__metadata__"]["record"])["sha256"]
    assert hashlib.sha256(content.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


def test_a_title_may_be_anything_and_decides_nothing(tmp_path):
    store = Store.open(tmp_path)
    names = ["a/b", "a_b", "a b", "../a", "/abs", "", "..", "x[/b]y", "\x1b]0;x\a", "n" * 250, "n" * 251, "\ud800"]
    for number, name in enumerate(names):
        store.stage(name, number, lambda number=number: Record({}, number))
    again = [store.stage("another title", number, lambda: Record({}, None)).data for number in range(len(names))]
    assert again == list(range(len(names)))
    assert len(list((tmp_path / "records").iterdir())) == len(names)
    assert {path.name for path in tmp_path.iterdir()} == {"records", "records-schema", "locks"}


@pytest.mark.parametrize("schema", [None, "1", ""])
def test_a_folder_of_an_earlier_version_is_refused_and_left_as_it_is(tmp_path, schema):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "abc.safetensors").write_bytes(b"of another form")
    if schema is not None:
        (tmp_path / "records-schema").write_text(schema)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"earlier version of circuitdiff, .*another run folder, or delete"):
        Store.open(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_with_the_stages_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "stages").mkdir()
    with pytest.raises(InputError, match=r"earlier version of circuitdiff"):
        Store.open(tmp_path)


def test_a_stage_that_fails_leaves_nothing_behind(tmp_path):
    def compute() -> Record:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store.open(tmp_path).stage("effects", 0, compute)
    assert list((tmp_path / "records").iterdir()) == list((tmp_path / "locks").iterdir()) == []


def test_the_same_record_has_the_same_bytes(tmp_path):
    contents = []
    for name in ("a", "b"):
        store = Store.open(tmp_path / name)
        store.stage("effects", 0, counting(store)[1])
        (path,) = (tmp_path / name / "records").iterdir()
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_a_write_that_fails_keeps_the_old_file_and_says_what_to_do(tmp_path, monkeypatch):
    store = Store.open(tmp_path)
    store.write_json("results.json", {"old": True})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device; make room or .* run again"):
        store.write_json("results.json", {"old": False})
    assert json.loads((tmp_path / "results.json").read_text()) == {"old": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records", "records-schema", "results.json"]


def test_equal_settings_have_equal_hashes_whatever_their_order():
    assert hashed({"a": 1, "b": (2, 3)}) == hashed({"b": [2, 3], "a": 1})
    assert hashed({"a": 1}) != hashed({"a": 2})


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another run folder"):
        Store.open(tmp_path / "file")


def test_timings_go_to_a_log_beside_the_results(tmp_path):
    store = Store.open(tmp_path)
    store.log("effects", 1.23456)
    (line,) = (tmp_path / "timings.jsonl").read_text().splitlines()
    assert json.loads(line) == {"unit": "effects", "seconds": 1.235}


TEN_RECORDS = """
import os, sys, time
from pathlib import Path
from circuitdiff.cache.store import Record, Store

store = Store.open("run", print)

def compute(number):
    with open("computed", "a") as file:
        file.write(f"{number}\\n")
    Path("computes").touch()
    time.sleep(float(sys.argv[1]))
    return Record({}, number)

for number in range(10):
    store.stage("effects", number, lambda: compute(number))
"""


@pytest.fixture
def other(tmp_path):
    """Starts another process in the test's folder; it ends with the test."""
    others: list[subprocess.Popen[bytes]] = []

    def start(program: str, *arguments: object) -> subprocess.Popen[bytes]:
        others.append(subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], cwd=tmp_path))
        return others[-1]

    yield start
    for process in others:
        process.kill()
        process.wait()


def until(holds, seconds: float = 100) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.02)


def computed_here(folder: Path, told: list[str]) -> list[int]:
    """Which of the ten records this process had to compute."""
    made: list[int] = []
    store = Store.open(folder / "run", told.append)

    def compute(number: int) -> Record:
        made.append(number)
        return Record({}, number)

    records = [store.stage("effects", number, lambda number=number: compute(number)) for number in range(10)]
    assert [record.data for record in records] == list(range(10))
    assert not list((folder / "run" / "locks").rglob("*.lock"))
    return made


def test_what_another_process_computes_is_waited_for_with_a_line_now_and_then(other, tmp_path, monkeypatch):
    monkeypatch.setattr(circuitdiff.cache.store, "FIRST_NOTICE", 0.5)
    monkeypatch.setattr(circuitdiff.cache.store, "_NOTICE", 0.7)
    told: list[str] = []
    computing = other(TEN_RECORDS, 3.0)
    until((tmp_path / "computes").exists)
    monkeypatch.setattr(Store, "keep", lambda *_: pytest.fail("computed here"))
    assert Store.open(tmp_path / "run", told.append).stage("effects", 0, lambda: Record({}, None)).data == 0
    computing.kill()
    assert 2 <= len(told) <= 5
    assert all(line.startswith("waiting for 'effects', which another process computes") for line in told)


def test_what_a_killed_process_left_undone_is_computed_here_even_while_it_is_a_zombie(other, tmp_path):
    computing = other(TEN_RECORDS, 600)
    until((tmp_path / "computes").exists)
    os.kill(computing.pid, signal.SIGKILL)
    told: list[str] = []
    assert computed_here(tmp_path, told) == list(range(10))
    assert told == []


def test_a_process_that_waits_goes_on_when_the_other_is_killed(other, tmp_path):
    computing = other(TEN_RECORDS, 600)
    until((tmp_path / "computes").exists)
    made: list[int] = []
    waits = Thread(target=lambda: made.extend(computed_here(tmp_path, [])))
    waits.start()
    time.sleep(0.5)
    assert made == []
    os.kill(computing.pid, signal.SIGKILL)
    waits.join(20)
    assert made == list(range(10))


def test_two_processes_at_once_compute_every_record_once(other, tmp_path):
    computing = [other(TEN_RECORDS, 0.3) for _ in range(2)]
    assert [process.wait(150) for process in computing] == [0, 0]
    assert sorted(map(int, (tmp_path / "computed").read_text().split())) == list(range(10))


def test_what_an_earlier_run_left_keeps_nobody_waiting(tmp_path, record):
    record.unlink()
    record.with_suffix(".claim").write_text(str(os.getppid()))  # as earlier versions locked
    (tmp_path / "locks").mkdir(exist_ok=True)
    (tmp_path / "locks" / f"{record.stem}.lock").touch()
    assert asked_again(record) == (1, [])


def test_a_folder_that_takes_no_locks_is_refused_in_a_line(tmp_path):
    store = Store.open(tmp_path)
    (tmp_path / "locks").write_text("")  # whatever the system says: read-only, full, no locks on this network
    with pytest.raises(InputError, match=r"cannot lock .*\.lock: .*; make room, or choose a run folder"):
        store.stage("effects", 0, counting(store)[1])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"key"',
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"x"',
        b'{"key": null, "files": null}',
        b'{"files": {"a": "b"}}',
        b"[" * 100_000,
        None,
    ],
)
def test_a_run_whose_last_file_is_damaged_is_not_finished(tmp_path, content):
    store = Store.open(tmp_path)
    store.write("results.json", b"{}")
    store.finish({"seed": 0}, {"results.json": b"{}"})
    assert store.finished({"seed": 0}, "results.json") == b"{}"
    assert store.finished({"seed": 1}, "results.json") is None
    (tmp_path / "finished.json").unlink()
    (tmp_path / "finished.json").mkdir() if content is None else (tmp_path / "finished.json").write_bytes(content)
    assert store.finished({"seed": 0}, "results.json") is None


def test_a_run_whose_file_somebody_else_wrote_is_not_finished(tmp_path):
    store = Store.open(tmp_path)
    store.write("results.json", b'{"ours": 1}')
    store.write("results.json", b'{"theirs": 1}')  # another process, before we come to the end
    store.finish({"seed": 0}, {"results.json": b'{"ours": 1}'})
    assert store.finished({"seed": 0}, "results.json") is None


USES = """
import sys, time
from pathlib import Path
from circuitdiff.cache.store import Store
with Store.open(sys.argv[1]).used_by({"seed": 0}):
    Path(sys.argv[1], "uses").touch()
    time.sleep(600)
"""


def test_two_processes_of_one_study_share_a_folder_and_another_study_is_refused(other, tmp_path):
    running = other(USES, tmp_path)
    until((tmp_path / "uses").exists)
    with Store.open(tmp_path).used_by({"seed": 0}):
        pass
    refused = pytest.raises(InputError, match=r"another study is running in .*; wait for its end")
    with refused, Store.open(tmp_path).used_by({"seed": 1}):
        pass
    running.kill()
    running.wait()
    with Store.open(tmp_path).used_by({"seed": 1}):
        pass
    assert not list((tmp_path / "locks").rglob("*.lock"))
