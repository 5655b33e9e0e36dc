"""The run folder: nothing is computed twice, nothing half-written is believed."""

from __future__ import annotations

import json
import os
import shutil
from threading import Timer

import pytest
import torch

from circuitdiff.errors import InputError
from circuitdiff.store import Record, Store, hashed, read_results


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


def test_a_damaged_record_is_computed_again(tmp_path):
    store = Store.open(tmp_path)
    calls, compute = counting(store)
    store.stage("effects", 0, compute)
    (path,) = (tmp_path / "stages").iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    store.stage("effects", 0, compute)
    assert len(calls) == 2


def test_a_stage_that_fails_leaves_nothing_behind(tmp_path):
    def compute() -> Record:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store.open(tmp_path).stage("effects", 0, compute)
    assert list((tmp_path / "stages").iterdir()) == []


def test_the_same_record_has_the_same_bytes(tmp_path):
    contents = []
    for name in ("a", "b"):
        store = Store.open(tmp_path / name)
        store.stage("effects", 0, counting(store)[1])
        (path,) = (tmp_path / name / "stages").iterdir()
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_a_write_that_fails_keeps_the_old_file_and_says_what_to_do(tmp_path, monkeypatch):
    store = Store.open(tmp_path)
    store.write_json("results.json", {"old": True})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device; make room and run again"):
        store.write_json("results.json", {"old": False})
    assert read_results(tmp_path) == {"old": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "stages"]


def test_equal_settings_have_equal_hashes_whatever_their_order():
    assert hashed({"a": 1, "b": (2, 3)}) == hashed({"b": [2, 3], "a": 1})
    assert hashed({"a": 1}) != hashed({"a": 2})


def test_results_of_no_run_or_a_damaged_one_are_refused(tmp_path):
    with pytest.raises(InputError, match="not a finished run"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"a":')
    with pytest.raises(InputError, match=r"damaged.*run the study again"):
        read_results(tmp_path)


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another run folder"):
        Store.open(tmp_path / "file")


def test_timings_go_to_a_log_beside_the_results(tmp_path):
    store = Store.open(tmp_path)
    store.stage("effects", 0, counting(store)[1])
    store.stage("effects", 0, counting(store)[1])
    (line,) = (tmp_path / "timings.jsonl").read_text().splitlines()
    assert json.loads(line)["stage"] == "effects"


def test_what_another_process_computes_is_waited_for_and_not_computed_again(tmp_path):
    store = Store.open(tmp_path)
    calls, compute = counting(store)
    other = Store.open(tmp_path / "other")
    other.stage("effects", 0, counting(other)[1])
    (done,) = (other.folder / "stages").iterdir()
    claim = (store.folder / "stages" / done.name).with_suffix(".claim")
    claim.write_text(str(os.getppid()))

    def finish() -> None:
        shutil.copy(done, store.folder / "stages" / done.name)
        claim.unlink()

    Timer(0.3, finish).start()
    assert torch.equal(store.stage("effects", 0, compute).tensors["x"], torch.arange(3.0))
    assert calls == []
