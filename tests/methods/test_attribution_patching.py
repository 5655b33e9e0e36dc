"""Attribution against its definition, one head, role and prompt at a time, by the reference engine's own gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine import Edit, Site
from circuitdiff.errors import InputError
from circuitdiff.evaluation import mean_activations
from circuitdiff.methods.attribution_patching import Attribution, attribution, path_attribution
from circuitdiff.methods.path_patching import path_effects
from circuitdiff.prompts import Pairs
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import N_HEADS, N_LAYERS, Subject, subject

ONE = torch.tensor([0])
EVERYONE = torch.arange(N_HEADS)
ROLES = ["query_label", "previous_query_label", "last"]
# In llama and gemma2 a norm computes in float32, and its gradient is as exact as that.
EXACT, ROUNDED = {"rtol": 1e-10, "atol": 1e-10}, {"rtol": 1e-6, "atol": 1e-8}
RECEIVERS = [Head(2, 1), Head(2, 4), Head(3, 5)]
SOME = [Head(0, 3), Head(1, 2), Head(2, 5)]


def logit_difference(logits: torch.Tensor, pairs: Pairs, i: int) -> torch.Tensor:
    return logits[0, pairs.answers[i]] - logits[0, pairs.foils[i]].max()


def places(pairs: Pairs, i: int, at: str) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    clean = pairs.clean[i : i + 1, : pairs.lengths[i]]
    other = pairs.counterfactual[i : i + 1, : pairs.counterfactual_lengths[i]]
    return clean, other, int(pairs.positions[at][i]), int(pairs.counterfactual_positions[at][i])


def by_definition(chosen: Subject, pairs: Pairs, i: int, head: Head, at: str, others: list[str], keep: float) -> float:
    """Minus the slope by this head's keep, with those of all other heads and roles held at `keep`."""
    mine = torch.tensor(keep, dtype=torch.float64, requires_grad=True)
    edits = []
    for layer in range(N_LAYERS):
        for role in others:
            clean, other, here, there = places(pairs, i, role)
            source = chosen.reference.clean(other).seen[layer, "z"][:, there]
            keeps = [mine if (role, Head(layer, j)) == (at, head) else mine.new_tensor(keep) for j in range(N_HEADS)]
            edits.append(Edit(layer, "z", here, EVERYONE, ONE, source[None], torch.stack(keeps)[None, None]))
    clean = pairs.clean[i : i + 1, : pairs.lengths[i]]
    value = logit_difference(chosen.reference.run(clean, edits, 1)[0], pairs, i)
    return -float(torch.autograd.grad(value, mine)[0])


@pytest.mark.parametrize(("architecture", "close"), [("gpt2", EXACT), ("llama", ROUNDED), ("gemma2", ROUNDED)])
def test_a_score_is_minus_the_slope_by_the_heads_own_keep(architecture, close):
    chosen, pairs = subject(architecture), fake_pairs()
    found = attribution(chosen.model, pairs, ROLES)
    for at in ROLES:
        for head in SOME:
            expected = [by_definition(chosen, pairs, i, head, at, [at], 1.0) for i in range(len(pairs))]
            actual = found.per_prompt[at][head.layer, head.index]
            torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), **close)
    assert found.per_prompt["last"].abs().min() > 0


def test_integrated_gradients_are_the_mean_of_slopes_with_all_heads_moved_together():
    chosen, pairs, roles, steps = subject("gpt2"), fake_pairs(), ["query_label", "last"], 3
    found = attribution(chosen.model, pairs, roles, steps=steps)
    plain = attribution(chosen.model, pairs, roles)
    for head in SOME:
        expected = [
            sum(by_definition(chosen, pairs, i, head, "last", roles, (2 * k + 1) / 6) for k in range(steps)) / steps
            for i in range(len(pairs))
        ]
        actual = found.per_prompt["last"][head.layer, head.index]
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), **EXACT)
        assert not torch.allclose(actual, plain.per_prompt["last"][head.layer, head.index])


PATHS = {
    "direct": ("last", None, None),
    "via_q": ("last", "q", None),
    "via_k": ("previous_query_label", "k", None),
    "via_v_read_at_one_role": ("previous_query_label", "v", "query_label"),
}


