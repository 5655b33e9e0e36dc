"""Masks are learned through the executors: the gradient with respect to `keep` is the right one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from circuitdiff.engine import Edit, FullExecutor, WindowExecutor
from helpers.tiny_models import D_VOCAB, N_PROMPTS, Draw, batch_of, everything, random_tokens, subject


def masked(draw: Draw) -> list[Edit]:
    return [
        draw.edit(0, "z", 9, [0, 1, 5], [0, 1], kept=True),
        draw.edit(1, "z", 12, [4, 2], [1], kept=True, shared=True),
        draw.edit(1, "q", 11, [4], [1, 0], kept=True),
        draw.edit(2, "v", 8, [3, 1], [0], kept=True, read_at=11),
        draw.edit(2, "k", 10, [3, 0], [0, 1], kept=True, shared=True),
    ]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_neox"])
def test_the_gradient_of_keep_is_that_of_the_looped_definition(architecture):
    chosen, tokens, draw = subject(architecture), random_tokens(), Draw()
    edits = masked(draw)
    weights = draw.normal(2, N_PROMPTS, D_VOCAB)

    def gradients(run) -> list[torch.Tensor]:
        keeps = [edit.keep.clone().requires_grad_() for edit in edits]
        with_keeps = [replace(edit, keep=keep) for edit, keep in zip(edits, keeps, strict=True)]
        return list(torch.autograd.grad((run(with_keeps) * weights).sum(), keeps))

    expected = gradients(lambda e: chosen.reference.run(tokens, e, 2))
    assert min(float(g.abs().min()) for g in expected) > 1e-6
    for executor in (FullExecutor(), WindowExecutor()):
        actual = gradients(lambda e, executor=executor: executor.run(batch_of(chosen, tokens), e, 2, everything))
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
