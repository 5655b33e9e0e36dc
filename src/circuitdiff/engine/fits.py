"""What fits a model: whether it can take prompts and answers, and how many of them at once in a given memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from circuitdiff.engine.model import Model
from circuitdiff.errors import InputError
from circuitdiff.prompts import Bucket, Pairs, PromptSet, buckets
from circuitdiff.triples import Triples

DEFAULT_MEMORY_GB = 1.0
# What of the memory each may take where all three are there at once: clean runs that are kept from sweep to sweep, the
# plain or clean run of a batch, and the rows of variants that build on it.
KEPT_SHARE, RUN_SHARE, ROWS_SHARE = 0.4, 0.25, 0.35
_ENOUGH_ROWS = 2048  # beyond this a matrix product gains nothing, and its activations leave the cache
_ENOUGH_PROMPTS = 32


def check_pairs(model: Model, pairs: Pairs, method: str | None) -> None:
    """`method`: what compares the next token only; None: what reads all tokens of an answer, or no answers.

    Raises: InputError if the model cannot take a prompt or has no logit for an answer, or the method cannot take one.
    """
    if method is not None:
        pairs.check_one_token(method)
    more = 0 if pairs.continuations is None else (pairs.continuations >= 0).sum(1)
    check_prompts(model, pairs.clean_prompts, "clean prompts", more)
    check_prompts(model, pairs.counterfactual_prompts, "counterfactual prompts")
    check_answers(model, pairs.answers, "answers")
    check_answers(model, pairs.right, "right answers")
    check_answers(model, pairs.foils, "foils")
    check_answers(model, pairs.continuations, "continuations")
    check_answers(model, pairs.counterfactual_answers, "counterfactual answers")


def check_triples(model: Model, triples: Triples) -> None:
    """Raises: InputError as `check_pairs` does."""
    check_prompts(model, triples.base, "base prompts")
    check_prompts(model, triples.source, "source prompts")
    check_answers(model, triples.answers, "answers")
    check_answers(model, triples.targets, "targets")


def check_prompts(
    model: Model, prompts: PromptSet, which: str = "prompts", more: Int[Tensor, " prompt"] | int = 0
) -> None:
    """Raises: InputError if there is none, or one that is too long for the model or not of its vocabulary.

    `more`: how many tokens of its answer are run with each.
    """
    if len(prompts) == 0:
        raise InputError(f"{which}: expected at least one; got none, so there is nothing to run {model.name} on")
    lengths = prompts.lengths + more
    limit = getattr(model.module.config.get_text_config(), "max_position_embeddings", None)
    longest = int(lengths.argmax())
    if limit is not None and lengths[longest] > limit:
        raise InputError(
            f"{which}, row {longest} (from 0): expected at most {limit} tokens, the positions that {model.name} has; "
            f"got {int(lengths[longest])}: shorten the prompt"
        )
    _check_begin(model, prompts, which)
    inside = torch.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None]
    check_answers(model, torch.where(inside, prompts.tokens, 0), which)


def _check_begin(model: Model, prompts: PromptSet, which: str) -> None:
    """Some prompts that begin with padding, and others that do not: these were padded on the left."""
    pad = model.tokenizer.pad_token_id
    begin = torch.isin(prompts.tokens[:, 0], torch.tensor([pad] if isinstance(pad, int) else []))
    if begin.any() and not begin.all():
        raise InputError(
            f"{which}, row {int(begin.nonzero()[0, 0])} (from 0): begins with the padding token "
            f"{model.tokenizer.pad_token!r}, as others do not: pad on the right (tokenizer.padding_side = 'right')"
        )


def check_answers(model: Model, tokens: Int[Tensor, " prompt *any"] | None, which: str) -> None:
    """Raises: InputError if one is not of the model's vocabulary."""
    d_vocab = len(model.module.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]
    if tokens is None or tokens.max() < d_vocab:
        return
    place = (tokens >= d_vocab).nonzero()[0].tolist()
    raise InputError(
        f"{which}, row {place[0]} (from 0): expected tokens of {model.name}, from 0 to {d_vocab - 1}; got "
        f"{int(tokens[*place])}: use this model's tokenizer"
    )


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
    heads = (model.n_heads + model.n_kv_heads) * (model.d_query + model.d_head)
    return 3 * model.module.config.get_text_config().hidden_size + heads


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


def clean_batches(
    model: Model, prompts: PromptSet, roles: Sequence[str], memory_gb: float, largest: int
) -> list[Bucket]:
    """`batches` whose whole clean runs are held in their share of the memory."""
    held = held_by_clean_run(model)
    return batches(model, prompts, roles, RUN_SHARE * memory_gb, largest=largest, held=held)


def numbers_per_row(model: Model, length: int) -> int:
    """A layer holds about six residual streams and three MLP activations per row, and its scores four times."""
    config = model.module.config.get_text_config()
    d_mlp = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return 6 * config.hidden_size + 3 * d_mlp + 4 * model.n_heads * length
