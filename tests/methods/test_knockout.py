"""Attention knockout against its definition: one prompt, one layer and one head at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from circuitdiff.engine import Knockout
from circuitdiff.errors import InputError
from circuitdiff.evaluation import evaluate_model
from circuitdiff.methods import knockout
from circuitdiff.methods.knockout import (
    EVERYWHERE,
    Blocking,
    attention_knockout,
    blocking,
    has_random_keys,
    random_keys,
    roles_before,
)
from circuitdiff.prompts import Pairs
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import N_HEADS, N_LAYERS, subject

ROLES = ["last", "query_label", "previous_query_label"]


def with_role(role: str, at: int) -> Pairs:
    """The pairs with one more role, at the same place in all."""
    pairs = fake_pairs()
    more = {role: torch.full((len(pairs),), at)}
    clean, other = (
        replace(each, positions={**each.positions, **more})
        for each in (pairs.clean_prompts, pairs.counterfactual_prompts)
    )
    return replace(pairs, clean_prompts=clean, counterfactual_prompts=other)


def by_definition(architecture: str, query: str, keys: list[Tensor], layers: range) -> Tensor:
    """Log probabilities of the answers, each prompt on its own; `keys`: positions per prompt."""
    chosen, pairs, values = subject(architecture), fake_pairs(), []
    for i in range(len(pairs)):
        tokens = pairs.clean[i : i + 1, : pairs.lengths[i]]
        blocked = torch.zeros(1, 1, tokens.shape[1], dtype=torch.bool)
        for key in keys:
            blocked[0, 0, int(key[i])] = True
        at = int(pairs.positions[query][i])
        edits = [Knockout(n, at, torch.tensor([h]), torch.tensor([0]), blocked) for n in layers for h in range(N_HEADS)]
        values.append(chosen.reference.run(tokens, edits, 1)[0, 0].log_softmax(0)[pairs.answers[i]])
    return torch.stack(values)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("executor", ["window", "full"])
@pytest.mark.parametrize("upward", [True, False], ids=["from a layer upward", "in one layer"])
@torch.no_grad()
def test_curves_agree_with_their_definition(upward, executor):
    pairs, wanted = fake_pairs(), Blocking("last", "query_label", (0, 2, 3), upward)
    clean, [curve] = attention_knockout(subject("llama").model, pairs, [wanted], executor=executor)
    for layer, ran in zip(wanted.layers, curve, strict=True):
        layers = range(layer, N_LAYERS if upward else layer + 1)
        expected = by_definition("llama", "last", [pairs.positions["query_label"]], layers)
        assert_close(ran.log_probs, expected)
        assert (expected - clean.log_probs).abs().min() > 1e-6, "the knockout must show"


@torch.no_grad()
def test_several_keys_are_blocked_together_and_positions_may_differ_by_prompt():
    pairs, model = fake_pairs(), subject("gemma2").model
    roles, drawn = ["query_label", "previous_query_label"], torch.tensor([3, 1, 7, 2, 5])
    wanted = [Blocking("last", keys, [1]) for keys in (roles, drawn)]
    _, [[two], [at_random]] = attention_knockout(model, pairs, wanted)
    keys = [pairs.positions[role] for role in roles]
    assert_close(two.log_probs, by_definition("gemma2", "last", keys, range(1, N_LAYERS)))
    assert_close(at_random.log_probs, by_definition("gemma2", "last", [drawn], range(1, N_LAYERS)))


@torch.no_grad()
def test_every_role_can_be_blocked_from_each_before_it_and_from_a_random_control():
    pairs = fake_pairs()
    cells = [*roles_before(pairs, ROLES), ("last", None), ("query_label", None)]
    assert set(cells[:-2]) == {
        ("last", "query_label"),
        ("last", "previous_query_label"),
        ("query_label", "previous_query_label"),
    }
    wanted = [blocking(pairs, *cell, query_roles=["query_label"], seed=3) for cell in cells]
    _, blocked = attention_knockout(subject("llama").model, pairs, wanted)
    for (query, key), [ran] in zip(cells, blocked, strict=True):
        positions = pairs.positions[key] if key else random_keys(pairs, query, ["query_label"], seed=3)
        assert_close(ran.log_probs, by_definition("llama", query, [positions], range(N_LAYERS)))


@torch.no_grad()
def test_several_knockouts_are_each_by_itself_and_run_what_they_share_once(monkeypatch):
    pairs, model = fake_pairs(), subject("llama").model
    wanted = [
        Blocking("last", "query_label", EVERYWHERE),
        Blocking("last", "query_label", (0, 2)),
        Blocking("last", pairs.positions["query_label"], (2, 3)),
        Blocking("query_label", "previous_query_label", (1,), upward=False),
    ]
    asked: list[int] = []
    run = knockout.run_edited

    def spy(model, pairs, variants, *args, **kwargs):
        asked.append(len(variants))
        return run(model, pairs, variants, *args, **kwargs)

    monkeypatch.setattr(knockout, "run_edited", spy)
    clean, found = attention_knockout(model, pairs, wanted)
    assert asked == [1 + 4], "the clean model; from layers 0, 2 and 3 upward; and in layer 1"
    assert_close(clean.log_probs, evaluate_model(model, pairs).log_probs)
    for each, curve in zip(wanted, found, strict=True):
        _, [alone] = attention_knockout(model, pairs, [each])
        assert len(curve) == len(each.layers)
        for one, other in zip(curve, alone, strict=True):
            assert_close(one.log_probs, other.log_probs)
    assert_close(attention_knockout(model, pairs, []).clean.log_probs, clean.log_probs)


def test_random_keys_are_neither_the_answer_nor_the_query_nor_the_first_token():
    pairs = fake_pairs()
    tokens = pairs.clean.clone()
    tokens[:, 3] = pairs.answers
    pairs = replace(pairs, clean_prompts=replace(pairs.clean_prompts, tokens=tokens))
    drawn = torch.stack([random_keys(pairs, "last", ["query_label"], seed=seed) for seed in range(300)])
    for i in range(len(pairs)):
        last, label = int(pairs.positions["last"][i]), int(pairs.positions["query_label"][i])
        assert set(drawn[:, i].tolist()) == set(range(1, last)) - {3, label}
    assert torch.equal(drawn[5], random_keys(pairs, "last", ["query_label"], seed=5))


@pytest.mark.parametrize("at", range(5))
def test_there_are_random_keys_where_every_prompt_has_a_place_for_one(at):
    pairs = with_role("early", at)
    tokens = pairs.clean.clone()
    tokens[2, 1], tokens[2, 2] = pairs.answers[2], pairs.answers[2] + 1
    pairs = replace(pairs, clean_prompts=replace(pairs.clean_prompts, tokens=tokens))
    free = [
        any(
            tokens[i, p] not in pairs.right_answers[i] and p != pairs.positions["previous_query_label"][i]
            for p in range(1, at)
        )
        for i in range(len(pairs))
    ]
    assert has_random_keys(pairs, "early", ["previous_query_label"]) == all(free) == (at > 2)
    if not all(free):
        with pytest.raises(InputError, match="no position before 'early'"):
            random_keys(pairs, "early", ["previous_query_label"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": "nowhere"}, r"no role 'nowhere'"),
        ({"keys": "absent"}, r"role 'absent' has no place in some prompts"),
        ({"query": "query_label", "keys": "last"}, r"cannot look at a later position"),
        ({"keys": []}, r"no key to block was named"),
        ({"layers": [2, 4]}, r"layers are from 0 to 3 in llama; got \[2, 4\]"),
        ({"layers": []}, r"layers are from 0 to 3"),
    ],
)
def test_what_cannot_be_blocked_is_said_in_one_line(change, message):
    wanted = {"query": "last", "keys": "query_label"} | change
    with pytest.raises(InputError, match=message):
        attention_knockout(subject("llama").model, fake_pairs(), [Blocking(**wanted)])


def test_a_query_left_without_keys_is_an_error_before_anything_runs():
    pairs = with_role("first", 0)
    with pytest.raises(InputError, match="'first' would see no key"):
        attention_knockout(subject("llama").model, pairs, [Blocking("first", "first")])
    with pytest.raises(InputError, match="no position before 'first'"):
        random_keys(pairs, "first", [])
