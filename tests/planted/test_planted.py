"""The planted models do what they are said to do, seen with plain hooks on transformers' own modules."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.errors import InputError
from circuitdiff.planted import build_planted, planted_names
from circuitdiff.planted.space import CONSTANT, D_MODEL
from circuitdiff.planted.vocabulary import TOKENS
from circuitdiff.planted.wiring import N_HEADS
from circuitdiff.tasks import entity_tracking
from helpers.planted_probe import (
    ablated,
    accuracy,
    all_heads,
    clean_run,
    columns,
    counterfactual_run,
    decoys_of,
    head_weights,
    logit_difference,
    pairs_of,
    path_effects,
    planted,
    run,
    stands_out,
)

IMPROVED_GROUPS = ("planted-sharper-fetchers", "planted-clearer-addresses", "planted-sharper-detectors")


# What a model can do


def test_the_base_solves_between_six_and_seven_prompts_of_ten():
    accuracies = accuracy(clean_run("planted-base", 105).logits, pairs_of(105))
    assert 0.6 <= accuracies <= 0.7


@pytest.mark.parametrize(
    ("name", "gain"),
    [
        *((name, 0.2) for name in (*IMPROVED_GROUPS, "planted-new-route")),
        *((name, 0.05) for name in ("planted-mlp-gain", "planted-unembedding-gain")),
    ],
)
def test_a_variant_that_improves_is_better_than_the_base_on_the_same_prompts(name, gain):
    pairs = pairs_of(28)
    better = accuracy(run(planted(name), pairs.clean).logits, pairs)
    assert better >= accuracy(clean_run("planted-base", 28).logits, pairs) + gain


@pytest.mark.parametrize("name", ["planted-lexical", "planted-louder-fetchers"])
def test_a_variant_that_does_not_improve_is_as_good_as_the_base(name):
    pairs = pairs_of(28)
    other = accuracy(run(planted(name), pairs.clean).logits, pairs)
    assert abs(other - accuracy(clean_run("planted-base", 28).logits, pairs)) <= 0.15  # 4 prompts of 28


@pytest.mark.parametrize("name", ["planted-permuted-heads", "planted-rotated-values"])
def test_a_null_variant_has_the_logits_of_the_base_and_other_weights(name):
    tokens, base, null = pairs_of(4).clean, planted("planted-base"), planted(name)
    torch.testing.assert_close(run(null, tokens).logits, run(base, tokens).logits, rtol=0, atol=1e-10)
    own, other = (subject.model.transformer.h[0].attn.c_proj.weight for subject in (base, null))
    assert not torch.equal(own, other)


def test_the_circuit_of_the_permuted_model_names_the_same_heads_at_their_new_places():
    base, null = planted("planted-base"), planted("planted-permuted-heads")
    assert base.circuit != null.circuit
    for part, heads in base.parts.items():
        for head, moved in zip(heads, null.parts[part], strict=True):
            assert all(map(torch.equal, head_weights(base, head), head_weights(null, moved)))


def test_single_and_double_precision_agree():
    tokens = pairs_of(4).clean
    single = run(build_planted("planted-base", torch.float32), tokens).logits
    torch.testing.assert_close(single.double(), run(planted("planted-base"), tokens).logits, rtol=0, atol=1e-3)


def test_layer_norm_divides_by_the_same_number_everywhere():
    clean = clean_run("planted-base", 6)
    resid = torch.stack([*clean.resid_pre.values(), clean.resid_final])
    assert (resid.std(-1, correction=0) / (CONSTANT / D_MODEL**0.5) - 1).abs().max() < 1e-3
    assert resid.mean(-1).abs().max() < 1e-10


# Where it does it


def test_the_planted_fetchers_write_the_answer_and_decoys_do_not():
    base = planted("planted-base")
    effects = path_effects("planted-base", 28, "last")
    assert stands_out(effects, base.circuit.groups["value_fetcher"].heads, decoys_of(base), 5)


def test_negative_heads_lower_the_answer_by_more_than_any_decoy_and_hardly_ever_change_it():
    base, pairs = planted("planted-base"), pairs_of(105)
    effects = path_effects("planted-base", 28, "last")
    assert min(effects[head] for head in base.negative) > 2 * max(abs(effects[head]) for head in decoys_of(base))
    without, normal = ablated("planted-base", 105, base.negative, "last"), clean_run("planted-base", 105).logits
    assert (without.argmax(1) == normal.argmax(1)).double().mean() >= 0.9
    assert abs(accuracy(without, pairs) - accuracy(normal, pairs)) <= 0.05  # 0.04 of 300 prompts


@pytest.mark.parametrize("name", ["planted-base", "planted-sharper-fetchers", "planted-strong-negative"])
def test_negative_heads_hurt_on_every_prompt(name):
    """So that a circuit without them is at least as good: on no prompt do they take another object's name away."""
    subject, pairs = planted(name), pairs_of(28)
    normal = logit_difference(clean_run(name, 28).logits, pairs)
    without = logit_difference(ablated(name, 28, subject.negative, "last", by="zero"), pairs)
    assert (without - normal).min() > 0.1


