"""PEFT adapters, merged into a model and proved to be there.

An adapter that is silently not applied, or half applied, gives a base model's numbers under a variant's name. So every
tensor of the file must have a place in the model, merging must not change the logits, and the adapter must. PEFT drops
settings that it does not know and goes on, so that an adapter of a newer kind would be merged as another one: they are
read whole, or refused by the name of what cannot be merged.

The model may share memory with others (see `sources`). So the adapter is first laid out on a copy without memory,
which shows the weights that PEFT will write to, whatever the kind of adapter; these get memory of their own.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jaxtyping import Float, Int
from peft import PeftConfig, PeftModel, PeftType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.save_and_load import load_peft_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from circuitdiff.config.reading import looks_like_path, no_such_path, read_json
from circuitdiff.errors import InputError, first_line, nearest
from circuitdiff.models.checks import Check, difference, refuse_failures, tolerance_for
from circuitdiff.models.family_registry import embedded_adapter
from circuitdiff.models.libraries import library_errors, listed, quiet
from circuitdiff.models.probe import probe_tokens

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
SETTINGS = "adapter_config.json"
CHANGES = "the adapter changes the logits"  # the name of a check
_ONLY_AT_RUNTIME = "runtime_config"  # some versions write it; it says where an adapter is kept while it is used
_PATTERNS = ("rank_pattern", "alpha_pattern")  # by names of modules, or expressions for them
_SAYS_NOTHING = (None, False, "", [], {})  # of a key that is not known: what is not asked for cannot be left out
_SECONDS = 5.0  # in which an expression must have been held against all names of modules

# Settings that no merged model can have: what they do.
_CANNOT_BE_MERGED = {
    "layer_replication": "repeats layers, so that its model has other layers than its base",
    "alora_invocation_tokens": "acts only after certain tokens of a prompt",
    "arrow_config": "chooses between several adapters for every token",
}


class Merged(NamedTuple):
    """A model with an adapter merged in, and what was measured on the way."""

    model: PreTrainedModel
    checks: tuple[Check, ...]


class _Adapter(NamedTuple):
    """What an adapter's folder holds."""

    folder: Path
    settings: PeftConfig
    weights: Mapping[str, Tensor]


class _Layout(NamedTuple):
    """An adapter on a copy of the model that has no memory."""

    adapted: PeftModel
    parts: Mapping[int, nn.Module | nn.Parameter]  # by the copy's id: each module and parameter of the model itself


