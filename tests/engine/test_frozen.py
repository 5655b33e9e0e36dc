"""Path patching: the frozen run and what the receivers receive, against the looped definition."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.engine import Edit, Executor, FullExecutor, Site, WindowExecutor
from helpers.tiny_models import (
    ARCHITECTURES,
    LAST,
    N_VARIANTS,
    Draw,
    assert_same,
    batch_of,
    everything,
    random_tokens,
    subject,
)

EXECUTORS = [pytest.param(FullExecutor(), id="full"), pytest.param(WindowExecutor(), id="window")]


def senders(draw: Draw, at: int) -> list[Edit]:
    return [
        draw.edit(1, "z", at, [0, 3, 5], [0, 2]),
        draw.edit(1, "z", at, [1, 4], [2, 1], shared=True),  # variant 2 has two edits of one layer
        draw.edit(2, "z", at, [2], [1]),
        draw.edit(0, "z", at, [4, 1], [3, 2], kept=True),
        draw.edit(3, "z", at, [5], [4]),
    ]


def patched(
    executor: Executor,
    chosen,
    tokens,
    edits: list[Edit],
    at: int,
    sites: list[Site],
    read_at: int | None,
    start: int = 0,
) -> torch.Tensor:
    """Both runs of path patching."""
    batch = batch_of(chosen, tokens, start)
    received = executor.received(batch, edits, N_VARIANTS, at, sites)
    second = [
        Edit(e.layer, e.what, e.at, e.heads, e.variants, e.replacement, e.keep, read_at=read_at) for e in received
    ]
    return executor.run(batch, second, N_VARIANTS, everything)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_frozen_run_agrees_with_the_looped_definition(architecture):
    chosen, tokens = subject(architecture), random_tokens()
    edits = senders(Draw(), LAST)
    expected = chosen.reference.frozen(tokens, edits, N_VARIANTS, LAST)
    batch = batch_of(chosen, tokens, start=LAST)
    assert (expected - batch.clean.logits).abs().amax(dim=(1, 2)).min() > 1e-4, "the edits must show"
    for executor in (FullExecutor(), WindowExecutor()):
        assert_same(executor.frozen(batch, edits, N_VARIANTS, LAST, everything), expected)


@torch.no_grad()
def test_a_frozen_run_inside_the_prompt_reaches_no_logits():
    chosen, tokens = subject("llama"), random_tokens()
    batch, edits = batch_of(chosen, tokens), senders(Draw(), 8)
    assert_same(
        FullExecutor().frozen(batch, edits, N_VARIANTS, 8, everything), batch.clean.logits.expand(N_VARIANTS, -1, -1)
    )
    with pytest.raises(AssertionError, match="no other position reaches the logits"):
        WindowExecutor().frozen(batch, edits, N_VARIANTS, 8, everything)


VIA = {
    "q at the last position": ("q", LAST, None),
    "q inside the prompt": ("q", 9, None),
    "v read at one later position": ("v", 9, 11),
    "v read anywhere": ("v", 9, None),
    "k read at one later position": ("k", 10, 12),
    "k read anywhere": ("k", 10, None),
}


@pytest.mark.parametrize("via", VIA)
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt_neox", "olmo2"])
@torch.no_grad()
def test_both_runs_of_path_patching_agree_with_the_looped_definition(architecture, via):
    what, at, read_at = VIA[via]
    chosen, tokens = subject(architecture), random_tokens()
    edits = senders(Draw(), at)
    sites = [Site(2, what, at, torch.tensor([4, 1])), Site(1, what, at, torch.tensor([5, 0]))]
    expected = chosen.reference.path_patched(tokens, edits, N_VARIANTS, at, sites, read_at)
    clean = chosen.reference.logits(tokens)
    assert (expected - clean)[:4].abs().amax(dim=(1, 2)).tolist() > [1e-4, 0, 1e-4, 1e-4]
    for executor in (FullExecutor(), WindowExecutor()):
        assert_same(patched(executor, chosen, tokens, edits, at, sites, read_at, start=at), expected)


@torch.no_grad()
def test_senders_that_come_too_late_have_exactly_the_clean_logits():
    chosen, tokens = subject("llama"), random_tokens()
    edits = senders(Draw(), LAST)
    sites = [Site(2, "q", LAST, torch.tensor([4, 1]))]
    actual = patched(WindowExecutor(), chosen, tokens, edits, LAST, sites, None)
    clean = batch_of(chosen, tokens).clean.logits
    assert torch.equal(actual[4], clean)
    late = [edit for edit in edits if edit.layer >= 2]
    for executor in (FullExecutor(), WindowExecutor()):
        assert_same(patched(executor, chosen, tokens, late, LAST, sites, None), clean.expand(N_VARIANTS, -1, -1))


@pytest.mark.parametrize("executor", EXECUTORS)
@torch.no_grad()
def test_without_edits_a_frozen_run_is_the_clean_run(executor):
    chosen, tokens = subject("gemma3"), random_tokens()
    actual = executor.frozen(batch_of(chosen, tokens), [], 2, LAST, everything)
    assert_same(actual, chosen.reference.logits(tokens).expand(2, -1, -1))


@torch.no_grad()
def test_a_frozen_run_before_the_kept_part_of_the_clean_run_is_an_error():
    chosen, tokens = subject("llama"), random_tokens()
    sites = [Site(2, "q", 8, torch.tensor([1]))]
    with pytest.raises(AssertionError, match="kept"):
        WindowExecutor().received(batch_of(chosen, tokens, start=9), senders(Draw(), 8), N_VARIANTS, 8, sites)


@torch.no_grad()
def test_a_frozen_run_has_one_position():
    batch = batch_of(subject("llama"), random_tokens())
    site = [Site(2, "q", 9, torch.tensor([1]))]
    with pytest.raises(AssertionError, match="one position"):
        WindowExecutor().received(batch, senders(Draw(), 8), N_VARIANTS, 8, site)
    with pytest.raises(AssertionError, match="one position"):
        WindowExecutor().received(batch, senders(Draw(), 8), N_VARIANTS, 9, site)
