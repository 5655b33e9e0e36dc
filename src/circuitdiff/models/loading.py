"""From a source to a model that the engine can edit, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from circuitdiff.engine import Model
from circuitdiff.models.checks import Check, checks_at_load, refuse_failures
from circuitdiff.models.fingerprint import fingerprint, refuse_changed, weight_digests
from circuitdiff.models.sources import read_source
from circuitdiff.models.structure import find_structure


def load_model(
    source: str | Path | PreTrainedModel,
    adapters: Sequence[str | Path] = (),
    dtype: str | None = None,
    device: str | None = None,
    *,
    name: str | None = None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    like: Sequence[Model] = (),
    idle_adapters: bool = False,
) -> Model:
    """A causal decoder with its adapters merged in, in order, proven to be edited exactly.

    `source` is a hub id, a folder, a `.gguf` file, a family name such as "smollm2" or "tracker-base", or a model of
    transformers that is in memory. That one is left as it is, but its weights are shared: do not train it on.

    `dtype` and `device` are float32 and cpu unless given; a model in memory keeps its own. `tokenizer` names another
    source whose tokenizer is taken, or is one in memory: for a checkpoint without its own.

    If the model is one of `like`, which are in memory, with further adapters, only these are read, and whatever they
    leave alone is shared with that one. All of `like` are held against the weights that they were loaded with.
    An adapter that changes nothing is refused, unless `idle_adapters` are asked for.

    Raises: InputError if the source cannot be read or its architecture cannot be edited; CheckError if a self-check
    fails, or if a model of `like` is no longer what was loaded.
    """
    read = read_source(source, adapters, dtype, device, like, tokenizer, idle_adapters=idle_adapters)
    digests: dict[object, str] = {}  # of memory: what the new model shares with others is read once
    model = as_model(read.model, read.tokenizer, name or read.name, read.provenance, read.checks, digests)
    refuse_changed(like, digests, model.name)
    return model


def as_model(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    provenance: Mapping[str, Any],
    checks: Sequence[Check] = (),
    digests: dict[object, str] | None = None,
) -> Model:
    """A decoder that is in memory already, proven to be edited exactly; `checks` are those that it has passed so far.

    `digests`: see `weight_digests`.

    Raises: InputError if its architecture cannot be edited; CheckError if a self-check fails.
    """
    parts = find_structure(module, name)
    weights = weight_digests(module, digests)
    known = {**provenance, "fingerprint": fingerprint(weights, module.config, tokenizer)}
    model = Model(name=name, module=module, tokenizer=tokenizer, provenance=known, weights=weights, **vars(parts))
    measured = [*checks, *_checks_once(model)]
    refuse_failures(measured)
    known["checks"] = [asdict(check) | {"model": name} for check in measured]
    return model


# What weights passed that were loaded before in this process: a study loads its models again and again.
_passed: dict[tuple[str, str, str], list[Check]] = {}


def _checks_once(model: Model) -> list[Check]:
    key = (model.provenance["fingerprint"], str(model.dtype), str(model.device))
    if key not in _passed:
        measured = checks_at_load(model)
        refuse_failures(measured)
        _passed[key] = measured
    return _passed[key]
