"""Reading a decoder and its tokenizer from wherever they are: hub, folder, GGUF file or family name.

Whatever transformers would only log (weights that are missing, left over or of another shape) is refused here: such a
model runs, and its numbers mean nothing.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from huggingface_hub.errors import GatedRepoError, StrictDataclassError
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
from transformers.utils import logging

from circuitdiff.engine import Model
from circuitdiff.errors import InputError, first_line
from circuitdiff.models.adapters import adapter_folder, merge_adapter
from circuitdiff.models.checks import Check, difference, tolerance_of
from circuitdiff.models.family_registry import MEMBERS, PackagedFile, embedded_adapter, sha256_of
from circuitdiff.models.in_memory import origin_in, sharing_weights, with_first_adapters
from circuitdiff.models.placement import dtype_named, placed_on
from circuitdiff.models.structure import probe_tokens

_UNREADABLE = (
    *(OSError, ValueError, RuntimeError, KeyError, IndexError, EOFError),
    *(SafetensorError, StrictDataclassError, struct.error),
)


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
    source: str | Path,
    adapters: Sequence[str | Path] = (),
    dtype: str = "float32",
    device: str = "cpu",
    like: Sequence[Model] = (),
) -> Source:
    """The decoder at `source` with `adapters` (PEFT folders or embedded adapters' names) merged in, in order.

    `source` is a family name, a folder, a `.gguf` file or a hub id, looked for in this order. `device` is one of
    torch's, or "auto" for the first of CUDA if there is one. If the wanted model is one of `like`, which are in
    memory, with further adapters, only these are read, and whatever they leave alone is shared with that one.

    Raises: InputError if there is no such source, it is not a causal decoder, is damaged, incomplete, or lacks its
    tokenizer, or an adapter does not fit; CheckError if an adapter changes nothing or does not merge exactly.
    """
    torch_dtype, placed = dtype_named(dtype), placed_on(device)
    member = MEMBERS.get(str(source))
    own = [] if member is None else [_embedded(name) for name in member.adapters]
    folders, merged = [*own, *map(adapter_folder, adapters)], list[dict[str, Any]]()
    with _quiet():
        known = _known(like, str(source), folders, (dtype, device))
        if known is not None:
            model, tokenizer, origin = sharing_weights(known.module), known.tokenizer, origin_in(known)
            merged = list(known.provenance["adapters"])
        elif member is None:
            model, tokenizer, origin = _read(_place(str(source)), torch_dtype, placed)
        elif isinstance(member.origin, PackagedFile):
            model, tokenizer, origin = _read_packaged(member.origin, torch_dtype, placed)
        else:
            model, tokenizer = member.origin.build(torch_dtype)
            model.to(placed[""] if placed else "cpu")  # pyright: ignore[reportArgumentType, reportCallIssue]
            origin = {"kind": "built"}
        model, checks, more = _with_adapters(model, folders[len(merged) :])
    model.eval().requires_grad_(False)
    name = "+".join([str(source) if member else Path(source).name, *(Path(adapter).name for adapter in adapters)])
    provenance = {"source": str(source), "dtype": dtype, "device": device, "adapters": [*merged, *more], **origin}
    return Source(model, tokenizer, name, provenance, checks)


def _known(like: Sequence[Model], source: str, folders: Sequence[Path], placed: tuple[str, str]) -> Model | None:
    member = MEMBERS.get(source)
    if member is None:
        return with_first_adapters(like, str(_place(source)), folders, placed)
    if isinstance(member.origin, PackagedFile):
        return with_first_adapters(like, str(member.origin.path()), folders, placed)
    return None


def read_outline(source: str | Path) -> Outline:
    """What `read_source` would read, but for the weights.

    Raises: InputError if there is no such source, it is not a causal decoder, or it lacks its tokenizer.
    """
    member = MEMBERS.get(str(source))
    with _quiet():
        if member is None:
            place = _place(str(source))
        elif isinstance(member.origin, PackagedFile):
            place = _converted(member.origin)[0]
        else:
            model, tokenizer = member.origin.build(torch.float32)
            return Outline(model.config, tokenizer)
        config = _read_config(place)
        _check_decoder(place, config)
        return Outline(config, _read_tokenizer(place))


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


def _read_packaged(
    packaged: PackagedFile, dtype: torch.dtype, device_map: dict[str, str] | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """The model in a packaged GGUF file."""
    place, path = _converted(packaged)
    model, tokenizer, origin = _read(place, dtype, device_map)
    return model, tokenizer, origin | {"kind": "gguf", "path": str(path)}


def _converted(packaged: PackagedFile) -> tuple[_Place, Path]:
    """A copy of a packaged GGUF file in the user's cache; and the file.

    A GGUF file takes transformers some twenty seconds, which a converted copy saves every later load.
    """
    path = packaged.path()
    copy = cache_folder() / f"{packaged.package}-{packaged.sha256[:16]}-transformers-{transformers.__version__}"
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
    model, tokenizer, _ = _read(_gguf(gguf), torch.float32, None)
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
    place: _Place, dtype: torch.dtype, device_map: dict[str, str] | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    config = _read_config(place)
    _check_decoder(place, config)
    tokenizer = _read_tokenizer(place)
    model = _read_weights(place, config, dtype, device_map)
    if place.kind == "gguf":
        delattr(model.config, "quantization_config")  # the weights are plain numbers by now, and can be saved as such
        delattr(model, "hf_quantizer")
    _check_vocabulary(place, model, tokenizer)
    _check_causal(place, model)
    return model, tokenizer, {"kind": place.kind, "path": str(place), "commit": getattr(config, "_commit_hash", None)}


def _read_config(place: _Place) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(place.path, **place.options)
    except _UNREADABLE as error:
        raise _hub_error(place, error) if place.kind == "hub" else _damaged(place, error) from error


def _hub_error(place: _Place, error: BaseException) -> InputError:
    if isinstance(error.__cause__, GatedRepoError) or "gated repo" in str(error):
        return InputError(
            f"the hub keeps {place} behind a licence (401 or 403): accept it on the model's page, then log in with "
            f"`hf auth login`"
        )
    return InputError(
        f"no model {place.path!r}: it is not a folder, not a .gguf file, not a family member "
        f"({', '.join(MEMBERS)}), and neither the hub's cache nor the hub gave it ({first_line(error)})"
    )


def _damaged(place: _Place, error: BaseException) -> InputError:
    return InputError(f"cannot read {place}: damaged, incomplete or unknown to transformers ({first_line(error)})")


def _check_decoder(place: _Place, config: PreTrainedConfig) -> None:
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    built = config.architectures or []
    decoders = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if not known or getattr(config, "is_encoder_decoder", False) or (built and not decoders & set(built)):
        kind = ", ".join(built) or config.model_type
        raise InputError(f"{place} is not a causal decoder but {kind}; circuitdiff needs one (a ...ForCausalLM)")


def _read_tokenizer(place: _Place) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.path, **place.options)
    except (*_UNREADABLE, ImportError, TypeError, AttributeError) as error:
        raise InputError(
            f"cannot read a tokenizer from {place} ({first_line(error)}): put its tokenizer.json beside config.json"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(f"the tokenizer at {place} knows no words: put its tokenizer.json beside config.json")
    return tokenizer


def _read_weights(
    place: _Place, config: PreTrainedConfig, dtype: torch.dtype, device_map: dict[str, str] | None
) -> PreTrainedModel:
    try:
        model, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            place.path,
            config=config,  # read once: a GGUF file's header takes seconds
            **place.options,
            dtype=dtype,
            device_map=device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except torch.OutOfMemoryError as error:
        raise InputError(f"{place} does not fit into memory: use a 16-bit dtype or a larger device") from error
    except (*_UNREADABLE, ImportError) as error:
        raise _damaged(place, error) from error
    mismatched = [f"{key} ({list(file)}, not {list(own)})" for key, file, own in info["mismatched_keys"]]
    _refuse_keys(place, "lacks weights that the model needs", info["missing_keys"])
    _refuse_keys(place, "has weights of another shape than config.json says", mismatched)
    _refuse_keys(place, "has weights that the model would ignore", info["unexpected_keys"])
    return model


def _refuse_keys(place: _Place, what: str, keys: Sequence[str] | set[str]) -> None:
    if found := sorted(keys):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise InputError(f"{place} {what}: {', '.join(found[:3])}{more}; copy or convert the checkpoint again")


def _check_vocabulary(place: _Place, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    n_rows = len(model.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]
    largest = max(tokenizer.get_vocab().values())
    if largest >= n_rows:
        raise InputError(
            f"the tokenizer of {place} is not this model's: it has token {largest}, the model embeds {n_rows}"
        )


@torch.no_grad()
def _check_causal(place: _Place, model: PreTrainedModel) -> None:
    """The logits at a position must not depend on later tokens."""
    tokens = probe_tokens(model.eval(), n_prompts=1)
    other = tokens.clone()
    other[:, -1] = (tokens[:, -1] == 0).long()
    logits, changed = (model(input_ids=t, use_cache=False).logits[:, :-1].float() for t in (tokens, other))
    if not logits.isfinite().all():
        raise InputError(
            f"{place} gives logits that are not finite: the weights are damaged, or {model.dtype} too small"
        )
    if difference(changed, logits) > tolerance_of(model.dtype):
        raise InputError(f"{place} is not a causal decoder: a later token changes the logits before it")


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines, bars or warnings of the libraries: what matters in them is an error here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():  # the GGUF reader's bar cannot be switched off
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
