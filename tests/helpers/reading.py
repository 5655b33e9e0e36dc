"""Prompts as a reader sees them: text and words, by decoding."""

import torch


def texts(tokenizer, prompts):
    """The prompts as text, whichever tokenizer wrote them."""
    kept = [row[:n] for row, n in zip(prompts.tokens.tolist(), prompts.lengths.tolist(), strict=True)]
    decoded = [tokenizer.decode(row, skip_special_tokens=True) for row in kept]
    return [text.replace(" ,", ",").replace(" .", ".") for text in decoded]


def word(tokenizer, token):
    return tokenizer.decode([int(token)]).strip()


def words_at(tokenizer, prompts, role):
    """The token at a role in every prompt, as a word."""
    rows = torch.arange(len(prompts))
    return [word(tokenizer, token) for token in prompts.tokens[rows, prompts.positions[role]]]
