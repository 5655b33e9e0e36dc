"""Which files a model comes from, without reading them: the same answer as long as nobody touched one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circuitdiff.models.adapters import adapter_folder
from circuitdiff.models.config_file import cached_config
from circuitdiff.models.family_registry import MEMBERS, PackagedFile, embedded_adapter


def origin_of(source: str | Path, adapters: Sequence[str | Path] = ()) -> list[Any] | None:
    """Every file's path, size and time of change; None if the source is not on this machine yet.

    Raises: InputError if a family's package or an adapter is not there.
    """
    member = MEMBERS.get(str(source))
    folders = [adapter_folder(adapter) for adapter in adapters]
    if member is None:
        place = _place(source)
        return None if place is None else [*_files(place), *(file for each in folders for file in _files(each))]
    packaged = _files(member.origin.path()) if isinstance(member.origin, PackagedFile) else [str(source)]
    own = [folder for name in member.adapters if (folder := embedded_adapter(name)) is not None]
    return [*packaged, *(file for each in (*own, *folders) for file in _files(each))]


def _place(source: str | Path) -> Path | None:
    """The file or folder; of a hub id the snapshot in the cache."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    config = cached_config(str(source))
    return None if config is None else config.parent


def _files(place: Path) -> list[tuple[str, int, int]]:
    paths = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    return [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
