"""Where heads attend, against loops over prompts, heads and keys on the model's own attention weights and values."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine.capture import capture
from circuitdiff.errors import InputError
from circuitdiff.methods import attention
from circuitdiff.methods.attention import AttentionToRoles, attention_to_roles, by_role
from circuitdiff.prompts import Pairs
from circuitdiff.stats.intervals import mean_interval
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import D_HEAD, D_MODEL, N_HEADS, N_KV_HEADS, N_LAYERS, subject

ROLES = ("last", "query_label", "previous_query_label", "absent")
CIRCUIT = Circuit(
    {"other": Group("last", (Head(2, 2),)), "group": Group("query_label", (Head(1, 4), Head(3, 1), Head(1, 5)))}
)


def weights_and_values(architecture: str, tokens: Tensor) -> tuple[list[Tensor], dict[int, Tensor], list[Tensor]]:
    """By layer: the model's own attention weights, what its value projections give, and output projections' weights."""
    module, seen = copy.deepcopy(subject(architecture).model.module), {}
    module.set_attn_implementation("eager")
    layers = [layer.self_attn for layer in module.model.layers]
    for i, layer in enumerate(layers):
        layer.v_proj.register_forward_hook(lambda _, __, output, i=i: seen.update({i: output[0]}))
    with patch.object(torch.nn.functional, "softmax", lambda x, dim, **_: x.softmax(dim)):  # theirs is in float32
        found = module(tokens[None], output_attentions=True).attentions
    return [each[0] for each in found], seen, [layer.o_proj.weight for layer in layers]


def by_hand(architecture: str, pairs: Pairs, name: str) -> tuple[Tensor, Tensor]:
    """Attention and value-weighted attention [head, prompt, column], by definition."""
    group = CIRCUIT.groups[name]
    plain, weighted = (torch.full((len(group.heads), len(pairs), len(ROLES) + 1), math.nan).double() for _ in range(2))
    for p in range(len(pairs)):
        patterns, values, outputs = weights_and_values(architecture, pairs.clean[p, : pairs.lengths[p]])
        query = int(pairs.positions[group.at][p])
        at = {role: int(pairs.positions[role][p]) for role in ROLES}
        at = {role: key for role, key in at.items() if 0 <= key <= query}
        for h, head in enumerate(group.heads):
            kv = head.index // (N_HEADS // N_KV_HEADS)
            shares, lengths = [], []
            for key in range(query + 1):
                v = values[head.layer][key, kv * D_HEAD : (kv + 1) * D_HEAD]
                written = outputs[head.layer][:, head.index * D_HEAD : (head.index + 1) * D_HEAD] @ v
                assert written.shape == (D_MODEL,)
                shares.append(float(patterns[head.layer][head.index, query, key]))
                lengths.append(shares[-1] * math.sqrt(sum(float(x) ** 2 for x in written)))
            for of, table, total in ((shares, plain, 1.0), (lengths, weighted, sum(lengths))):
                for column, role in enumerate(ROLES):
                    if role in at:
                        table[h, p, column] = of[at[role]] / total
                table[h, p, -1] = sum(x for key, x in enumerate(of) if key not in at.values()) / total
    return plain, weighted


@pytest.mark.parametrize(
    "architecture", ["llama", "mistral", "gemma2"]
)  # plain, with a window of 5, and with a softcap
@torch.no_grad()
def test_shares_are_those_of_loops_over_the_models_own_weights_and_values(architecture):
    pairs = fake_pairs()
    found = attention_to_roles(subject(architecture).model, CIRCUIT, pairs, ROLES)
    assert list(found) == ["other", "group"]
    for name, each in found.items():
        assert (each.heads, each.roles) == (CIRCUIT.groups[name].heads, ROLES)
        for actual, expected in zip(
            (each.attention, each.value_weighted), by_hand(architecture, pairs, name), strict=True
        ):
            assert actual.dtype == torch.float64
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10, equal_nan=True)
        assert float((each.attention - each.value_weighted).nan_to_num().abs().max()) > 0.01
        if name == "other":  # no two of the roles are at one token
            for shares in (each.attention, each.value_weighted):
                torch.testing.assert_close(shares.nansum(2), torch.ones(len(each.heads), len(pairs)).double())


def test_small_batches_change_nothing(monkeypatch):
    model, pairs, sizes = subject("llama").model, fake_pairs(), []

    def counted(model, prompts, seen, **how):
        return capture(model, prompts, lambda call, z, bucket: (sizes.append(len(z)), seen(call, z, bucket)), **how)

    whole = attention_to_roles(model, CIRCUIT, pairs)
    monkeypatch.setattr(attention, "capture", counted)
    one_by_one = attention_to_roles(model, CIRCUIT, pairs, memory_gb=1e-6)
    assert set(sizes) == {1}
    for name, each in whole.items():
        torch.testing.assert_close(each.attention, one_by_one[name].attention, equal_nan=True)
        torch.testing.assert_close(each.value_weighted, one_by_one[name].value_weighted, equal_nan=True)


def test_a_role_that_is_absent_or_comes_later_is_left_out_and_counted():
    found = attention_to_roles(subject("llama").model, CIRCUIT, fake_pairs(), ROLES)
    assert found["other"].n_prompts.tolist() == [5, 5, 5, 4, 5]
    assert found["group"].n_prompts.tolist() == [0, 5, 5, 4, 5]


def test_intervals_are_over_the_scenarios_of_the_prompts_that_have_the_role_and_within_a_share():
    g, scenarios = torch.Generator().manual_seed(0), torch.tensor([0, 0, 1, 2, 3, 3])
    plain, weighted = (torch.rand(2, 6, 3, generator=g) for _ in range(2))
    plain[0, :, 0] = torch.tensor([1.0, 0, 0, 0, 0, 0])
    for shares in (plain, weighted):
        shares[:, 2:4, 1] = torch.nan
    found = AttentionToRoles((Head(0, 1), Head(2, 0)), ("a", "b"), plain, weighted, scenarios)
    here = torch.tensor([0, 1, 4, 5])
    for shares, bounds in ((plain, found.intervals()), (weighted, found.intervals(weighted=True))):
        expected = mean_interval(shares[:, here, 1].double().numpy(), scenarios[here].numpy())
        for bound, each in zip(bounds, expected, strict=True):
            np.testing.assert_allclose(bound[:, 1], np.clip(each, 0, 1))
    assert mean_interval(plain[0, :, 0].numpy(), scenarios.numpy()).low < 0 == found.intervals().low[0, 0]
    table = found.to_pandas()
    assert table.role.fillna("others").tolist() == ["a", "b", "others"] * 2
    assert table.n_prompts.tolist() == [6, 4, 6] * 2
    assert table.value_weighted_high[4] == found.intervals(weighted=True).high[1, 1]
    nowhere = replace(found, attention=plain.index_fill(2, torch.tensor([0]), torch.nan))
    assert np.isnan(nowhere.intervals().value[:, 0]).all()
    assert nowhere.n_prompts.tolist() == [0, 4, 6]


def test_two_roles_at_one_token_both_have_its_share_and_other_tokens_lack_it_once():
    shares = torch.tensor([[0.5, 0.25, 0.125, 0.125]])
    assert by_role(shares, torch.tensor([[1, 1, 2]])).tolist() == [[0.25, 0.25, 0.125, 0.625]]


@pytest.mark.parametrize(
    ("groups", "roles", "message"),
    [
        ({"g": Group("last", ())}, ROLES, "without heads"),
        ({}, ROLES, "without heads"),
        ({"g": Group("absent", (Head(1, 0),))}, ROLES, "'absent' has no place in some prompts"),
        ({"g": Group("last", (Head(N_LAYERS, 0),))}, ROLES, "names head 4.0"),
        ({"g": Group("last", (Head(1, 0),))}, ["nowhere"], "no role 'nowhere'"),
    ],
)
def test_what_attends_nowhere_and_what_is_not_there_is_refused(groups: Mapping, roles, message):
    with pytest.raises(InputError, match=message):
        attention_to_roles(subject("llama").model, Circuit(groups), fake_pairs(), roles)