@pytest.mark.parametrize(
    ("group", "receivers", "part"),
    [
        ("position_transmitter", "value_fetcher", 0),
        ("position_detector", "position_transmitter", 2),
        ("structure_reader", "position_detector", 2),
    ],
)
def test_each_group_acts_through_the_next_and_decoys_do_not(group, receivers, part):
    subject = planted("planted-sharper-fetchers")
    groups = subject.circuit.groups
    effects = path_effects(subject.name, 2, groups[group].at, groups[receivers].heads, part)
    assert stands_out(effects, groups[group].heads, decoys_of(subject), 5)
    assert max(abs(effects[head]) for head in decoys_of(subject)) > 0


def test_no_decoy_reads_or_writes_addresses_so_that_it_matters_in_the_model_that_is_most_sensitive_to_them():
    subject = planted("planted-pair")
    groups = subject.circuit.groups
    effects = path_effects(subject.name, 7, "previous_query_label", groups["position_detector"].heads, part=2)
    assert max(abs(effects[head]) for head in decoys_of(subject)) < 0.1  # 7 prompts: noise comes on top


def test_ablating_a_group_takes_the_answer_away_and_ablating_as_many_decoys_does_not():
    subject, pairs = planted("planted-sharper-fetchers"), pairs_of(21)
    normal = accuracy(clean_run(subject.name, 21).logits, pairs)
    decoys = sorted(decoys_of(subject))
    for group in subject.circuit.groups.values():
        assert accuracy(ablated(subject.name, 21, group.heads, group.at), pairs) <= normal - 0.5
        assert accuracy(ablated(subject.name, 21, decoys[::20], group.at), pairs) >= normal - 0.1


def test_the_new_route_does_not_need_the_old_heads_and_the_old_route_not_the_new():
    base, other = planted("planted-base").circuit, planted("planted-new-route").circuit
    heads = [{h for group in c.groups.values() for h in group.heads} for c in (base, other)]
    assert not heads[0] & heads[1]
    assert set(other.groups) == {"value_fetcher", "position_transmitter", "name_binder"}
    for group in other.groups.values():
        assert accuracy(ablated("planted-new-route", 21, group.heads, group.at), pairs_of(21)) <= 0.4


def lost_by_backup(by: str) -> torch.Tensor:
    """Logits that the backup adds, prompt by prompt, while all fetchers are ablated."""
    subject, pairs = planted("planted-backup"), pairs_of(21)
    fetchers = subject.circuit.groups["value_fetcher"].heads
    heads = (fetchers, (*fetchers, *subject.backup))
    with_it, without = (logit_difference(ablated(subject.name, 21, each, "last", by), pairs) for each in heads)
    return with_it - without


@pytest.mark.parametrize("by", ["zero", "mean"])
def test_a_backup_head_takes_over_when_the_fetchers_are_silent(by):
    assert lost_by_backup(by).mean() > 5


def test_a_backup_head_is_idle_while_any_name_is_written():
    subject, pairs = planted("planted-backup"), pairs_of(21)
    normal = logit_difference(clean_run(subject.name, 21).logits, pairs)
    alone = logit_difference(ablated(subject.name, 21, subject.backup, "last"), pairs)
    assert (normal - alone).abs().max() < 0.01
    assert lost_by_backup("resample").abs().max() < 0.01  # the fetchers write another name: not silent


def test_either_of_two_redundant_routes_suffices():
    subject, pairs = planted("planted-redundant"), pairs_of(21)
    one, other = subject.parts["value_fetcher"], subject.parts["label_fetcher"]
    for heads in (one, other):
        assert accuracy(ablated(subject.name, 21, heads, "last", by="mean"), pairs) >= 0.9
    assert accuracy(ablated(subject.name, 21, (*one, *other), "last", by="mean"), pairs) <= 0.4


