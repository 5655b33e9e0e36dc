"""A group's profile against hooks: what its output does at each role."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.circuit import Group, Head
from circuitdiff.engine import Edit
from circuitdiff.errors import InputError
from circuitdiff.methods.group_profile import effect_by_role
from helpers.fake_pairs import fake_pairs, logit_difference
from helpers.tiny_models import subject

ROLES = ["last", "query_label", "previous_query_label"]
HEADS = (Head(1, 5), Head(3, 2), Head(1, 0))


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
        effect_by_role(chosen.model, {"g": Group("last", ())}, pairs, ROLES)
    with pytest.raises(InputError, match="'absent' has no place in some prompts"):
        effect_by_role(chosen.model, {"g": Group("last", HEADS)}, pairs, ["absent"])
    with pytest.raises(InputError, match="no role 'nowhere'"):
        effect_by_role(chosen.model, {"g": Group("last", HEADS)}, pairs, ["nowhere"])
