"""A pair of prompts as text with the roles marked, for a reader."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from circuitdiff.prompts import Pairs, PromptSet


@dataclass(frozen=True)
class DescribedPrompt:
    """A prompt's tokens as text, and for each the slot that it fills and the roles that sit there."""

    tokens: tuple[str, ...]
    slots: tuple[str, ...]
    roles: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class DescribedPair:
    """A clean prompt and its counterfactual with their answers; None where there is no answer."""

    clean: DescribedPrompt
    counterfactual: DescribedPrompt
    answer: str
    counterfactual_answer: str | None


def describe_pair(pairs: Pairs, prompt: int, tokenizer: PreTrainedTokenizerBase) -> DescribedPair:
    """Pair number `prompt`, from zero, as text."""
    own = pairs.counterfactual_answers
    return DescribedPair(
        clean=describe_prompt(pairs.clean_prompts, prompt, tokenizer),
        counterfactual=describe_prompt(pairs.counterfactual_prompts, prompt, tokenizer),
        answer=_text(tokenizer, int(pairs.answers[prompt])),
        counterfactual_answer=None if own is None else _text(tokenizer, int(own[prompt])),
    )


def describe_prompt(prompts: PromptSet, prompt: int, tokenizer: PreTrainedTokenizerBase) -> DescribedPrompt:
    """Prompt number `prompt`, from zero, as text, without padding."""
    length = int(prompts.lengths[prompt])
    ids: list[int] = prompts.tokens[prompt, :length].tolist()
    slots: list[int] = prompts.slots[prompt, :length].tolist()
    sits_at = {role: int(positions[prompt]) for role, positions in prompts.positions.items()}
    return DescribedPrompt(
        tokens=tuple(_text(tokenizer, token) for token in ids),
        slots=tuple(prompts.slot_names[slot] for slot in slots),
        roles=tuple(tuple(role for role, at in sits_at.items() if at == place) for place in range(length)),
    )


def _text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.decode([token]))
