"""A group's profile against hooks: where its heads attend, and what its output does at each role."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.circuit import Group, Head
from circuitdiff.engine import Edit
from circuitdiff.errors import InputError
from circuitdiff.methods.group_profile import attention_by_role, effect_by_role
from helpers.fake_pairs import fake_pairs, logit_difference
from helpers.tiny_models import subject

ROLES = ["last", "query_label", "previous_query_label"]
HEADS = (Head(1, 5), Head(3, 2), Head(1, 0))


def test_attention_is_the_softmax_of_the_models_own_queries_and_keys():
    chosen, pairs = subject("llama"), fake_pairs()
    groups = {"other": Group("last", (Head(2, 2),)), "group": Group("query_label", HEADS)}
    found = attention_by_role(chosen.model, groups, pairs, ROLES)["group"]
    for i in range(len(pairs)):
        seen = chosen.reference.clean(pairs.clean[i : i + 1, : pairs.lengths[i]]).seen
        at = int(pairs.positions["query_label"][i])
        for j, head in enumerate(HEADS):
            q, k = seen[head.layer, "q"][0, at, head.index], seen[head.layer, "k"][0, : at + 1, head.index]
            weights = torch.softmax(k @ q * chosen.model.attentions[head.layer].scaling, dim=0)
            expected = [float(weights[p]) if p <= at else 0.0 for p in (int(pairs.positions[r][i]) for r in ROLES)]
            torch.testing.assert_close(found[j, i], torch.tensor(expected, dtype=found.dtype), rtol=0, atol=1e-10)


@pytest.mark.parametrize("executor", ["window", "full"])
def test_effects_are_those_of_all_heads_patched_at_the_role(executor):
    chosen, pairs = subject("qwen2"), fake_pairs()
    groups = {"other": Group("last", (Head(2, 2),)), "group": Group("last", HEADS)}
    found = effect_by_role(chosen.model, groups, pairs, ROLES, executor=executor)["group"]
    for i in range(len(pairs)):
        clean = pairs.clean[i : i + 1, : pairs.lengths[i]]
        other = chosen.reference.clean(pairs.counterfactual[i : i + 1, : pairs.counterfactual_lengths[i]]).seen
        whole = logit_difference(chosen.reference.logits(clean), pairs, i)
        for row, role in enumerate(ROLES):
            here, there = int(pairs.positions[role][i]), int(pairs.counterfactual_positions[role][i])
            edits = [
                Edit(
                    head.layer,
                    "z",
                    here,
                    torch.tensor([head.index]),
                    torch.tensor([0]),
                    other[head.layer, "z"][:, there, head.index][None, :, None],
                )
                for head in HEADS
            ]
            expected = logit_difference(chosen.reference.run(clean, edits, 1)[0], pairs, i) - whole
            assert float(found[row, i]) == pytest.approx(expected, abs=1e-10)


def test_a_group_that_has_no_profile_is_refused():
    chosen, pairs = subject("llama"), fake_pairs()
    with pytest.raises(InputError, match="without heads"):
        attention_by_role(chosen.model, {"g": Group("last", ())}, pairs, ROLES)
    with pytest.raises(InputError, match="'absent' has no place in some prompts"):
        effect_by_role(chosen.model, {"g": Group("last", HEADS)}, pairs, ["absent"])
    with pytest.raises(InputError, match="no role 'nowhere'"):
        attention_by_role(chosen.model, {"g": Group("last", HEADS)}, pairs, ["nowhere"])
