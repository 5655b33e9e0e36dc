"""Residual streams exchanged, and ceilings by role, against their definitions: one prompt at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine import ResidualEdit
from circuitdiff.errors import InputError
from circuitdiff.evaluation import Means, evaluate_circuit, evaluate_model, mean_activations
from circuitdiff.methods.locate import residual_patching, role_ceiling
from circuitdiff.prompts import Pairs, halves
from circuitdiff.stats.intervals import ratio_interval
from helpers.fake_pairs import QUERY_LABEL, fake_pairs, logit_difference, prompt_set
from helpers.tiny_models import N_HEADS, N_LAYERS, subject

ROLES = ("query_label", "last", "previous_query_label")


def uneven_pairs() -> Pairs:
    """Counterfactuals of other lengths, with a role at another position."""
    other = prompt_set(2, (12, 13, 12, 13, 10))
    positions = {**other.positions, "query_label": torch.tensor(QUERY_LABEL) - torch.tensor([1, 2, 1, 3, 1])}
    return replace(fake_pairs(own_answers=True), counterfactual_prompts=replace(other, positions=positions))


def by_definition(architecture: str, pairs: Pairs, direction: str, layers: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Effects [layer, role, prompt] on the logit difference of the clean prompt's answer, and the distance [prompt]."""
    reference = subject(architecture).reference
    effects, distance = torch.empty(len(layers), len(ROLES), len(pairs)).double(), torch.empty(len(pairs)).double()
    for i in range(len(pairs)):
        kept, put_in = pairs.clean_prompts, pairs.counterfactual_prompts
        if direction == "restore":
            kept, put_in = put_in, kept
        own, source = (each.tokens[i : i + 1, : each.lengths[i]] for each in (kept, put_in))
        hidden = reference.module(input_ids=source, output_hidden_states=True, use_cache=False).hidden_states
        plain, other = (logit_difference(reference.logits(tokens), pairs, i) for tokens in (own, source))
        distance[i] = other - plain if direction == "restore" else plain - other
        for j, layer in enumerate(layers):
            for k, role in enumerate(ROLES):
                value = hidden[layer][:, put_in.positions[role][i]][None]
                edit = ResidualEdit(layer, int(kept.positions[role][i]), torch.tensor([0]), value)
                effects[j, k, i] = logit_difference(reference.run(own, [edit], 1)[0], pairs, i) - plain
    return effects, distance


@pytest.mark.parametrize("executor", ["window", "full"])
@pytest.mark.parametrize("direction", ["restore", "remove"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
@torch.no_grad()
def test_effects_and_distances_agree_with_their_definition(architecture, direction, executor):
    pairs, layers = uneven_pairs(), (0, 1, 3)
    found = residual_patching(
        subject(architecture).model, pairs, ROLES, direction=direction, layers=layers, executor=executor
    )
    effects, distance = by_definition(architecture, pairs, direction, layers)
    torch.testing.assert_close(found.per_prompt, effects, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.distance, distance, rtol=1e-9, atol=1e-9)
    assert (found.layers, found.roles, found.metric) == (layers, ROLES, "logit_difference")
    assert effects.abs().amax(-1).min() > 1e-3, "every place must show"


@torch.no_grad()
def test_what_prompts_share_memory_and_a_metric_of_ones_own_change_no_effect():
    model, pairs = subject("llama").model, uneven_pairs()
    whole = residual_patching(model, pairs, ROLES, direction="remove", metric="log_prob")
    few = residual_patching(model, pairs, ROLES, direction="remove", metric="log_prob", memory_gb=1e-5)
    torch.testing.assert_close(few.per_prompt, whole.per_prompt, rtol=1e-9, atol=1e-9)

    def own(logits: Tensor, prompt: Tensor) -> Tensor:
        return logits.log_softmax(1)[torch.arange(len(prompt)), pairs.answers[prompt]]

    mine = residual_patching(model, pairs, ROLES, direction="remove", metric=own)
    torch.testing.assert_close(mine.per_prompt, whole.per_prompt, rtol=1e-9, atol=1e-9)
    assert mine.metric == "own"


def test_shares_are_mean_effects_over_the_mean_distance():
    model, pairs = subject("llama").model, uneven_pairs()
    found = residual_patching(model, pairs, ["last"], direction="restore")
    toward = replace(found, distance=found.distance.abs() + 1)
    shares, table = toward.shares(), toward.to_pandas()
    for i in range(N_LAYERS):
        expected = ratio_interval(toward.per_prompt[i, 0].numpy(), toward.distance.numpy(), pairs.scenarios.numpy())
        np.testing.assert_allclose([bound[i, 0] for bound in shares], expected[:3])
        mean = float(found.per_prompt[i, 0].mean())
        assert table.loc[i, "effect"] == pytest.approx(mean)
        assert table.loc[i, "share"] == pytest.approx(mean / float(toward.distance.mean()), nan_ok=True)
    assert np.isnan(replace(found, distance=-toward.distance).shares().value).all(), "no distance, no share"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roles": ["nowhere"]}, "no role 'nowhere'"),
        ({"roles": ["last", "absent"]}, "role 'absent' has no place in some prompts"),
        ({"roles": []}, "no role was named"),
        ({"layers": [4]}, r"layers are from 0 to 3 in llama; got \[4\]"),
        ({"layers": []}, "layers are from 0 to 3"),
        ({"direction": "denoise"}, "direction must be 'restore' or 'remove'; got 'denoise'"),
        ({"metric": "loss"}, "expected a metric"),
    ],
)
def test_what_cannot_be_exchanged_is_said_in_one_line(change, message):
    arguments = {"roles": ["last"]} | change
    with pytest.raises(InputError, match=message):
        residual_patching(subject("llama").model, fake_pairs(), **arguments)