def along_a_path(chosen: Subject, pairs: Pairs, i: int, head: Head, at: str, via, receivers_at) -> float:
    """Minus the slope by this head's keep where all others are frozen: only it can move."""
    clean, other, here, there = places(pairs, i, at)
    mine = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    own = chosen.reference.clean(clean).seen[head.layer, "z"][:, here].detach()
    source = chosen.reference.clean(other).seen[head.layer, "z"][:, there].detach()
    is_sender = (head.index == EVERYONE)[None, :, None]
    z = torch.where(is_sender, mine * own + (1 - mine) * source, own)
    edits = [Edit(head.layer, "z", here, EVERYONE, ONE, z[None])]
    if via is None:
        logits = chosen.reference.frozen(clean, edits, 1, here)
    else:
        layers = sorted({each.layer for each in RECEIVERS})
        sites = [Site(n, via, here, torch.tensor([r.index for r in RECEIVERS if r.layer == n])) for n in layers]
        read_at = None if receivers_at is None else int(pairs.positions[receivers_at][i])
        logits = chosen.reference.path_patched(clean, edits, 1, here, sites, read_at)
    return -float(torch.autograd.grad(logit_difference(logits[0], pairs, i), mine)[0])


@pytest.mark.parametrize("executor", ["window", "full"])
@pytest.mark.parametrize("path", PATHS)
def test_along_a_path_only_what_the_receivers_get_counts(path, executor):
    at, via, receivers_at = PATHS[path]
    chosen, pairs = subject("gpt2"), fake_pairs()
    receivers = None if via is None else RECEIVERS
    found = path_attribution(chosen.model, pairs, at, receivers, via, receivers_at, executor=executor).per_prompt[at]
    for head in SOME:
        expected = torch.tensor(
            [along_a_path(chosen, pairs, i, head, at, via, receivers_at) for i in range(len(pairs))],
            dtype=torch.float64,
        )
        actual = found[head.layer, head.index]
        torch.testing.assert_close(actual, expected, **EXACT)
    if receivers:
        assert (found[3:] == 0).all(), "what the last receiver cannot see"
        assert found[0].abs().max() > 0


def test_roles_at_one_token_are_patched_once_and_have_the_same_scores():
    pairs = fake_pairs()
    prompts = {
        name: replace(each, positions=each.positions | {"again": each.positions["last"]})
        for name in ("clean_prompts", "counterfactual_prompts")
        for each in [getattr(pairs, name)]
    }
    both = attribution(subject("llama").model, replace(pairs, **prompts), ["last", "again"], steps=3).per_prompt
    alone = attribution(subject("llama").model, pairs, "last", steps=3).per_prompt["last"]
    torch.testing.assert_close(both["last"], alone)
    torch.testing.assert_close(both["again"], alone)


def test_no_head_comes_before_the_first_layer():
    found = path_attribution(subject("llama").model, fake_pairs(), "last", [Head(0, 1)], "q")
    assert (found.per_prompt["last"] == 0).all()


def test_a_metric_without_a_gradient_is_refused():
    with pytest.raises(InputError, match="no gradient"):
        attribution(subject("llama").model, fake_pairs(), "last", metric=lambda logits, _: logits.argmax(-1).double())


def test_the_executors_agree():
    chosen, pairs = subject("llama"), fake_pairs()
    window, full = (attribution(chosen.model, pairs, ROLES, executor=name, steps=2) for name in ("window", "full"))
    for role in ROLES:
        torch.testing.assert_close(window.per_prompt[role], full.per_prompt[role], **ROUNDED)


def test_a_head_that_no_later_position_reads_scores_zero_before_the_last_token():
    found = attribution(subject("llama").model, fake_pairs(), ["query_label", "last"]).per_prompt
    assert (found["query_label"][N_LAYERS - 1] == 0).all()
    assert (found["last"][N_LAYERS - 1] != 0).all()
    assert found["last"].shape == (N_LAYERS, N_HEADS, len(fake_pairs()))