def adapter_folder(source: str | Path) -> Path:
    """The folder of an adapter given as a folder, an embedded adapter's name or a hub id.

    Raises: InputError if there is none, or the folder lacks the adapter's settings or weights.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = embedded_adapter(str(source)) or _downloaded(str(source))
    missing = [] if (folder / SETTINGS).is_file() else [SETTINGS]
    if not any((folder / weights).is_file() for weights in _WEIGHTS):
        missing.append(_WEIGHTS[0])
    if missing:
        raise InputError(f"{folder} is not a PEFT adapter: it has no {' and no '.join(missing)}")
    return folder


def _downloaded(hub_id: str) -> Path:
    if looks_like_path(hub_id):
        raise InputError(f"no adapter {hub_id!r}: {no_such_path(hub_id)}")
    try:
        return Path(snapshot_download(hub_id, allow_patterns=["adapter_*"]))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError) as error:
        raise InputError(
            f"no adapter {hub_id!r}: it is not a folder, not an embedded adapter, and the hub has none or could not "
            f"be reached ({first_line(error)})"
        ) from error


def check_adapter(config: PreTrainedConfig, source: str | Path) -> None:
    """Holds an adapter against a model that is given by its settings alone: no weights but the adapter's are read.

    An adapter that cannot be laid out without the model's weights is left to `merge_adapter`.

    Raises: InputError as `merge_adapter` does, and if there is no such adapter.
    """
    with quiet():
        adapter = _read(adapter_folder(source))
        with _fitting(adapter), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        if (layout := _laid_out_without_memory(model, adapter)) is not None:
            _check_keys(model, adapter, layout)


def merge_adapter(model: PreTrainedModel, source: str | Path, *, idle: bool = False) -> Merged:
    """`model` with the adapter added to its weights. The model given is changed, but no memory that it shares.

    A head or embedding that the model ties to the other is no longer tied once an adapter changes only one of them.
    `idle`: an adapter that changes nothing is merged, too.

    Raises: InputError if a tensor of the adapter finds no place in the model or lacks a counterpart, or a shape
    differs; CheckError if the adapter changes nothing or merging changes the logits.
    """
    adapter = _read(adapter_folder(source))
    layout = _laid_out_without_memory(model, adapter)
    if layout is None:
        _own_memory(list(model.modules()))
    else:
        _check_keys(model, adapter, layout)
        _unshare(adapter, layout)
    tokens = _probe_tokens(model, adapter.settings)
    before = _logits(model, tokens)
    adapted = _with_weights(_laid_out(model, adapter), adapter)
    unmerged = _logits(adapted, tokens)
    with library_errors(lambda said: f"adapter {adapter.folder} cannot be merged into this model: {said}"):
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=False)  # pyright: ignore[reportCallIssue, reportAssignmentType]
    error, change = difference(_logits(merged, tokens), unmerged), difference(unmerged, before)
    name, tolerance = adapter.folder.name, tolerance_for(model)
    checks = [
        Check("adapter tensors without a place", name, 0.0, 0.0, True, f"of {len(adapter.weights)} in the file"),
        Check("merged equals unmerged", name, error, tolerance, error <= tolerance, "relative, random tokens"),
        Check(CHANGES, name, change, 0.0, change > 0 or idle, "must be above 0", above=True),
    ]
    refuse_failures(checks)
    return Merged(merged, tuple(checks))


def _probe_tokens(model: PreTrainedModel, settings: PeftConfig) -> Int[Tensor, "prompt pos"]:
    """Random tokens, among them those that the adapter trained one by one."""
    tokens = probe_tokens(model, n_prompts=3, longest=11)
    trained = getattr(settings, "trainable_token_indices", None) or []
    few = list(chain(*trained.values()) if isinstance(trained, dict) else trained)[: tokens.shape[1] - 1]
    tokens[:, : len(few)] = torch.tensor(few, dtype=tokens.dtype, device=tokens.device)
    return tokens


@torch.no_grad()
def _logits(model: nn.Module, tokens: Int[Tensor, "prompt pos"]) -> Float[Tensor, "prompt pos d_vocab"]:
    return model(input_ids=tokens, use_cache=False, return_dict=True).logits


def _read(folder: Path) -> _Adapter:
    settings = read_settings(folder)
    with library_errors(lambda said: f"cannot read the adapter {folder}: {said}; copy it again"):
        return _Adapter(folder, settings, load_peft_weights(str(folder), device="cpu"))


def _fitting(adapter: _Adapter):
    return library_errors(lambda said: f"adapter {adapter.folder} does not fit this model: {said}")


def _laid_out(model: PreTrainedModel, adapter: _Adapter) -> PeftModel:
    """`model` with the adapter's layers, which hold nothing of the file yet."""
    settings = copy.copy(adapter.settings)
    settings.inference_mode = True
    with _fitting(adapter), torch.random.fork_rng(devices=[]):  # peft fills the deltas from the global generator first
        return get_peft_model(model, settings)  # pyright: ignore[reportReturnType]


