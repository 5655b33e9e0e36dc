"""The clean run is what a looped run sees, and a replayed layer is the layer."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.engine.replay import cut, embed, run_clean, run_layer
from circuitdiff.errors import InputError
from helpers.tiny_models import ARCHITECTURES, LENGTH, assert_same, random_tokens, subject


@pytest.mark.parametrize("start", [0, 8])
@torch.no_grad()
def test_the_clean_run_is_what_the_looped_run_sees(start):
    chosen, tokens = subject("gemma2"), random_tokens()
    seen = chosen.reference.clean(tokens).seen
    clean = run_clean(chosen.model, tokens, start)
    assert_same(clean.logits, chosen.reference.logits(tokens))
    for layer in range(chosen.model.n_layers):
        assert_same(clean.q[layer].transpose(1, 2), seen[layer, "q"][:, start:])
        assert_same(clean.z[layer], seen[layer, "z"][:, start:])
        assert_same(clean.z_at(layer, 11), seen[layer, "z"][:, 11])
        for what, kv in (("k", clean.k), ("v", clean.v)):
            assert_same(kv[layer].transpose(1, 2).repeat_interleave(3, dim=2), seen[layer, what])
    for kept in (*clean.resid_pre, *clean.attention_output):
        assert kept.shape[:2] == (len(tokens), LENGTH - start)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_layers_replayed_one_after_the_other_and_unembedded_are_the_model(architecture):
    model, tokens = subject(architecture).model, random_tokens()
    clean = run_clean(model, tokens)
    hidden, keywords = embed(model, tokens)
    for layer, module in enumerate(model.layers):
        assert_same(hidden, clean.resid_pre[layer])
        hidden = run_layer(module, hidden, cut(keywords[layer], torch.arange(LENGTH)))
    logits = model.module(input_ids=tokens).logits[:, -1]
    assert_same(model.unembed(hidden[:, -1]), logits)
    some = torch.tensor([7, 2, 30])
    assert_same(model.unembed(hidden[:, -1], some), logits[:, some])


@pytest.mark.parametrize(
    "unknown", [torch.zeros(1, LENGTH), (torch.zeros(1, LENGTH),), {"full": torch.zeros(1, LENGTH)}]
)
def test_a_keyword_that_may_have_positions_in_it_is_refused(unknown):
    with pytest.raises(InputError, match="'alibi', which circuitdiff cannot cut"):
        cut({"alibi": unknown}, torch.tensor([3]))


def test_plain_keywords_are_handed_on():
    assert cut({"use_cache": False, "past_key_values": None}, torch.tensor([3])) == {
        "use_cache": False,
        "past_key_values": None,
    }


def test_prompts_with_masks_of_their_own_are_refused():
    mask = torch.ones(3, 1, LENGTH, LENGTH, dtype=torch.bool)
    mask[1, 0, 5, 2] = False
    with pytest.raises(InputError, match="different attention_mask"):
        cut({"attention_mask": mask}, torch.tensor([3]))


def test_positions_are_cut_by_name_for_one_prompt_or_as_prompts_of_their_own():
    ids, mask = torch.arange(LENGTH)[None], torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None]
    angles = torch.arange(LENGTH)[None, :, None] + torch.tensor([0.1, 0.2, 0.3])
    keywords = {"position_ids": ids, "attention_mask": mask, "position_embeddings": (angles, -angles)}
    together = cut(keywords, torch.tensor([7, 2]))
    assert together["position_ids"].tolist() == [[7, 2]]
    assert torch.equal(together["attention_mask"], mask[:, :, [7, 2]])
    assert torch.equal(together["position_embeddings"][1], -angles[:, [7, 2]])
    apart = cut(keywords, torch.tensor([7, 2]), one_each=True)
    assert apart["position_ids"].tolist() == [[7], [2]]
    assert torch.equal(apart["attention_mask"], mask[0, 0, [7, 2]][:, None, None])
    assert torch.equal(apart["position_embeddings"][0], angles[0, [7, 2]][:, None])
