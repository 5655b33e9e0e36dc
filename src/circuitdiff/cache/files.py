"""Writing a file: whole, or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from circuitdiff.errors import InputError


def write_whole(path: Path, content: bytes) -> None:
    """Writes beside the file and renames, so that a killed process leaves the old file or the new one.

    Raises: InputError if the file cannot be written; the old one is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; make room or name another place, then run again: "
            f"what is finished is kept"
        ) from error
    finally:
        with suppress(OSError):  # gone if all went well; where nothing can be written, nothing can be removed
            temporary.unlink()
