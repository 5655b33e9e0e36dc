"""Who computes a record: one living process, and whoever comes after a dead one."""

from __future__ import annotations

import os
import subprocess
import sys

from circuitdiff.claims import claimed


def test_a_claim_ends_with_its_block(tmp_path):
    record = tmp_path / "one.safetensors"
    with claimed([record]) as mine:
        assert mine == [record]
        assert (tmp_path / "one.claim").read_text() == str(os.getpid())
    assert not (tmp_path / "one.claim").exists()


def test_what_a_living_process_has_claimed_is_not_ours_and_stays_claimed(tmp_path):
    theirs, free = tmp_path / "theirs.safetensors", tmp_path / "free.safetensors"
    (tmp_path / "theirs.claim").write_text(str(os.getppid()))
    with claimed([theirs, free]) as mine:
        assert mine == [free]
    assert (tmp_path / "theirs.claim").exists()


def test_a_claim_without_a_number_yet_is_somebody_elses(tmp_path):
    (tmp_path / "one.claim").touch()
    with claimed([tmp_path / "one.safetensors"]) as mine:
        assert mine == []


def test_the_claim_of_a_dead_process_is_taken_over(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (tmp_path / "one.claim").write_text(dead.stdout.strip())
    with claimed([tmp_path / "one.safetensors"]) as mine:
        assert len(mine) == 1
