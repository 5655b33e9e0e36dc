"""The run folder: what each stage made, cached under the hash of everything it depends on."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitdiff.cache.files import write_whole
from circuitdiff.cache.locks import lock_file, locked, used_for
from circuitdiff.cache.records import Record, hashed, packed, to_json, unpacked
from circuitdiff.config.reading import read_json
from circuitdiff.errors import InputError

RESULTS = "results.json"
REPORT = "report.html"
_FINISHED = "finished.json"
_RECORDS, _EARLIER = "records", "stages"  # folders; the earlier one had other keys
_FIRST_NOTICE, _NOTICE = 30.0, 300.0  # seconds of waiting for another process after which the user is told

Notify = Callable[[str], None]  # is told, in a line, what the user should know


@dataclass(frozen=True)
class Store:
    """A run folder. A stage whose record is there under the same key is not computed again."""

    folder: Path
    notify: Notify = warnings.warn

    @classmethod
    def open(cls, folder: str | Path, notify: Notify = warnings.warn) -> Store:
        """Raises: InputError if the folder cannot be made or written to, or an earlier version filled it."""
        path = Path(folder)
        if (path / _EARLIER).is_dir():
            raise InputError(
                f"{path} holds records of an earlier version of circuitdiff ({_EARLIER}/), which cannot be used: "
                f"choose another run folder, or delete this one"
            )
        try:
            (path / _RECORDS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror}; choose another run folder") from error
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

    def stage(self, name: str, depends_on: Any, compute: Callable[[], Record]) -> Record:
        """The stage's record: from the folder if it is there, else computed and cached."""
        return self.stages(name, [depends_on], lambda _: [compute()])[0]

    def stages(
        self, name: str, depends_on: Sequence[Any], compute: Callable[[list[int]], Sequence[Record]]
    ) -> list[Record]:
        """Records by what they depend on, under one title; `compute` makes those that are not there, by their numbers.

        A record's file is called by the hash of what it depends on. The title is inside, for people.

        What another process on this machine computes for the same folder is waited for. A record is made under its
        lock, so never twice at once; if its maker dies the lock is free, and another process makes it.
        """
        keys = [hashed(each) for each in depends_on]
        numbers = {key: number for number, key in reversed(list(enumerate(keys)))}
        records: dict[str, Record] = {}
        while True:
            records |= self._read(numbers.keys() - records)
            missing = sorted(numbers.keys() - records, key=numbers.__getitem__)
            if not missing:
                return [records[key] for key in keys]
            with locked(self._locks, missing) as ours:
                records |= self._read(ours, self.notify)  # somebody was faster
                absent = [key for key in ours if key not in records]
                if absent:
                    begin = time.perf_counter()
                    made = compute([numbers[key] for key in absent])
                    for key, each in zip(absent, made, strict=True):
                        records[key] = self._write_record(key, name, each)
                    self._log(name, time.perf_counter() - begin)
            if not ours:
                self._wait(name, missing[0])

    def _read(self, keys: Iterable[str], notify: Notify | None = None) -> dict[str, Record]:
        """Those records that are there and whole; `notify` is told of damaged ones, which are as good as none."""
        records: dict[str, Record] = {}
        for key in keys:
            try:
                records[key] = unpacked(self._path(key).read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                if notify:
                    reason = error.strerror if isinstance(error, OSError) else error
                    notify(f"{self._path(key)} is damaged ({reason}), so it is computed again")
        return records

    def _write_record(self, key: str, title: str, record: Record) -> Record:
        """The record as a later run will see it."""
        path, content = self._path(key), packed(record, title)
        if path.is_dir():  # a file cannot take a folder's place, and we delete nobody's folder
            with suppress(OSError):
                path.rename(path.with_suffix(".not-a-record"))
        write_whole(path, content)
        return unpacked(content)

    def _wait(self, name: str, key: str) -> None:
        """Until no other process has the record's lock."""
        patience, begin = _FIRST_NOTICE, time.monotonic()
        while True:
            with locked(self._locks, [key], patience) as free:
                if free:
                    return
            waited, patience = time.monotonic() - begin, _NOTICE
            self.notify(
                f"waiting for {name!r}, which another process computes (for {waited:.0f} s so far; "
                f"it holds {lock_file(self._locks, key)})"
            )

    def finish(self, depends_on: Any, files: Mapping[str, bytes]) -> None:
        """Keeps what these files of the folder were made from, and which bytes were written to them."""
        digests = {name: _sha256(content) for name, content in files.items()}
        self.write_json(_FINISHED, {"key": hashed(depends_on), "files": digests})

    def finished(self, depends_on: Any, name: str) -> bytes | None:
        """The file's content, if it is what was made from the same."""
        try:
            finished = read_json(self.folder / _FINISHED)
            content = (self.folder / name).read_bytes()
        except (InputError, OSError):
            return None
        digests = finished.get("files")
        whole = isinstance(digests, dict) and digests.get(name) == _sha256(content)
        return content if whole and finished.get("key") == hashed(depends_on) else None

    def write(self, name: str, content: bytes) -> Path:
        """Writes the whole file or nothing."""
        write_whole(self.folder / name, content)
        return self.folder / name

    def write_json(self, name: str, data: Any) -> Path:
        """The same of JSON."""
        return self.write(name, json_bytes(data))

    @property
    def _locks(self) -> Path:
        return self.folder / "locks"

    def _path(self, key: str) -> Path:
        return self.folder / _RECORDS / f"{key}.safetensors"

    def _log(self, name: str, seconds: float) -> None:
        line = json.dumps({"stage": name, "seconds": round(seconds, 3)}) + "\n"
        with suppress(OSError), (self.folder / "timings.jsonl").open("a") as file:  # nothing depends on it
            file.write(line)


def read_results(folder: str | Path) -> dict[str, Any]:
    """`results.json` of a run folder.

    Raises: InputError if there is none or it is damaged.
    """
    path = Path(folder) / RESULTS
    if not path.exists():
        raise InputError(f"{folder} is not a finished run: it has no {RESULTS}; run the study, or name its run folder")
    try:
        results = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; it is damaged: run the study again, finished stages are kept") from error
    if lacking := [part for part in ("study", "models", "circuits") if part not in results]:
        raise InputError(
            f"{path} is not a run's: it has no {lacking[0]!r}; run the study again, finished stages are kept"
        )
    return results


def json_bytes(data: Any) -> bytes:
    """JSON as we write it to files: indented, nan as null."""
    return (to_json(data, indent=1) + "\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
