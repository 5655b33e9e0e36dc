"""Plantings that tell methods apart: a cause among changes that do not matter, and heads that gradients do not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from circuitdiff.circuit import Head
from circuitdiff.methods.attribution_patching import attribution
from circuitdiff.methods.path_patching import path_effects as cd_path_effects
from circuitdiff.models.loading import as_model
from circuitdiff.planted import Planted, build_planted
from circuitdiff.planted.heads import D_HEAD
from circuitdiff.planted.space import D_MODEL
from circuitdiff.stats.selection import lowest
from helpers.planted_probe import (
    ablated,
    accuracy,
    all_heads,
    clean_run,
    columns,
    decoys_of,
    head_weights,
    pairs_of,
    path_effects,
    planted,
    run,
)

AMONG = {
    "planted-nothing-among-changes": "planted-base",
    "planted-fetchers-among-changes": "planted-sharper-fetchers",
    "planted-mlp-among-changes": "planted-mlp-gain",
}


def test_changes_that_do_not_matter_leave_answers_as_they_were():
    pairs = pairs_of(28)
    for name, same in AMONG.items():
        mine, theirs = (run(planted(each), pairs.clean).logits for each in (name, same))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


def test_changes_that_do_not_matter_are_in_every_head_and_every_other_kind_of_weight_but_the_unembedding():
    mine, base = planted("planted-nothing-among-changes"), planted("planted-base")
    for head in all_heads(base):
        assert not torch.equal(head_weights(mine, head)[1], head_weights(base, head)[1])
    for head in decoys_of(base):
        assert not torch.equal(head_weights(mine, head)[3], head_weights(base, head)[3])
    theirs = base.model.state_dict()
    differ = {name for name, value in mine.model.state_dict().items() if not torch.equal(value, theirs[name])}
    for kind in ("c_attn.weight", "c_proj.weight", "c_fc.weight", "ln_1.bias", "ln_2.bias", "ln_f.bias", "wte"):
        assert any(kind in name for name in differ)
    assert not any("lm_head" in name for name in differ)


def test_scores_and_writings_of_planted_heads_do_not_see_the_harmless_maps():
    mine, base = planted("planted-nothing-among-changes"), planted("planted-base")
    for head in {head for heads in base.parts.values() for head in heads}:
        (q, k, v, o, bias), (q0, k0, v0, o0, bias0) = head_weights(mine, head), head_weights(base, head)
        torch.testing.assert_close(q @ k.T, q0 @ k0.T, rtol=0, atol=1e-9)
        torch.testing.assert_close(bias @ k.T, bias0 @ k0.T, rtol=0, atol=1e-9)
        assert torch.equal(v, v0)
        assert torch.equal(o, o0)
        assert not torch.allclose(k, k0)


def test_a_dose_lies_between_nothing_and_the_whole_cause():
    pairs, names = pairs_of(105), ("nothing", "quarter-fetchers", "half-fetchers", "fetchers")
    scores = [accuracy(run(planted(f"planted-{each}-among-changes"), pairs.clean).logits, pairs) for each in names]
    assert scores == sorted(set(scores))


def test_of_recoded_addresses_neither_part_alone_is_any_use():
    pairs, base, donor = pairs_of(28), planted("planted-base"), planted("planted-recoded")
    groups = {name: donor.circuit.groups[name].heads for name in ("position_transmitter", "value_fetcher")}
    alone = [accuracy(run(grafted(base, donor, heads), pairs.clean).logits, pairs) for heads in groups.values()]
    both = accuracy(
        run(grafted(base, donor, (*groups["position_transmitter"], *groups["value_fetcher"])), pairs.clean).logits,
        pairs,
    )
    before, after = (accuracy(run(each, pairs.clean).logits, pairs) for each in (base, donor))
    assert max(alone) < before - 0.2 < before < both
    assert abs(both - after) <= 2 / 28  # all but the negative heads, which look at another object


def grafted(recipient: Planted, donor: Planted, heads: Sequence[Head]) -> Planted:
    model: Any = build_planted(recipient.name, torch.float64).model
    source: Any = donor.model
    with torch.no_grad():
        for head in heads:
            mine, theirs = (each.transformer.h[head.layer].attn for each in (model, source))
            for part in range(3):
                mine.c_attn.weight[:, columns(head, part)] = theirs.c_attn.weight[:, columns(head, part)]
                mine.c_attn.bias[columns(head, part)] = theirs.c_attn.bias[columns(head, part)]
            mine.c_proj.weight[columns(head)] = theirs.c_proj.weight[columns(head)]
    return replace(recipient, model=model)


def test_each_canceller_helps_and_attribution_does_not_see_it():
    subject = planted("planted-cancelling")
    pair = subject.parts["canceller"]
    effects = path_effects(subject.name, 28, "last", subject.parts["value_fetcher"])
    assert max(effects[head] for head in pair) < 20 * min(effects[head] for head in decoys_of(subject)) < 0
    scores = scores_of(subject)
    first, second = (float(scores[head.layer, head.index]) for head in pair)
    assert abs(first + second) < 1e-9 < abs(first)  # of one it says that it hurts


def test_no_gradient_passes_a_saturated_softmax():
    subject = planted("planted-saturated")
    transmitters = subject.parts["position_transmitter"]
    effects = path_effects(subject.name, 28, "last", subject.parts["value_fetcher"])
    assert max(effects[head] for head in transmitters) < 20 * min(effects[head] for head in decoys_of(subject)) < 0
    assert accuracy(clean_run(subject.name, 28).logits, pairs_of(28)) == 1
    assert not set(transmitters) & set(lowest(scores_of(subject), 6))


def test_where_two_of_three_heads_suffice_patching_one_shows_next_to_nothing():
    subject = planted("planted-outvoted")
    effects = path_effects(subject.name, 28, "last", subject.parts["value_fetcher"])
    assert max(abs(effects[head]) for head in subject.parts["position_transmitter"]) < 0.05
    patched = ablated(subject.name, 28, subject.parts["position_transmitter"], "last")
    assert accuracy(patched, pairs_of(28)) < 0.2 < accuracy(clean_run(subject.name, 28).logits, pairs_of(28)) == 1


def scores_of(subject: Planted) -> Tensor:
    """Mean attribution of every head at the last token."""
    model = as_model(subject.model, subject.tokenizer, subject.name, {"kind": "built"})
    return attribution(model, pairs_of(28), "last").scores["last"]


def test_weights_do_not_depend_on_the_number_of_threads():
    threads, built = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            built.append(build_planted("planted-base", torch.float64).model.state_dict())
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    for other in built[1:]:
        assert all(torch.equal(value, other[name]) for name, value in built[0].items())


def test_noise_moves_every_tensor_and_answers_to_both_sides():
    pairs = pairs_of(70)
    mine, base = planted("planted-nothing-in-noise"), planted("planted-base")
    theirs = base.model.state_dict()
    same = [name for name, value in mine.model.state_dict().items() if torch.equal(value, theirs[name])]
    assert not same
    moved = run(mine, pairs.clean).logits - run(base, pairs.clean).logits
    right = moved.gather(1, pairs.answers[:, None])[:, 0]
    assert (right > 0.05).any()
    assert (right < -0.05).any()
    assert moved.std() < 3
    both = [accuracy(run(each, pairs.clean).logits, pairs) for each in (mine, base)]
    assert abs(both[0] - both[1]) < 0.08
    better = accuracy(run(planted("planted-detectors-in-noise"), pairs.clean).logits, pairs)
    assert better > both[0] + 0.15


def test_heads_of_a_layer_share_keys_and_values_and_one_of_them_plays_a_part():
    subject = planted("planted-shared-keys")
    heads = [head for chosen in subject.parts.values() for head in chosen]
    assert sorted(head.layer for head in heads) == list(range(14))
    attention = subject.model.transformer.h[3].attn
    assert attention.c_attn.weight.shape == (D_MODEL + 2 * D_HEAD, D_MODEL), "one head's keys and values"
    pairs = pairs_of(70)
    model = as_model(subject.model, subject.tokenizer, subject.name, {"kind": "built"})
    assert model.n_kv_heads == 1
    weak, sharp = (run(planted(name), pairs.clean).logits for name in (subject.name, f"{subject.name}-in-noise"))
    assert 0.5 < accuracy(weak, pairs) < 0.8
    assert accuracy(sharp, pairs) > 0.85


def test_each_group_acts_through_the_next_where_keys_and_values_are_shared():
    """By our own path patching: planted heads stand out, and those that share their keys and values do not."""
    subject = planted("planted-shared-keys")
    model = as_model(subject.model, subject.tokenizer, subject.name, {"kind": "built"})
    pairs, parts = pairs_of(28), subject.parts
    paths = [
        ("value_fetcher", cd_path_effects(model, pairs, "last")),
        ("position_transmitter", cd_path_effects(model, pairs, "last", parts["value_fetcher"], "q")),
        ("position_detector", cd_path_effects(model, pairs, "query_label", parts["position_transmitter"], "v")),
    ]
    for part, found in paths:
        effects = found.effects.clone()
        mine = [float(effects[head.layer, head.index]) for head in parts[part]]
        for head in (*parts[part], *parts["negative"]):
            effects[head.layer, head.index] = 0.0
        assert max(mine) < -0.1
        assert float(effects.abs().max()) < -max(mine) / 2