def _laid_out_without_memory(model: PreTrainedModel, adapter: _Adapter) -> _Layout | None:
    """The adapter on a copy whose parameters are placeholders; None if it cannot be laid out without numbers."""
    check_expressions(adapter.folder, adapter.settings, [name for name, _ in model.named_modules()])
    copies: dict[int, object] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()
    }
    outline = copy.deepcopy(model, copies)  # which notes the copy of every module, too
    parts = {id(copies[id(part)]): part for part in (*model.modules(), *model.parameters())}
    settings = copy.copy(adapter.settings)
    if isinstance(getattr(settings, "init_lora_weights", None), str):
        settings.init_lora_weights = True  # pyright: ignore[reportAttributeAccessIssue]  others need the model's numbers
    try:
        with torch.device("meta"):
            return _Layout(_laid_out(outline, adapter._replace(settings=settings)), parts)
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, NotImplementedError) or (isinstance(cause, RuntimeError) and "meta" in str(cause)):
            return None  # torch's, of what it cannot compute without numbers
        raise


def _unshare(adapter: _Adapter, layout: _Layout) -> None:
    """Own memory for all weights that PEFT will write to: other models may hold the same."""
    tuned = [part.get_base_layer() for part in layout.adapted.modules() if isinstance(part, BaseTunerLayer)]
    _own_memory([part for each in tuned if isinstance(part := layout.parts.get(id(each)), nn.Module)])
    for parameter in _stored(adapter, layout).values():
        parameter.data = parameter.data.clone()


def _own_memory(modules: list[nn.Module]) -> None:
    """New parameters with the same numbers; another module that was tied to one of these keeps the old one."""
    for part in dict.fromkeys(part for module in modules for part in module.modules()):
        for name, parameter in list(part.named_parameters(recurse=False)):
            part.register_parameter(name, nn.Parameter(parameter.data.clone(), requires_grad=False))


def _stored(adapter: _Adapter, layout: _Layout) -> dict[str, nn.Parameter]:
    """The model's own weights that the file has, too, by the file's name: trained biases, kept embeddings."""
    placed = dict(layout.adapted.named_parameters(remove_duplicate=False))
    own = {key: layout.parts.get(id(placed[key])) for key in adapter.weights if key in placed}
    return {key: parameter for key, parameter in own.items() if isinstance(parameter, nn.Parameter)}


def _with_weights(adapted: PeftModel, adapter: _Adapter) -> PeftModel:
    """The adapter's layers holding exactly the tensors of the file.

    PEFT keeps frozen embeddings beside the deltas, rounded to the file's type: where that is all that differs, the
    model's own numbers stay.
    """
    state = adapted.state_dict()
    places = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    new = {
        key: value
        for key, value in adapter.weights.items()
        if key in places or not torch.equal(state[key].to("cpu", value.dtype), value)
    }
    with _fitting(adapter):
        rest = set_peft_model_state_dict(adapted, dict(new))
    landed = {**adapted.state_dict(), **get_peft_model_state_dict(adapted, save_embedding_layers=False)}
    lost = [key for key, value in new.items() if not torch.equal(landed[key].cpu(), value.to(landed[key].dtype))]
    _refuse(adapter, "did not take the values of", [*rest.unexpected_keys, *lost])
    return adapted.eval()  # pyright: ignore[reportReturnType]


def _check_keys(model: PreTrainedModel, adapter: _Adapter, layout: _Layout) -> None:
    """Each tensor of the file has a place of its shape, and each place has a tensor."""
    places = dict(get_peft_model_state_dict(layout.adapted, save_embedding_layers=False))
    both_ends = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
    embeddings = {id(parameter) for part in both_ends for parameter in part.parameters()}
    kept = {key: p for key, p in _stored(adapter, layout).items() if key not in places and id(p) in embeddings}
    _refuse(adapter, "has no place for", [key for key in adapter.weights if key not in places and key not in kept])
    _refuse(adapter, "finds in the file no", [key for key in places if key not in adapter.weights])
    shapes = {key: list(place.shape) for key, place in (places | kept).items()}
    others = {key: list(value.shape) for key, value in adapter.weights.items() if list(value.shape) != shapes[key]}
    hint = "; was the base's vocabulary extended before training? Then give the extended base" if kept else ""
    _refuse(adapter, "has another shape at", [f"{key} ({shapes[key]}, not {others[key]})" for key in others], hint)


