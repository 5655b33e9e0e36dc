"""Reading a decoder and its tokenizer from wherever they are: hub, folder, GGUF file, family name or memory.

Whatever transformers would only log (weights that are missing, left over or of another shape) is refused here: such a
model runs, and its numbers mean nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from circuitdiff.config.reading import looks_like_path, no_such_path
from circuitdiff.engine import Model
from circuitdiff.errors import InputError, first_line, nearest
from circuitdiff.models.adapters import adapter_folder, merge_adapter
from circuitdiff.models.checks import Check
from circuitdiff.models.config_file import check_size, left_to_defaults, refuse_quantised, written_config
from circuitdiff.models.family_registry import MEMBERS, PackagedFile, embedded_adapter, sha256_of
from circuitdiff.models.gguf_config import complete_config
from circuitdiff.models.gguf_tokenizer import complete_tokenizer
from circuitdiff.models.in_memory import check_plain, origin_in, sharing_weights, with_first_adapters
from circuitdiff.models.is_decoder import check_causal, check_vocabulary
from circuitdiff.models.libraries import library_errors, listed, quiet
from circuitdiff.models.placement import dtype_named, placed_on

_GGUF_READING = 2  # raised whenever we read GGUF files otherwise; 1 did not split digits as the file says


@dataclass(frozen=True)
class Source:
    """A decoder in eval mode whose parameters take no gradients, its tokenizer, and where both came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    provenance: dict[str, Any]
    checks: tuple[Check, ...]  # what was measured while adapters were merged


@dataclass(frozen=True)
class Outline:
    """A decoder without its weights; adapters change nothing of it."""

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Place:
    """What transformers is given to read from."""

    kind: str  # "hub", "folder" or "gguf"
    path: str
    gguf_file: str | None = None

    @property
    def options(self) -> dict[str, str]:
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}

    def __str__(self) -> str:
        return str(Path(self.path) / self.gguf_file) if self.gguf_file else self.path


def read_source(
    source: str | Path | PreTrainedModel,
    adapters: Sequence[str | Path] = (),
    dtype: str | None = None,
    device: str | None = None,
    like: Sequence[Model] = (),
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
) -> Source:
    """The decoder at `source` with `adapters` (PEFT folders or embedded adapters' names) merged in, in order.

    `source` is a family name, a folder, a `.gguf` file or a hub id, looked for in this order; or a model of
    transformers that is in memory, whose weights are shared, not copied, and which keeps its dtype and device. `device`
    is one of torch's, or "auto" for the first of CUDA if there is one. `tokenizer`: another source whose tokenizer is
    taken, or one in memory; a model in memory needs one. If the wanted model is one of `like`, which are in memory,
    with further adapters, only these are read, and whatever they leave alone is shared with that one.

    Raises: InputError if there is no such source, it is not a causal decoder, is damaged, incomplete, or lacks its
    tokenizer, or an adapter does not fit; CheckError if an adapter changes nothing or does not merge exactly.
    """
    if not isinstance(source, str | Path | PreTrainedModel):
        raise InputError(
            f"expected a source by name or path, or a transformers model; got a {type(source).__name__}: of a model "
            f"with adapters give what `merge_and_unload()` returns"
        )
    dtype, device = _dtype_and_device(source, dtype, device)
    member = None if isinstance(source, PreTrainedModel) else MEMBERS.get(str(source))
    own = [] if member is None else [_embedded(name) for name in member.adapters]
    folders = [*own, *map(adapter_folder, adapters)]
    with quiet():
        start = _start(source, folders, (dtype, device), like, _given_tokenizer(tokenizer))
        model, checks, merged = _with_adapters(start.model, folders[len(start.merged) :])
    check_vocabulary(str(start), model, start.tokenizer)
    model.eval().requires_grad_(False)
    name = "+".join([str(source) if member else start.name, *(Path(adapter).name for adapter in adapters)])
    placed = {"dtype": dtype, "device": device, "adapters": [*start.merged, *merged]}
    return Source(model, start.tokenizer, name, {"source": str(start)} | placed | start.origin, checks)


@dataclass(frozen=True)
class _Start:
    """A decoder before the adapters that are yet to be merged."""

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    origin: dict[str, Any]
    merged: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return Path(self.source).name

    def __str__(self) -> str:
        return self.source


def _start(
    source: str | Path | PreTrainedModel,
    folders: Sequence[Path],
    placed: tuple[str, str],
    like: Sequence[Model],
    tokenizer: PreTrainedTokenizerBase | None,
) -> _Start:
    if isinstance(source, PreTrainedModel):
        return _in_memory(source, tokenizer)
    name, dtype, device_map = str(source), dtype_named(placed[0]), placed_on(placed[1])
    member, known = MEMBERS.get(name), _known(like, name, folders, placed)
    if known is not None:
        taken = sharing_weights(known.module), tokenizer or known.tokenizer, origin_in(known)
        return _Start(name, *taken, list(known.provenance["adapters"]))
    if member is None:
        return _Start(name, *_read(_place(name), dtype, device_map, tokenizer))
    if isinstance(member.origin, PackagedFile):
        place, path = _converted(member.origin)
        model, own, origin = _read(place, dtype, device_map, tokenizer)
        return _Start(name, model, own, origin | {"kind": "gguf", "path": str(path)})
    model, own = member.origin.build(dtype)
    model.to(device_map[""] if device_map else "cpu")  # pyright: ignore[reportArgumentType, reportCallIssue]
    return _Start(name, model, tokenizer or own, {"kind": "built"})


