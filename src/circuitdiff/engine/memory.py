"""How much an executor may compute at once."""

from __future__ import annotations

from circuitdiff.engine.model import Model

DEFAULT_MEMORY_GB = 1.0
_ENOUGH_ROWS = 2048  # beyond this a matrix product gains nothing, and its activations leave the cache
_CLEAN_SHARE = 0.25  # of the memory, for the clean run that variants build on


def rows_at_once(model: Model, memory_gb: float = DEFAULT_MEMORY_GB) -> int:
    """How many rows (variants x prompts x positions) one layer call may have.

    A layer holds about six residual streams and three MLP activations per row.
    """
    config = model.module.config.get_text_config()
    d_model = config.hidden_size
    d_mlp = getattr(config, "intermediate_size", None) or 4 * d_model
    bytes_per_row = model.dtype.itemsize * (6 * d_model + 3 * d_mlp)
    return max(1, min(_ENOUGH_ROWS, int(memory_gb * 2**30 / bytes_per_row)))


def clean_prompts_at_once(model: Model, length: int, memory_gb: float = DEFAULT_MEMORY_GB) -> int:
    """How many prompts of this length one clean run may have.

    It holds, per token and layer, two residual streams and every head's q, k, v and z (see `CleanRun`).
    """
    d_model = model.module.config.get_text_config().hidden_size
    per_token = model.n_layers * (2 * d_model + 2 * (model.n_heads + model.n_kv_heads) * model.d_head)
    return max(1, int(_CLEAN_SHARE * memory_gb * 2**30 / (model.dtype.itemsize * per_token * length)))
