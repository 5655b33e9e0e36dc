"""Prompts that share a row, against each prompt by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from circuitdiff.engine.attention import handled_by
from circuitdiff.engine.mixtures import packs
from circuitdiff.engine.replay import cut, embed, run_layer
from circuitdiff.prompts import PromptSet
from helpers.fake_pairs import D_VOCAB, prompt_set
from helpers.tiny_models import ARCHITECTURES, LENGTH, subject

N_ALIKE = {0: 9, 1: 7}  # tokens that the questions about each scenario have in common
SCENARIOS = (0, 1, 0, 2, 1, 0)  # the third has one question


def questions(n_of_other_length: int = 2) -> PromptSet:
    """Questions about scenarios, then prompts of another length of which one begins like the first scenario."""
    g = torch.Generator().manual_seed(3)
    contexts = torch.randint(3, D_VOCAB, (3, LENGTH), generator=g)
    n = len(SCENARIOS) + n_of_other_length
    tokens = torch.randint(3, D_VOCAB, (n, LENGTH), generator=g)
    for i, scenario in enumerate(SCENARIOS):
        shared = N_ALIKE.get(scenario, 0)
        tokens[i, :shared] = contexts[scenario, :shared]
    lengths = torch.full((n,), LENGTH)
    lengths[len(SCENARIOS) :] = LENGTH - 2
    tokens[len(SCENARIOS), :9] = contexts[0, :9]
    tokens[len(SCENARIOS) :, LENGTH - 2 :] = 0
    return of_one_slot(tokens, lengths)


def of_one_slot(tokens: Tensor, lengths: Tensor) -> PromptSet:
    slots = torch.where(torch.arange(LENGTH) < lengths[:, None], 0, -1)
    return replace(prompt_set(1), tokens=tokens, lengths=lengths, positions={"last": lengths - 1}, slots=slots)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_each_prompt_of_a_row_is_what_it_is_alone(architecture):
    """Also where layers look back only a few tokens, and where positions are learned."""
    both, prompts, seen = subject(architecture), questions(), []
    for pack in packs(prompts, at_once=4):
        mine = pack.prompts.flatten()
        with handled_by(pack.attend):
            each, keywords = embed(both.model, prompts.tokens[mine, : pack.length])
            hidden = pack.join(each)
            for layer, given in zip(both.model.layers, keywords, strict=True):
                hidden = run_layer(layer, hidden, cut(given, pack.positions))
        logits = both.model.unembed(hidden[:, pack.ends].flatten(0, 1))
        for i, found in zip(mine.tolist(), logits, strict=True):
            alone = both.reference.logits(prompts.tokens[i : i + 1, : prompts.lengths[i]])[0]
            torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-10)
            seen.append(i)
    assert sorted(seen) == list(range(len(prompts)))


def test_questions_about_one_scenario_share_a_row():
    rows = [(row.tolist(), pack.n_shared) for pack in packs(questions(), at_once=32) for row in pack.prompts]
    assert sorted(rows) == [([0, 2, 5], 9), ([1, 4], 7), ([3], 12), ([6], 10), ([7], 10)]
    places = {tuple(row.tolist()): pack for pack in packs(questions(), at_once=32) for row in pack.prompts}
    assert places[1, 4].positions.tolist() == [*range(7), *range(7, 13), *range(7, 13)]
    assert places[1, 4].ends.tolist() == [12, 18]


def test_rows_are_at_most_twice_as_long_as_a_prompt_and_few_at_once():
    tokens = torch.full((40, LENGTH), 5)
    tokens[:, -2:] = torch.arange(80).reshape(40, 2)
    lengths = torch.full((40,), LENGTH)
    found = list(packs(of_one_slot(tokens, lengths), at_once=2))
    assert [pack.prompts.shape for pack in found] == [(1, 7)] * 5 + [(1, 5)], "2 x 13 = 11 + 7 x 2 and one over"
    assert max(len(pack.positions) for pack in found) == 11 + 7 * 2
    assert sorted(i for pack in found for i in pack.prompts.flatten().tolist()) == list(range(40))


def test_few_prompts_run_together_however_much_they_share():
    found = list(packs(questions().select(torch.tensor([3] * 40)), at_once=2))
    assert [pack.prompts.shape for pack in found] == [(1, 8)] * 5
    six = torch.arange(3, 3 + 6 * LENGTH).remainder(D_VOCAB).reshape(6, LENGTH).repeat_interleave(8, dim=0)
    lengths = torch.full((48,), LENGTH)
    rows = [pack.prompts.shape for pack in packs(of_one_slot(six, lengths), at_once=8)]
    assert rows == [(4, 8), (2, 8)], "32 prompts of four rows, though five rows have no more than 8 x 13 tokens"


def test_prompts_that_are_the_same_keep_a_token_of_their_own():
    twice = questions().select(torch.tensor([3, 3]))
    [pack] = packs(twice, at_once=2)
    assert pack.prompts.tolist() == [[0, 1]]
    assert (pack.n_shared, pack.ends.tolist()) == (LENGTH - 1, [LENGTH - 1, LENGTH])
