"""Whether what was read is a causal decoder that goes with its tokenizer: asked before anything is done with it."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from circuitdiff.errors import InputError
from circuitdiff.models.checks import difference, tolerance_for
from circuitdiff.models.probe import prepare, probe_tokens, probing


def check_vocabulary(place: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises: InputError if the tokenizer has a token that the model does not embed."""
    n_rows = len(model.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]
    largest = max(tokenizer.get_vocab().values())
    if largest >= n_rows:
        raise InputError(
            f"the tokenizer of {place} is not this model's: it has token {largest}, the model embeds {n_rows}"
        )


@torch.no_grad()
def check_causal(place: str, model: PreTrainedModel) -> None:
    """The logits at a position must not depend on later tokens: those from the middle on, or the last one.

    Raises: InputError if they do, or are not finite.
    """
    prepare(model)
    with probing(place, "running on random tokens"):
        tokens = probe_tokens(model, n_prompts=1).repeat(3, 1)
        starts = {1: tokens.shape[1] // 2, 2: tokens.shape[1] - 1}
        for row, start in starts.items():
            tokens[row, start:] = (tokens[0, start:] == 0).long()
        logits = model(input_ids=tokens, use_cache=False).logits
    if not logits.isfinite().all():
        raise InputError(
            f"{place} gives logits that are not finite: the weights are damaged, or {model.dtype} too small"
        )
    worst = max(difference(logits[row, :start], logits[0, :start]) for row, start in starts.items())
    if worst > tolerance_for(model):
        raise InputError(f"{place} is not a causal decoder: a later token changes the logits before it")
