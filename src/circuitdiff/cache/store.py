"""The run folder: records, each under the hash of all that it depends on."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitdiff.cache.files import write_whole
from circuitdiff.cache.locks import locked, used_for
from circuitdiff.cache.records import Record, hashed, packed, to_json, unpacked
from circuitdiff.config.reading import read_json
from circuitdiff.errors import InputError

RESULTS = "results.json"
REPORT = "report.html"
_FINISHED = "finished.json"
_RECORDS, _EARLIER = "records", "stages"  # folders; the earlier one had other keys
_SCHEMA, _SCHEMA_VERSION = "records-schema", "2"  # which form the records have, in a file beside their folder
POLL = 0.2  # seconds between two looks whether another process is done
FIRST_NOTICE, _NOTICE = 30.0, 300.0  # seconds of waiting for another process after which the user is told

Notify = Callable[[str], None]  # is told, in a line, what the user should know


@dataclass(frozen=True)
class Store:
    """A run folder. What is there under the same key is not computed again."""

    folder: Path
    notify: Notify = warnings.warn

    @classmethod
    def open(cls, folder: str | Path, notify: Notify = warnings.warn) -> Store:
        """Raises: InputError if the folder cannot be made or written to, or an earlier version filled it."""
        path = Path(folder)
        try:
            (path / _RECORDS).mkdir(parents=True, exist_ok=True)
            empty = not any((path / _RECORDS).iterdir())
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror}; choose another run folder") from error
        if empty and not (path / _EARLIER).is_dir():
            write_whole(path / _SCHEMA, _SCHEMA_VERSION.encode())
        elif not (path / _SCHEMA).is_file() or (path / _SCHEMA).read_text() != _SCHEMA_VERSION:
            raise InputError(
                f"{path} holds records of an earlier version of circuitdiff, which cannot be used: choose another run "
                f"folder, or delete this one"
            )
        return cls(path, notify)

    @contextmanager
    def used_by(self, study: Any) -> Iterator[None]:
        """While this lasts no other study runs in this folder; further processes of the same study can.

        Raises: InputError if another one runs here now.
        """
        with used_for(self._locks / "studies", hashed(study)[:16]) as free:
            if not free:
                raise InputError(
                    f"another study is running in {self.folder}; wait for its end, or give this one another run folder"
                )
            yield

    def stage(self, title: str, depends_on: Any, compute: Callable[[], Record]) -> Record:
        """The record of what it depends on: from the folder, or computed and kept, or awaited from another process."""
        key, begin, notice = hashed(depends_on), time.monotonic(), FIRST_NOTICE
        while True:
            if (record := self.read(key)) is not None:
                return record
            with self.locked(key) as ours:
                if ours:
                    record = self.read(key, self.notify)  # somebody was faster
                    return self.keep(key, packed(compute(), title)) if record is None else record
            time.sleep(POLL)
            notice = self.told_of_waiting(title, time.monotonic() - begin, notice)

    def told_of_waiting(self, title: str, waited: float, notice: float) -> float:
        """Tells the user once `waited` is more seconds than `notice`; after how many he is to be told next."""
        if waited <= notice:
            return notice
        self.notify(f"waiting for {title!r}, which another process computes (for {waited:.0f} s so far)")
        return waited + _NOTICE

    @contextmanager
    def locked(self, key: str) -> Iterator[bool]:
        """Whether the record's lock is ours in this block. Who makes a record has it, so none is made twice at once.

        If its maker dies the lock is free.
        """
        with locked(self._locks, [key]) as ours:
            yield bool(ours)

    def read(self, key: str, notify: Notify | None = None) -> Record | None:
        """The record if it is there and whole; `notify` is told of a damaged one, which is as good as none."""
        try:
            return unpacked(self._path(key).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            if notify:
                reason = error.strerror if isinstance(error, OSError) else error
                notify(f"{self._path(key)} is damaged ({reason}), so it is computed again")
            return None

    def content(self, key: str) -> bytes:
        """The file of a record that is there."""
        return self._path(key).read_bytes()

    def keep(self, key: str, content: bytes) -> Record:
        """Writes a packed record, and gives it as a later run will see it."""
        path = self._path(key)
        if path.is_dir():  # a file cannot take a folder's place, and we delete nobody's folder
            with suppress(OSError):
                path.rename(path.with_suffix(".not-a-record"))
        write_whole(path, content)
        return unpacked(content)

    def finish(self, depends_on: Any, files: Mapping[str, bytes]) -> None:
        """Keeps what these files of the folder were made from, and which bytes were written to them."""
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        self.write_json(_FINISHED, {"key": hashed(depends_on), "files": digests})

    def finished(self, depends_on: Any, name: str) -> bytes | None:
        """The file's content, if it is what was made from the same."""
        try:
            finished = read_json(self.folder / _FINISHED)
            content = (self.folder / name).read_bytes()
        except (InputError, OSError):
            return None
        digests = finished.get("files")
        whole = isinstance(digests, dict) and digests.get(name) == hashlib.sha256(content).hexdigest()
        return content if whole and finished.get("key") == hashed(depends_on) else None

    def write(self, name: str, content: bytes) -> None:
        """Writes the whole file or nothing."""
        write_whole(self.folder / name, content)

    def write_json(self, name: str, data: Any) -> None:
        self.write(name, json_bytes(data))

    @property
    def _locks(self) -> Path:
        return self.folder / "locks"

    def _path(self, key: str) -> Path:
        return self.folder / _RECORDS / f"{key}.safetensors"

    def log(self, title: str, seconds: float) -> None:
        """How long a record took, for people."""
        line = json.dumps({"unit": title, "seconds": round(seconds, 3)}) + "\n"
        with suppress(OSError), (self.folder / "timings.jsonl").open("a") as file:  # nothing depends on it
            file.write(line)


def json_bytes(data: Any) -> bytes:
    """JSON as we write it to files: indented, nan as null."""
    return (to_json(data, indent=1) + "\n").encode()