def test_a_role_that_a_counterfactual_lacks_is_refused():
    pairs = fake_pairs()
    other = pairs.counterfactual_prompts
    lacking = replace(
        other, positions={**other.positions, "last": other.positions["last"].index_fill(0, torch.tensor(2), -1)}
    )
    with pytest.raises(InputError, match="role 'last' has no place"):
        residual_patching(subject("llama").model, replace(pairs, counterfactual_prompts=lacking), ["last"])


def many_pairs(n: int = 12) -> Pairs:
    """The fake pairs again and again, each a scenario of its own."""
    rows = torch.arange(n) % 5
    return replace(fake_pairs().select(rows), scenarios=torch.arange(n), queried=torch.arange(n) % 2)


def kept(roles: list[str]) -> Circuit:
    heads = tuple(Head(layer, i) for layer in range(N_LAYERS) for i in range(N_HEADS))
    return Circuit({role: Group(role, heads) for role in roles})


@pytest.fixture(scope="module")
def ceiling():
    model, pairs = subject("llama").model, many_pairs()
    means: dict[str, Means] = {by: mean_activations(model, pairs, by) for by in ("slot", "kind")}
    steps: list[tuple[int, int]] = []
    found = role_ceiling(model, pairs, means, ROLES, progress=lambda *each: steps.append(each))
    assert steps == [(n, 5) for n in range(1, 6)]
    return model, pairs, means, found


def test_each_role_is_the_best_beside_those_before_it_on_half_of_the_scenarios(ceiling):
    model, pairs, means, found = ceiling
    choosing, _ = halves(pairs)
    left, chosen = list(ROLES), []
    for role in found.roles:
        alone = {r: evaluate_circuit(model, kept([*chosen, r]), choosing, means["slot"]) for r in left}
        best = max(left, key=lambda r: (float(alone[r].hits.double().mean()), float(alone[r].logit_differences.mean())))
        assert role == best
        chosen.append(role)
        left.remove(role)
    assert left == []


def test_what_is_told_is_of_the_other_half_with_everything_else_at_its_mean(ceiling):
    model, pairs, means, found = ceiling
    _, judging = halves(pairs)
    assert list(found.alone) == ["slot", "kind"]
    for by, its in found.alone.items():
        assert len(its) == len(ROLES) + 1
        for n, answers in enumerate(its):
            expected = evaluate_circuit(model, kept(list(found.roles[:n])), judging, means[by])
            torch.testing.assert_close(answers.log_probs, expected.log_probs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.model.log_probs, evaluate_model(model, judging).log_probs)
    rows = found.to_pandas()
    assert rows["roles"].tolist() == 2 * [", ".join(found.roles[:n]) for n in range(len(ROLES) + 1)]


def test_hits_decide_which_role_is_best_and_the_logit_difference_among_equals(ceiling, monkeypatch):
    model, pairs, means, _ = ceiling
    plain = evaluate_model(model, halves(pairs)[0])
    scores = {"query_label": (0, 9.0), "last": (1, 2.0), "previous_query_label": (1, 3.0)}

    def invented(model, circuits, pairs, *args, **kwargs):
        best = [max((scores[role] for role in each.roles), default=(0, 0.0)) for each in circuits]
        ones = torch.ones(len(pairs))
        return [replace(plain, hits=ones * hit > 0, logit_differences=ones * difference) for hit, difference in best]

    monkeypatch.setattr("circuitdiff.methods.locate.evaluate_circuits", invented)
    assert role_ceiling(model, pairs, means, ROLES).roles == ("previous_query_label", "query_label", "last")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roles": []}, "got 0 and 1"),
        ({"replaced_by": {}}, "got 1 and 0"),
        ({"roles": ["absent"]}, "role 'absent' has no place"),
        ({"pairs": fake_pairs().select(torch.arange(4))}, "at least 4 scenarios; got 3"),
    ],
)
def test_a_ceiling_needs_roles_replacements_and_scenarios(change, message):
    arguments = {"pairs": fake_pairs(), "replaced_by": {"zero": "zero"}, "roles": ["last"]} | change
    with pytest.raises(InputError, match=message):
        role_ceiling(subject("llama").model, **arguments)