def _dtype_and_device(source: object, dtype: str | None, device: str | None) -> tuple[str, str]:
    """As asked for, or as a model in memory is. Raises: InputError if it should be another."""
    if not isinstance(source, PreTrainedModel):
        return dtype or "float32", device or "cpu"
    own = str(source.dtype).removeprefix("torch."), str(source.device)
    for asked, has, what in zip((dtype, device), own, ("dtype", "device"), strict=True):
        if asked not in (None, has):
            raise InputError(
                f"a model in memory keeps its {what}, {has}; got {what} {asked!r}: convert it before, or leave it out"
            )
    return own


def _in_memory(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> _Start:
    name = module.config._name_or_path or type(module).__name__
    if tokenizer is None:
        raise InputError(f"{name} is in memory and comes without its tokenizer: give it as `tokenizer`")
    check_plain(module, name)
    model = sharing_weights(module)
    _check_decoder(name, model.config)
    check_causal(name, model)
    return _Start(name, model, tokenizer, {"kind": "memory", "path": None, "commit": None})


def _given_tokenizer(tokenizer: str | Path | PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase | None:
    if tokenizer is None or isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    member = MEMBERS.get(str(tokenizer))
    if member is None:
        return _read_tokenizer(_place(str(tokenizer)))
    if isinstance(member.origin, PackagedFile):
        return _read_tokenizer(_converted(member.origin)[0])
    return member.origin.build(torch.float32)[1]


def _known(like: Sequence[Model], source: str, folders: Sequence[Path], placed: tuple[str, str]) -> Model | None:
    member = MEMBERS.get(source)
    if member is None:
        return with_first_adapters(like, str(_place(source)), folders, placed)
    if isinstance(member.origin, PackagedFile):
        return with_first_adapters(like, str(member.origin.path()), folders, placed)
    return None


def read_outline(source: str | Path, tokenizer: str | Path | None = None) -> Outline:
    """What `read_source` would read, but for the weights.

    Raises: InputError if there is no such source, it is not a causal decoder, or it lacks its tokenizer.
    """
    member = MEMBERS.get(str(source))
    with quiet():
        given = _given_tokenizer(tokenizer)
        if member is None:
            place = _place(str(source))
        elif isinstance(member.origin, PackagedFile):
            place = _converted(member.origin)[0]
        else:
            model, own = member.origin.build(torch.float32)
            return Outline(model.config, given or own)
        config, _ = _read_config(place)
        return Outline(config, given or _read_tokenizer(place))


def _with_adapters(
    model: PreTrainedModel, folders: Sequence[Path]
) -> tuple[PreTrainedModel, tuple[Check, ...], list[dict[str, Any]]]:
    """The model with the adapters merged in, in order; what was measured; and which files they were."""
    checks, merged = [], []
    for folder in folders:
        model, measured = merge_adapter(model, folder)
        checks += measured
        files = {file.name: sha256_of(file) for file in sorted(folder.glob("adapter_model.*"))}
        merged.append({"name": folder.name, "path": str(folder), "sha256": files})
    return model, tuple(checks), merged


def _embedded(name: str) -> Path:
    folder = embedded_adapter(name)
    if folder is None:
        raise InputError(f"the embedded adapter {name!r} is not in this installation; install circuitdiff again")
    return folder


def _place(source: str) -> _Place:
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            hint = "; it is an adapter: give it in `adapters`" if (path / "adapter_config.json").is_file() else ""
            raise InputError(f"the folder {path} holds no model: it has no config.json{hint}")
        return _Place("folder", str(path))
    if path.suffix == ".gguf" or path.is_file():
        return _gguf(path)
    if looks_like_path(source):
        raise InputError(no_such_path(source))
    return _Place("hub", source)


def _gguf(path: Path) -> _Place:
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    if path.suffix != ".gguf":
        raise InputError(f"a file must be a .gguf file; got {path}: give the folder that holds config.json instead")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path} is not a GGUF file (it is empty or begins otherwise); copy it again")
    return _Place("gguf", str(path.parent), path.name)


def _converted(packaged: PackagedFile) -> tuple[_Place, Path]:
    """A copy of a packaged GGUF file in the user's cache; and the file.

    A GGUF file takes transformers some twenty seconds, which a converted copy saves every later load.
    """
    path = packaged.path()
    read_by = f"transformers-{transformers.__version__}-{_GGUF_READING}"
    copy = cache_folder() / f"{packaged.package}-{packaged.sha256[:16]}-{read_by}"
    if not copy.is_dir():
        _convert(path, copy)
    return _Place("folder", str(copy)), path


def cache_folder() -> Path:
    """Where converted models are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "circuitdiff"


def _convert(gguf: Path, folder: Path) -> None:
    """Writes the model of a GGUF file to `folder`, whole or not at all; another process may be doing the same.

    Raises: InputError if there is no room.
    """
    model, tokenizer, _ = _read(_gguf(gguf), torch.float32, None, None)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            try:
                Path(partial).rename(folder)
            except OSError:
                if not folder.is_dir():  # or another process was faster
                    raise
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot write {folder} ({error}): free 600 MB there, or set XDG_CACHE_HOME to another folder"
        ) from error


def _read(
    place: _Place,
    dtype: torch.dtype,
    device_map: dict[str, str] | None,
    given: PreTrainedTokenizerBase | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    config, defaults = _read_config(place)
    tokenizer = given or _read_tokenizer(place)
    model = _read_weights(place, config, dtype, device_map)
    if place.kind == "gguf":
        delattr(model.config, "quantization_config")  # the weights are plain numbers by now, and can be saved as such
        delattr(model, "hf_quantizer")
    check_causal(str(place), model)
    commit = getattr(config, "_commit_hash", None)
    return model, tokenizer, {"kind": place.kind, "path": str(place), "commit": commit, "left_to_defaults": defaults}


def _read_config(place: _Place) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The config, and what config.json leaves to defaults."""
    written = None if place.kind == "gguf" else written_config(place.path)
    try:
        with library_errors(lambda said: _damaged(place, said)):
            config = AutoConfig.from_pretrained(place.path, trust_remote_code=False, **place.options)
    except InputError as error:
        raise (_hub_error(place, error.__cause__ or error) if place.kind == "hub" else error) from error.__cause__
    with library_errors(lambda said: _damaged(place, said)):
        _check_decoder(str(place), config)
        if place.kind == "gguf":
            complete_config(config, Path(str(place)))
        if place.kind != "gguf":
            refuse_quantised(place, config)
        if place.kind == "folder":
            check_size(Path(place.path), config)
        return config, left_to_defaults(
            config, written or written_config(place.path) or {}
        ) if place.kind != "gguf" else {}


def _hub_error(place: _Place, error: BaseException) -> InputError:
    if isinstance(error.__cause__, GatedRepoError) or "gated repo" in str(error):
        return InputError(
            f"the hub keeps {place} behind a licence (401 or 403): accept it on the model's page, then log in with "
            f"`hf auth login`"
        )
    return InputError(
        f"no model {place.path!r}: it is not a folder, not a .gguf file, not a name of an embedded model"
        f"{nearest(place.path, MEMBERS)}, and neither the hub's cache nor the hub gave it ({first_line(error)[:200]})"
    )


def _damaged(place: _Place, said: str) -> str:
    return f"cannot read {place}: damaged, incomplete or unknown to transformers ({said})"


def _check_decoder(place: str, config: PreTrainedConfig) -> None:
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    built = config.architectures or []
    decoders = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if not known or getattr(config, "is_encoder_decoder", False) or (built and not decoders & set(built)):
        kind = ", ".join(built) or config.model_type
        raise InputError(f"{place} is not a causal decoder but {kind}; circuitdiff needs one (a ...ForCausalLM)")


def _read_tokenizer(place: _Place) -> PreTrainedTokenizerBase:
    remedy = "put its tokenizer.json beside config.json, or name another model's as `tokenizer`"
    with library_errors(lambda said: f"cannot read a tokenizer from {place} ({said}): {remedy}"):
        tokenizer = AutoTokenizer.from_pretrained(place.path, trust_remote_code=False, **place.options)
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise InputError(f"the tokenizer at {place} knows no words: {remedy}")
        tokenizer("a b")  # a damaged one may fail only now
        if place.kind == "gguf":
            complete_tokenizer(tokenizer, Path(str(place)))
    return tokenizer


def _read_weights(
    place: _Place, config: PreTrainedConfig, dtype: torch.dtype, device_map: dict[str, str] | None
) -> PreTrainedModel:
    with library_errors(lambda said: _damaged(place, said)):
        model, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            place.path,
            config=config,  # read once: a GGUF file's header takes seconds
            **place.options,
            dtype=dtype,
            device_map=device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    mismatched = [f"{key} ({list(file)}, not {list(own)})" for key, file, own in info["mismatched_keys"]]
    _refuse_keys(place, "lacks weights that the model needs", info["missing_keys"])
    _refuse_keys(place, "has weights of another shape than config.json says", mismatched)
    _refuse_keys(place, "has weights that the model would ignore", info["unexpected_keys"])
    return model


def _refuse_keys(place: _Place, what: str, keys: Sequence[str] | set[str]) -> None:
    if keys:
        raise InputError(f"{place} {what}: {listed(keys)}; copy or convert the checkpoint again")
