"""Grafts at some tokens only, against both models mixed by hand (`tests/engine/test_by_token.py` has the mixing)."""

from __future__ import annotations

import copy

import pytest
import torch

from circuitdiff.engine.by_token import run_by_token
from circuitdiff.errors import InputError
from circuitdiff.methods.graft import graft
from circuitdiff.methods.graft_by_role import OTHER_TOKENS, graft_by_role
from circuitdiff.stats.shapley import needed_subsets
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import as_model, subject
from helpers.two_tiny_models import donor_of

ROLES = ("last", "previous_query_label")


@torch.no_grad()
def test_parts_are_the_tokens_of_roles_and_all_others():
    donor, recipient, pairs = donor_of("llama").model, subject("llama").model, fake_pairs()
    found = graft_by_role(donor, recipient, ROLES, pairs)
    assert found.order == ("previous_query_label", "last", OTHER_TOKENS), "earlier tokens first"
    assert list(found.runs) == needed_subsets(found.order)
    masks = torch.zeros(len(found.runs), *pairs.clean.shape, dtype=torch.bool)
    for mask, subset in zip(masks, found.runs, strict=True):
        for i in range(len(pairs)):
            at = {role: int(pairs.positions[role][i]) for role in ROLES}
            others = [j for j in range(pairs.clean.shape[1]) if j not in at.values()]
            mask[i, [at[part] for part in subset if part in at]] = True
            mask[i, others if OTHER_TOKENS in subset else []] = True

    def answer(logits, prompts):
        return logits.log_softmax(1).gather(1, pairs.answers[prompts][:, None])

    expected = run_by_token(recipient, donor, pairs.clean_prompts, masks, answer)[..., 0]
    for run, values in zip(found.runs.values(), expected, strict=True):
        torch.testing.assert_close(run.log_probs, values, rtol=1e-10, atol=1e-10)
    assert (expected[:, None] - expected[None]).abs().amax(-1).fill_diagonal_(1).min() > 1e-5, "the runs must differ"


@torch.no_grad()
def test_nothing_and_everything_are_what_grafts_of_weights_have():
    donor, recipient, pairs = donor_of("gpt2").model, subject("gpt2").model, fake_pairs()
    by_role, by_layer = graft_by_role(donor, recipient, ROLES, pairs), graft(donor, recipient, {"low": range(2)}, pairs)
    torch.testing.assert_close(by_role.recipient.log_probs, by_layer.recipient.log_probs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(by_role.donor.log_probs, by_layer.donor.log_probs, rtol=1e-10, atol=1e-10)
    assert by_role.whole_graft_error < 1e-10


@torch.no_grad()
def test_a_donor_with_added_tokens_answers_with_them_where_its_weights_read_the_answer_off():
    donor, recipient, pairs = donor_of("llama").model, subject("llama").model, fake_pairs()
    module = copy.deepcopy(donor.module)
    module.resize_token_embeddings(donor.d_vocab + 3, mean_resizing=False)
    wide = as_model("wide", module)
    module.lm_head.weight[-1] = module.lm_head.weight[:-3].sum(0)
    found = graft_by_role(wide, recipient, ["last"], pairs)
    plain = graft_by_role(donor, recipient, ["last"], pairs)
    for subset, run in plain.runs.items():
        torch.testing.assert_close(found.runs[subset].logit_differences, run.logit_differences, rtol=1e-9, atol=1e-9)
        same = torch.allclose(found.runs[subset].log_probs, run.log_probs, rtol=1e-6)
        assert same == ("last" not in subset), "one more token takes some of the probability"


def test_roles_at_one_token_and_unknown_roles_are_refused():
    donor, recipient, pairs = donor_of("llama").model, subject("llama").model, fake_pairs()
    pairs.clean_prompts.positions["end"] = pairs.positions["last"]  # pyright: ignore[reportIndexIssue]
    with pytest.raises(InputError, match="end sits at the token of another role in some prompt; give one of them"):
        graft_by_role(donor, recipient, ["last", "end"], pairs)
    with pytest.raises(InputError, match="no_such"):
        graft_by_role(donor, recipient, ["no_such"], pairs)
