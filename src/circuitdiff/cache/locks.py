"""Locks between processes that fill one folder. The kernel holds them, and frees those of a process that dies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from circuitdiff.errors import InputError

_AT_ONCE = 100  # locks that a process holds: each is an open file, of which some systems allow 256
_POLL = 0.2  # seconds between two attempts
_START = 2.0  # seconds that one process may take to look at another's lock


@contextmanager
def locked(folder: Path, names: Sequence[str], seconds: float = 0.0) -> Iterator[list[str]]:
    """Those names, a hundred at most, that no other process has locked within so many seconds; ours in this block.

    A lock's file says nothing; whoever lets go of it deletes it first. One who had opened it before sees, once it is
    his, that it has no name any more, and tries again (filelock does); one who comes after makes a new file.

    Raises: InputError if the folder, or its file system, does not take locks.
    """
    with ExitStack() as stack:
        ours: list[str] = []
        for name in names:
            lock = _acquired(folder / f"{name}.lock", seconds)
            if lock is not None:
                stack.callback(_release, lock)
                ours.append(name)
            if len(ours) == _AT_ONCE:
                break
        yield ours


@contextmanager
def used_for(folder: Path, purpose: str) -> Iterator[bool]:
    """Whether no other living process uses the folder of locks for another purpose; in this block others see us.

    Of two that begin at the same moment, both may be told that the other is there.
    """
    own = f"{purpose}-{uuid4().hex[:12]}"
    with locked(folder, [own], _START):
        others = [file.stem for file in folder.glob("*.lock") if file.stem != own]
        with locked(folder, [name for name in others if name.startswith(f"{purpose}-")]):
            pass  # deletes what killed processes left
        strange = [name for name in others if not name.startswith(f"{purpose}-")]
        with locked(folder, strange, _START) as ended:
            free = len(ended) == len(strange)
        yield free


def _acquired(file: Path, seconds: float) -> FileLock | None:
    lock = FileLock(file, fallback_to_soft=False)  # a soft lock outlives its holder
    try:
        lock.acquire(timeout=seconds, poll_interval=_POLL)
    except Timeout:
        return None
    except OSError as error:
        raise InputError(
            f"cannot lock {file}: {error.strerror}; make room, or choose a run folder that can be written to and whose "
            f"file system has locks"
        ) from error
    return lock


def _release(lock: FileLock) -> None:
    with suppress(OSError):  # where it cannot be deleted it stays, and is used again
        Path(lock.lock_file).unlink()
    lock.release()
