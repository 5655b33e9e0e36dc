"""Edits that build on a run with earlier edits are the same as all of them at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from circuitdiff.engine import WindowExecutor
from circuitdiff.engine.window import branched
from helpers.tiny_models import ARCHITECTURES, Draw, assert_same, batch_of, everything, random_tokens, subject

START = 11  # of the later edits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_later_edits_on_a_branch_agree_with_the_looped_definition(architecture):
    chosen, tokens, draw = subject(architecture), random_tokens(), Draw()
    early = [draw.edit(0, "z", 7, [0, 4], [0]), draw.edit(1, "q", 9, [3], [0]), draw.edit(2, "z", 9, [1, 5], [0])]
    later = [
        draw.edit(1, "z", 11, [2, 5], [1, 3]),
        draw.edit(0, "v", 12, [1], [1]),
        draw.edit(3, "q", 12, [4], [0, 1], shared=True),
    ]
    everyone = torch.arange(4)
    shared = [replace(edit, variants=everyone, replacement=edit.replacement[:1]) for edit in early]
    expected = chosen.reference.run(tokens, [*shared, *later], 4)
    branch = branched(batch_of(chosen, tokens, 5), early, START)
    assert_same(WindowExecutor().run(branch, later, 4, everything), expected)
    clean = chosen.reference.run(tokens, [], 1)
    assert (expected[2] - clean[0]).abs().max() > 1e-4, "the branch itself must show"


@torch.no_grad()
def test_a_branch_can_branch():
    chosen, tokens, draw = subject("gemma2"), random_tokens(), Draw()
    first, second, third = (
        draw.edit(1, "z", 6, [0], [0]),
        draw.edit(0, "z", 8, [3], [0]),
        draw.edit(2, "q", 12, [1], [0]),
    )
    twice = branched(branched(batch_of(chosen, tokens, 2), [first], 8), [second], 12)
    expected = chosen.reference.run(tokens, [first, second, third], 1)
    assert_same(WindowExecutor().run(twice, [third], 1, everything), expected)
