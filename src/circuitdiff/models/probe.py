"""Trying a model out on random tokens: as long as what its config names needs, and any failure in one line."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from circuitdiff.errors import InputError
from circuitdiff.models.libraries import library_errors

SHORT = 12  # the length of a probe where nothing is to be crossed
_BEYOND = 6  # positions after the longest window, so that the probe's second half has keys on both sides of its edge
_LONGEST_WINDOW = 256  # that is crossed: 20 forward passes of 2 x 262 tokens are 150 TFLOP of a 7B, seconds on a GPU
_SHORTEST = 4  # a prefix of two, and a window of two

# Settings after so many positions of which attention may change: sliding windows, chunks, steps of a temperature.
_WINDOWS = re.compile("window|chunk|block|floor|local|original_max_position")
_NO_WINDOWS = re.compile("layer|pattern|heads|num_|n_block|feed_forward")
_EXPERTS = re.compile("n(um)?_([a-z]+_)*experts$")


def probe_tokens(module: PreTrainedModel, n_prompts: int = 2, longest: int | None = None) -> Int[Tensor, "prompt pos"]:
    """Random tokens from the model's vocabulary, always the same: long enough to leave every window, or `longest`."""
    g = torch.Generator().manual_seed(0)
    embeddings: nn.Embedding = module.get_input_embeddings()  # pyright: ignore[reportAssignmentType]
    length = min(probe_length(module.config), longest or _LONGEST_WINDOW + _BEYOND)
    return torch.randint(0, embeddings.weight.shape[0], (n_prompts, length), generator=g).to(module.device)  # pyright: ignore


def probe_length(config: PreTrainedConfig) -> int:
    """How many positions a probe has: some beyond the longest window that is crossed, none beyond the config's last.

    Raises: InputError if the model has too few positions to check edits on.
    """
    crossed = [size for size in windows(config).values() if size <= _LONGEST_WINDOW]
    length, positions = max([SHORT, *(size + _BEYOND for size in crossed)]), _n_positions(config)
    if positions is not None and positions < _SHORTEST:
        raise InputError(f"the model has {positions} positions; circuitdiff needs {_SHORTEST} to check its edits on")
    return length if positions is None else min(length, positions)


def windows(config: PreTrainedConfig) -> dict[str, int]:
    """The settings that are named like a window, chunk, block or step of positions, but for those of single positions.

    Of lists, which have an entry per layer, the largest.
    """
    sizes = {name: max(values) for name, values in _whole_numbers(config).items()}
    return {
        name: size
        for name, size in sizes.items()
        if size > 1 and _WINDOWS.search(name) and not _NO_WINDOWS.search(name)
    }


def uncrossed(config: PreTrainedConfig) -> str:
    """What a probe does not show: the windows that it is too short to leave, in words."""
    left_out = [f"{name} of {size}" for name, size in windows(config).items() if size >= probe_length(config)]
    return f"; not crossed: {', '.join(left_out)}" if left_out else ""


def has_experts(config: PreTrainedConfig) -> bool:
    """Whether some layers are mixtures of experts."""
    return any(_EXPERTS.search(name) and max(values) > 1 for name, values in _whole_numbers(config).items())


def _n_positions(config: PreTrainedConfig) -> int | None:
    """Of a learnt table, the rows; of positions that are computed, how many the model is meant for."""
    text = config.get_text_config()
    name = text.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    largest = max(_whole_numbers(config).get(name, [0]))
    return largest if largest > 0 else None


def _whole_numbers(config: PreTrainedConfig) -> dict[str, list[int]]:
    """The text model's settings that are whole numbers, or hold some, by name."""
    numbers: dict[str, list[int]] = {}

    def collect(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                collect(str(key), part)
        elif isinstance(value, list | tuple):
            for part in value:
                collect(name, part)
        elif isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
            numbers.setdefault(name, []).append(int(value))

    collect("", config.get_text_config().to_dict())
    return numbers


def prepare(module: PreTrainedModel) -> None:
    """Sets a model to run as the engine runs it: without dropout, with named outputs, in its own precision.

    torch's grouped matrix products, by which transformers runs experts, know no float64.
    """
    module.eval()
    module.config.return_dict = True
    if module.dtype == torch.float64:
        module.set_experts_implementation("eager")


def probing(name: str, purpose: str) -> AbstractContextManager[None]:
    """While a model is tried out for the first time, whatever transformers or torch raises is an InputError.

    The model is a stranger's code here, which may raise anything. Once it has passed, an error is ours, and is shown.
    """
    return library_errors(lambda said: f"{name} cannot be used, it failed when {purpose}: {said}")