def test_both_heads_of_the_pair_are_needed():
    subject, pairs = planted("planted-pair"), pairs_of(21)
    assert accuracy(clean_run(subject.name, 21).logits, pairs) >= 0.8
    for head in subject.circuit.groups["position_transmitter"].heads:
        assert accuracy(ablated(subject.name, 21, [head], "last"), pairs) <= 0.6


def test_the_shared_head_serves_two_groups_at_two_roles():
    subject, pairs = planted("planted-shared-head"), pairs_of(21)
    groups = subject.circuit.groups
    (head,) = set(groups["position_detector"].heads) & set(groups["position_transmitter"].heads)
    normal = logit_difference(clean_run(subject.name, 21).logits, pairs)
    for role in ("last", "query_label"):
        assert (logit_difference(ablated(subject.name, 21, [head], role), pairs) - normal).mean() < -1


def test_twenty_heads_share_the_work_of_fetching():
    subject, pairs = planted("planted-spread"), pairs_of(21)
    effects = path_effects(subject.name, 21, "last")
    normal = logit_difference(clean_run(subject.name, 21).logits, pairs).mean()
    fetchers = subject.circuit.groups["value_fetcher"].heads
    assert len(fetchers) == 20
    assert all(-0.15 * normal < effects[head] < 0 for head in fetchers)


# What the truth says


@pytest.mark.parametrize("name", planted_names())
def test_what_is_said_about_a_model_fits_it(name):
    subject = planted(name)
    assert subject.base in planted_names()
    subject.circuit.check_fits(subject.model.config.n_layer, N_HEADS, entity_tracking(7).roles)
    heads = [head for heads in subject.parts.values() for head in heads]
    assert len(set(heads)) + (name == "planted-shared-head") == len(heads)


@pytest.mark.parametrize("name", planted_names())
def test_there_are_five_times_as_many_decoys_as_circuit_heads(name):
    subject = planted(name)
    heads = {head for group in subject.circuit.groups.values() for head in group.heads}
    assert len(decoys_of(subject)) >= 5 * len(heads)


def test_all_decoys_are_active():
    base = planted("planted-base")
    z = counterfactual_run("planted-base", 21).z
    assert all(z[head.layer][:, -1, columns(head)].std(0).max() > 1e-4 for head in decoys_of(base))


@pytest.mark.parametrize("name", IMPROVED_GROUPS)
def test_a_model_differs_from_its_base_in_the_heads_of_the_improved_group_alone(name):
    subject = planted(name)
    base = planted(subject.base)
    differ = {
        head
        for head in all_heads(subject)
        if not all(map(torch.equal, head_weights(subject, head), head_weights(base, head)))
    }
    assert differ == {head for part in subject.improved_parts for head in subject.circuit.groups[part].heads}


@pytest.mark.parametrize("name", ["planted-mlp-gain", "planted-unembedding-gain"])
def test_a_gain_outside_the_heads_leaves_every_head_as_it_was(name):
    mine, base = planted(name).model.state_dict(), planted("planted-base").model.state_dict()
    differ = {key for key in mine if not torch.equal(mine[key], base[key])}
    assert differ
    assert not any("attn" in key or "wte" in key or "wpe" in key or "ln_" in key for key in differ)


def test_another_seed_is_another_planting_and_the_same_seed_the_same():
    base, other = planted("planted-base"), planted("planted-base", seed=1)
    again = build_planted("planted-base", torch.float64)
    assert base.circuit != other.circuit
    assert base.circuit == again.circuit == planted("planted-sharper-fetchers").circuit
    theirs = again.model.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in base.model.state_dict().items())


def test_building_draws_no_global_random_numbers():
    before = torch.get_rng_state()
    build_planted("planted-base", seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_the_tokenizer_knows_every_word_of_the_task(split):
    task, tokenizer = entity_tracking(7), planted("planted-base").tokenizer
    assert task.usable("objects", tokenizer, split).left_out == ()
    assert task.usable("labels", tokenizer).left_out == ()
    text = "The apple is in Box F, the pen is in Box K. Box F contains the"
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_no_word_of_a_planted_model_is_there_twice():
    assert len(set(TOKENS)) == len(TOKENS)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"no planted model 'planted-x'.*planted-base"):
        build_planted("planted-x")