def _refuse(adapter: _Adapter, what: str, keys: list[str], hint: str = "") -> None:
    if keys:
        raise InputError(
            f"adapter {adapter.folder} was not made for this model: the model {what} {listed(keys)}; "
            f"give the base model that it was trained on{hint}"
        )


def read_settings(folder: Path) -> PeftConfig:
    """Raises: InputError naming the key that PEFT does not know, or what cannot be merged into a model's weights."""
    path = folder / SETTINGS
    data = read_json(path)
    kind = data.get("peft_type")
    kinds = {each.value: PEFT_TYPE_TO_CONFIG_MAPPING[each] for each in PeftType if each in PEFT_TYPE_TO_CONFIG_MAPPING}
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(f"{path}: peft_type is {kind!r}; this version of PEFT knows {', '.join(kinds)}")
    known = [field.name for field in fields(kinds[kind])]
    for key, value in data.items():
        if key not in known and key != _ONLY_AT_RUNTIME and value not in _SAYS_NOTHING:
            raise InputError(
                f"{path}: this version of PEFT knows no {key!r} of {kind} and would leave it out{nearest(key, known)}; "
                f"if the adapter was made by a newer PEFT, upgrade, else mend the file"
            )
    with library_errors(lambda said: f"cannot read {path}: {said}"):
        settings = PeftConfig.from_pretrained(str(folder))
    _refuse_unmergeable(path, kind, settings)
    return settings


def _refuse_unmergeable(path: Path, kind: str, settings: PeftConfig) -> None:
    if settings.is_prompt_learning or settings.is_adaption_prompt:
        raise InputError(
            f"{path}: {kind} adds tokens or activations of its own and changes no weights, so it cannot be merged "
            f"into a model; circuitdiff takes adapters of weights, such as LoRA"
        )
    for key in _PATTERNS:
        if not isinstance(getattr(settings, key, None) or {}, dict):
            raise InputError(f"{path}: {key} is {getattr(settings, key)!r}; expected a mapping of names of modules")
    for key, does in _CANNOT_BE_MERGED.items():
        if getattr(settings, key, None):
            raise InputError(f"{path}: {key} {does}; it cannot be merged into a model's weights")


def check_expressions(folder: Path, settings: PeftConfig, modules: Iterable[str]) -> None:
    """Holds the regular expressions in an adapter's settings against the names of all modules, which must end.

    An expression can take for ever on a short name, and Python cannot stop it: so another process tries it first.

    Raises: InputError naming the expression that does not end, or is none.
    """
    given: list[Any] = [getattr(settings, key, None) for key in ("target_modules", "exclude_modules", "layers_pattern")]
    patterns = [each for each in given if isinstance(each, str)]
    keys = chain(*(getattr(settings, name, None) or {} for name in _PATTERNS))  # of ranks and scales
    # plain names need no trial
    patterns += [f"(.*\\.)?({key})$" for key in keys if not key.replace(".", "").replace("_", "").isalnum()]
    for pattern in patterns:
        _try_out(f"{folder / SETTINGS}: {pattern!r}", pattern, list(modules))


def _try_out(where: str, pattern: str, names: list[str]) -> None:
    program = "import re, sys\ntry:\n e = re.compile(sys.argv[1])\nexcept re.error as x:\n sys.exit(str(x))\n"
    command = [sys.executable, "-S", "-E", "-c", program + "for n in sys.stdin.read().split(): e.fullmatch(n)", pattern]
    try:
        tried = subprocess.run(command, input="\n".join(names), capture_output=True, text=True, timeout=_SECONDS)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise InputError(f"{where} takes too long on this model's modules; write it without nested repeats") from error
    if tried.returncode:
        raise InputError(f"{where} is no regular expression: {listed(tried.stderr.splitlines()[-1:])}")
