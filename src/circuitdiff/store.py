"""The run folder: what each stage made, kept under the hash of everything it depends on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from circuitdiff.claims import claimed
from circuitdiff.errors import InputError

RESULTS = "results.json"
REPORT = "report.html"
_PATIENCE = 0.2  # seconds between two looks for what another process computes


@dataclass(frozen=True)
class Record:
    """What a stage keeps: tensors, and JSON beside them."""

    tensors: Mapping[str, Tensor]
    data: Any


@dataclass(frozen=True)
class Store:
    """A run folder. A stage whose record is there under the same key is not computed again."""

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Raises: InputError if the folder cannot be made or written to."""
        path = Path(folder)
        try:
            (path / "stages").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror}; choose another run folder") from error
        return cls(path)

    def stage(self, name: str, depends_on: Any, compute: Callable[[], Record]) -> Record:
        """The stage's record: from the folder if it is there, else computed and kept."""
        return self.stages(name, [depends_on], lambda _: [compute()])[0]

    def stages(
        self, name: str, depends_on: Sequence[Any], compute: Callable[[list[int]], Sequence[Record]]
    ) -> list[Record]:
        """Records of the same name; those that are not there, by number, are computed together.

        What another process on this machine computes for the same folder is waited for.
        """
        paths = [self.folder / "stages" / f"{_safe(name)}-{hashed(key)[:16]}.safetensors" for key in depends_on]
        numbers = {path: i for i, path in reversed(list(enumerate(paths)))}
        kept: dict[Path, Record] = {}
        while True:
            kept |= {path: record for path in numbers.keys() - kept if (record := _read(path)) is not None}
            missing = sorted(numbers.keys() - kept, key=numbers.__getitem__)
            if not missing:
                return [kept[path] for path in paths]
            with claimed(missing) as mine:
                wanted = [path for path in mine if _read(path) is None]  # nobody was faster
                if wanted:
                    begin = time.perf_counter()
                    found = compute([numbers[path] for path in wanted])
                    kept |= {path: self._keep(path, record) for path, record in zip(wanted, found, strict=True)}
                    self._log(name, time.perf_counter() - begin)
            if not mine:
                time.sleep(_PATIENCE)

    def _keep(self, path: Path, record: Record) -> Record:
        """The record as a later run will see it."""
        own = {name: tensor.contiguous().clone() for name, tensor in record.tensors.items()}  # no views can be saved
        self._write(path, save(own, metadata={"data": to_json(record.data)}))
        return _read(path) or record

    def finish(self, depends_on: Any, *names: str) -> None:
        """Keeps what these files of the folder were made from, and which bytes they are."""
        files = {name: _sha256(self.folder / name) for name in names}
        self.write_json("finished.json", {"key": hashed(depends_on), "files": files})

    def is_finished(self, depends_on: Any, name: str) -> bool:
        """Whether the file is the one that was made from the same."""
        try:
            known = json.loads((self.folder / "finished.json").read_text())
            return known["key"] == hashed(depends_on) and known["files"][name] == _sha256(self.folder / name)
        except (OSError, json.JSONDecodeError, KeyError):
            return False

    def write_json(self, name: str, data: Any) -> Path:
        """Writes the whole file or nothing."""
        return self._write(self.folder / name, (to_json(data, indent=1) + "\n").encode())

    def _write(self, path: Path, content: bytes) -> Path:
        """Writes beside the file and renames, so that a killed run leaves the old file or the new one."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise InputError(
                f"cannot write {path}: {error.strerror}; make room and run again, finished stages are kept"
            ) from error
        return path

    def _log(self, name: str, seconds: float) -> None:
        with (self.folder / "timings.jsonl").open("a") as file:
            file.write(json.dumps({"stage": name, "seconds": round(seconds, 3)}) + "\n")


def read_results(folder: str | Path) -> dict[str, Any]:
    """`results.json` of a run folder.

    Raises: InputError if there is none or it is damaged.
    """
    path = Path(folder) / RESULTS
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{folder} is not a finished run: cannot read {path.name} ({error.strerror})") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged ({error}); run the study again, finished stages are kept") from error


def to_json(data: Any, indent: int | None = None) -> str:
    """JSON in the order of `data`; nan becomes null."""
    return json.dumps(_without_nan(data), indent=indent, allow_nan=False)


def hashed(data: Any) -> str:
    """The same for equal data in any order of its keys, in every process."""
    return hashlib.sha256(json.dumps(_without_nan(data), sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_nan(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): _without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_without_nan(value) for value in data]
    return data


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _read(path: Path) -> Record | None:
    """A record that is there and whole."""
    if not path.exists():
        return None
    content = path.read_bytes()
    try:
        tensors = load(content)
    except SafetensorError:
        return None  # damaged: compute it again
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return Record(tensors, json.loads(header["__metadata__"]["data"]))
