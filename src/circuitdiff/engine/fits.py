"""Whether prompts and answers are a model's: of its vocabulary, and no longer than it has positions."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from circuitdiff.engine.model import Model
from circuitdiff.errors import InputError
from circuitdiff.prompts import Pairs, PromptSet, Triples


def check_pairs(model: Model, pairs: Pairs) -> None:
    """Raises: InputError if the model cannot take a prompt or has no logit for an answer."""
    check_prompts(model, pairs.clean_prompts, "clean prompts")
    check_prompts(model, pairs.counterfactual_prompts, "counterfactual prompts")
    check_answers(model, pairs.answers, "answers")
    check_answers(model, pairs.alternatives, "alternatives")
    if pairs.counterfactual_answers is not None:
        check_answers(model, pairs.counterfactual_answers, "counterfactual answers")


def check_triples(model: Model, triples: Triples) -> None:
    """Raises: InputError as `check_pairs` does."""
    check_prompts(model, triples.base, "base prompts")
    check_prompts(model, triples.source, "source prompts")
    check_answers(model, triples.answers, "answers")
    check_answers(model, triples.targets, "targets")


def check_prompts(model: Model, prompts: PromptSet, which: str = "prompts") -> None:
    """Raises: InputError if there is none, or one that is too long for the model or not of its vocabulary."""
    if len(prompts) == 0:
        raise InputError(f"{which}: expected at least one; got none, so there is nothing to run {model.name} on")
    longest, limit = int(prompts.lengths.argmax()), _n_positions(model)
    if limit is not None and prompts.lengths[longest] > limit:
        raise InputError(
            f"{which}, row {longest} (from 0): expected at most {limit} tokens, the positions that {model.name} has; "
            f"got {int(prompts.lengths[longest])}: shorten the prompt"
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


def check_answers(model: Model, tokens: Int[Tensor, " prompt *any"], which: str) -> None:
    """Raises: InputError if one is not of the model's vocabulary."""
    d_vocab = len(model.module.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]
    if tokens.max() < d_vocab:
        return
    place = (tokens >= d_vocab).nonzero()[0].tolist()
    raise InputError(
        f"{which}, row {place[0]} (from 0): expected tokens of {model.name}, from 0 to {d_vocab - 1}; got "
        f"{int(tokens[*place])}: use this model's tokenizer"
    )


def _n_positions(model: Model) -> int | None:
    return getattr(model.module.config.get_text_config(), "max_position_embeddings", None)
