"""Prompts of unequal length: what a bucket says of a prompt is what the model says of it alone."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.engine import Edit, FullExecutor, WindowExecutor
from circuitdiff.prompts import PromptSet, buckets
from helpers.tiny_models import D_HEAD, Draw, assert_same, batch_of, everything, random_tokens, subject

LENGTHS = torch.tensor([13, 9, 13, 9, 11, 13, 9])
LABEL = torch.tensor([7, 5, 8, 5, 7, 7, 6])


def padded() -> PromptSet:
    tokens = random_tokens(n_prompts=7)
    slots = (torch.arange(13) < LENGTHS[:, None]).long() - 1
    tokens[slots == -1] = 0
    return PromptSet(tokens, LENGTHS, {"last": LENGTHS - 1, "label": LABEL}, slots, ["slot"], ["slot"])


@pytest.mark.parametrize("largest", [None, 1])
@torch.no_grad()
def test_each_prompt_gets_what_it_gets_alone(largest):
    chosen, prompts = subject("gemma2"), padded()
    replacement = Draw().normal(2, 7, 2, D_HEAD)
    heads, variants = torch.tensor([4, 1]), torch.tensor([0, 1])
    seen = []
    for bucket in buckets(prompts, ["label", "last"], largest):
        tokens = prompts.tokens[bucket.prompts, : bucket.length]
        label, last = bucket.positions["label"], bucket.positions["last"]
        edits = [Edit(1, "v", label, heads, variants, replacement[:, bucket.prompts], read_at=last)]
        actual = {
            executor: executor.run(batch_of(chosen, tokens), edits, 2, everything)
            for executor in (FullExecutor(), WindowExecutor())
        }
        for row, prompt in enumerate(bucket.prompts.tolist()):
            seen.append(prompt)
            alone = prompts.tokens[prompt : prompt + 1, : LENGTHS[prompt]]
            edit = Edit(
                1, "v", int(LABEL[prompt]), heads, variants, replacement[:, [prompt]], read_at=int(LENGTHS[prompt]) - 1
            )
            expected = chosen.reference.run(alone, [edit], 2)[:, 0]
            for values in actual.values():
                assert_same(values[:, row], expected)
    assert sorted(seen) == list(range(7))
