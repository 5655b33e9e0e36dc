"""How much an executor may compute at once, and whether the model can take it."""

from __future__ import annotations

from collections.abc import Sequence

from circuitdiff.engine.fits import check_prompts
from circuitdiff.engine.model import Model
from circuitdiff.prompts import Bucket, PromptSet, buckets

DEFAULT_MEMORY_GB = 1.0
# What of the memory each may take where all three are there at once: clean runs that are kept from sweep to sweep, the
# plain or clean run of a batch, and the rows of variants that build on it.
KEPT_SHARE, RUN_SHARE, ROWS_SHARE = 0.4, 0.25, 0.35
_ENOUGH_ROWS = 2048  # beyond this a matrix product gains nothing, and its activations leave the cache
_ENOUGH_PROMPTS = 32


def rows_at_once(model: Model, memory_gb: float = DEFAULT_MEMORY_GB, length: int = 0) -> int:
    """How many rows (variants x prompts x positions) one layer call may have, each attending to `length` keys."""
    n_bytes = model.dtype.itemsize * numbers_per_row(model, length)
    return max(1, min(_ENOUGH_ROWS, int(memory_gb * 2**30 / n_bytes)))


def prompts_at_once(model: Model, length: int, memory_gb: float = DEFAULT_MEMORY_GB, *, held: int = 0) -> int:
    """How many prompts of this length one run may have that holds so many numbers per token and layer to its end.

    At work are one layer and, at the end, logits of the whole vocabulary with what a readout makes of them.
    """
    per_token = numbers_per_row(model, length) + model.n_layers * held
    d_vocab = model.module.config.get_text_config().vocab_size
    return max(1, int(memory_gb * 2**30 / (model.dtype.itemsize * (length * per_token + 4 * d_vocab))))


def held_by_clean_run(model: Model) -> int:
    """Two residual streams while one is copied, what the attention writes, every head's q, k, v and z (`CleanRun`)."""
    return 3 * model.module.config.get_text_config().hidden_size + 2 * (model.n_heads + model.n_kv_heads) * model.d_head


def batches(
    model: Model,
    prompts: PromptSet,
    roles: Sequence[str] = (),
    memory_gb: float = RUN_SHARE * DEFAULT_MEMORY_GB,
    *,
    largest: int = _ENOUGH_PROMPTS,
    held: int = 0,
) -> list[Bucket]:
    """Buckets (see there) of prompts that the model can take, as many together as `prompts_at_once`, at most `largest`.

    Raises: InputError as `check_prompts` does.
    """
    check_prompts(model, prompts)
    at_once = prompts_at_once(model, int(prompts.lengths.max()), memory_gb, held=held)
    return buckets(prompts, roles, min(largest, at_once))


def numbers_per_row(model: Model, length: int) -> int:
    """A layer holds about six residual streams and three MLP activations per row, and its scores four times."""
    config = model.module.config.get_text_config()
    d_mlp = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return 6 * config.hidden_size + 3 * d_mlp + 4 * model.n_heads * length