def test_other_metrics_have_the_sign_of_path_patching():
    """Of one head whose patch is small, the estimate is near the exact effect, in the metric's own unit."""
    chosen, pairs = subject("llama"), fake_pairs()
    for metric in ("logit_difference", "log_prob"):
        exact = path_effects(chosen.model, pairs, "last", metric=metric).per_prompt
        estimate = path_attribution(chosen.model, pairs, "last", metric=metric).per_prompt["last"]
        apart = torch.corrcoef(torch.stack([exact.flatten(), estimate.flatten()]))[0, 1]
        assert apart > 0.8


def test_scores_and_intervals_are_of_the_prompts():
    found = attribution(subject("llama").model, fake_pairs(), "last")
    assert isinstance(found, Attribution)
    torch.testing.assert_close(found.scores["last"], found.per_prompt["last"].mean(-1))
    bounds = found.intervals()["last"]
    assert (bounds.low <= bounds.value).all()
    assert (bounds.value <= bounds.high).all()
    assert found.scores["last"].shape == (N_LAYERS, N_HEADS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"at": "nowhere"}, "no role 'nowhere'"),
        ({"at": "absent"}, "no place in some prompts"),
        ({"at": "last", "steps": 0}, "1 step or more; got 0"),
        ({"at": "last", "metric": "wit"}, "expected a metric"),
    ],
)
def test_what_attribution_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        attribution(subject("llama").model, fake_pairs(), **arguments)


def test_heads_that_are_held_carry_their_means_and_score_nothing():
    chosen, pairs, roles = subject("gpt2"), fake_pairs(), ["query_label", "last"]
    held = Circuit({"g": Group("query_label", (Head(1, 2), Head(0, 4))), "h": Group("last", (Head(2, 1),))})
    means = mean_activations(chosen.model, pairs)
    found = attribution(chosen.model, pairs, roles, held=held, means=means)
    for at, head in (("last", Head(0, 3)), ("last", Head(2, 5)), ("query_label", Head(1, 3))):
        expected = [slope_beside_held(chosen, pairs, i, head, at, held, means) for i in range(len(pairs))]
        actual = found.per_prompt[at][head.layer, head.index]
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), **EXACT)
    for group in held.groups.values():
        assert all((found.per_prompt[group.at][head.layer, head.index] == 0).all() for head in group.heads)
    plain = attribution(chosen.model, pairs, roles)
    assert not torch.allclose(found.per_prompt["last"][0, 3], plain.per_prompt["last"][0, 3])


def test_heads_are_not_held_without_their_means():
    held = Circuit({"g": Group("last", (Head(1, 2),))})
    with pytest.raises(InputError, match="name both, held and means, or neither"):
        attribution(subject("gpt2").model, fake_pairs(), "last", held=held)


def slope_beside_held(chosen: Subject, pairs: Pairs, i: int, head: Head, at: str, held: Circuit, means) -> float:
    clean, other, here, there = places(pairs, i, at)
    mine = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    source = chosen.reference.clean(other).seen[head.layer, "z"][:, there]
    edits = [
        Edit(head.layer, "z", here, torch.tensor([head.index]), ONE, source[None, :, [head.index]], mine.view(1, 1, 1))
    ]
    for group in held.groups.values():
        for each in group.heads:
            place = int(pairs.positions[group.at][i])
            slot = means.slot_names.index(pairs.clean_prompts.slot_names[int(pairs.clean_prompts.slots[i, place])])
            value = means.values[slot, each.layer, each.index][None, None, None]
            edits.append(Edit(each.layer, "z", place, torch.tensor([each.index]), ONE, value))
    value = logit_difference(chosen.reference.run(clean, edits, 1)[0], pairs, i)
    return -float(torch.autograd.grad(value, mine)[0])


def test_what_is_held_at_a_role_is_held_at_another_role_of_the_same_token():
    model, pairs = subject("gpt2").model, fake_pairs()
    for positions in (pairs.positions, pairs.counterfactual_positions):
        positions["again"] = positions["query_label"].clone()
    roles, means, heads = ["query_label", "again", "last"], mean_activations(model, pairs), (Head(1, 2), Head(0, 4))
    here, there = (
        attribution(model, pairs, roles, held=Circuit({"g": Group(role, heads)}), means=means).per_prompt
        for role in ("query_label", "again")
    )
    for role in roles:
        torch.testing.assert_close(here[role], there[role])
    assert not there["query_label"][1, 2].any()
    assert there["query_label"][1, 3].any()
