"""A PEFT adapter's settings: read whole, or refused by the name of what cannot be merged.

PEFT drops keys that it does not know and goes on, so that an adapter of a newer kind would be merged as another one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from circuitdiff.config.reading import read_json
from circuitdiff.errors import InputError, nearest
from circuitdiff.models.libraries import library_errors, listed

SETTINGS = "adapter_config.json"
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


def read_settings(folder: Path) -> PeftConfig:
    """Raises: InputError naming the key that PEFT does not know, or what cannot be merged into a model's weights."""
    path = folder / SETTINGS
    data = read_json(path)
    kind = data.get("peft_type")
    kinds = {
        known.value: PEFT_TYPE_TO_CONFIG_MAPPING[known] for known in PeftType if known in PEFT_TYPE_TO_CONFIG_MAPPING
    }
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
    patterns += [f"(.*\\.)?({key})$" for key in _patterned(settings)]
    for pattern in patterns:
        _try_out(f"{folder / SETTINGS}: {pattern!r}", pattern, list(modules))


def _patterned(settings: PeftConfig) -> Sequence[str]:
    """The keys of ranks and scales that are expressions; plain names need no trial."""
    patterns = [getattr(settings, name, None) or {} for name in _PATTERNS]
    keys = [key for pattern in patterns for key in pattern]
    return [key for key in keys if not key.replace(".", "").replace("_", "").isalnum()]


def _try_out(where: str, pattern: str, names: list[str]) -> None:
    program = "import re, sys\ntry:\n e = re.compile(sys.argv[1])\nexcept re.error as x:\n sys.exit(str(x))\n" + (
        "for n in sys.stdin.read().split(): e.fullmatch(n)"
    )
    try:
        tried = subprocess.run(
            [sys.executable, "-S", "-E", "-c", program, pattern],
            input="\n".join(names),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise InputError(f"{where} takes too long on this model's modules; write it without nested repeats") from error
    if tried.returncode:
        raise InputError(f"{where} is no regular expression: {listed(tried.stderr.splitlines()[-1:])}")
