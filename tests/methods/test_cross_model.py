"""Cross-model patching against its definition, one subset and one prompt at a time, without the engine."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine import Edit
from circuitdiff.engine.window import branched
from circuitdiff.errors import InputError
from circuitdiff.evaluation.shapes import random_group
from circuitdiff.methods.cross_model.activations import read_activations, read_several
from circuitdiff.methods.cross_model.hybrids import basis_of, distance_from_clean, spread
from circuitdiff.methods.cross_model.patching import control_groups, patch_across, patch_across_several, run_controls
from circuitdiff.prompts import buckets
from circuitdiff.stats.shapley import Subset, all_subsets
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import D_HEAD, N_HEADS, N_LAYERS, Subject, as_model, subject
from helpers.two_tiny_models import donor_of

LATE = Group("last", (Head(3, 5), Head(2, 0), Head(3, 1)))
EARLY = Group("previous_query_label", (Head(0, 2), Head(1, 4)))
CIRCUIT = Circuit({"late": LATE, "early": EARLY})
ONE = torch.tensor([0])


def carried(chosen: Subject, tokens: Tensor, layer: int, head: int, at: int, what: str) -> Tensor:
    """What a head of an unedited model carries, by its definition; grouped-query heads expanded."""
    seen = chosen.reference.clean(tokens).seen
    if what == "pattern":
        scores = seen[layer, "q"][:, at, head] @ seen[layer, "k"][0, : at + 1, head].T / D_HEAD**0.5
        return torch.nn.functional.pad(scores.softmax(-1), (0, tokens.shape[1] - at - 1))
    if what == "contribution":
        weight = chosen.reference.projections[layer].weight
        return seen[layer, "z"][:, at, head] @ weight[:, head * D_HEAD : (head + 1) * D_HEAD].T
    return seen[layer, what][:, at, head]


def by_definition(donor: Subject, recipient: Subject, subset: Subset, what: str) -> Tensor:
    """The answer's log probability in the recipient with the donor's values, prompt by prompt."""
    pairs, values = fake_pairs(), []
    for i in range(len(pairs)):
        tokens, edits = pairs.clean[i : i + 1, : pairs.lengths[i]], []
        for name in subset:
            group = CIRCUIT.groups[name]
            at = int(pairs.positions[group.at][i])
            for head in group.heads:
                new = carried(donor, tokens, head.layer, head.index, at, what)
                edits.append(Edit(head.layer, what, at, torch.tensor([head.index]), ONE, new[None, :, None]))  # pyright: ignore
        logits = recipient.reference.run(tokens, edits, 1)[0, 0]
        values.append(logits.log_softmax(0)[pairs.answers[i]])
    return torch.stack(values)


@pytest.mark.parametrize("executor", ["window", "full"])
@pytest.mark.parametrize("what", ["z", "q", "k", "v", "pattern", "contribution"])
@torch.no_grad()
def test_every_subset_agrees_with_its_definition(what, executor):
    donor, recipient = donor_of("llama"), subject("llama")
    found = patch_across(donor.model, recipient.model, CIRCUIT, fake_pairs(), what=what, executor=executor)
    assert list(found.runs) == all_subsets(["early", "late"])
    for subset, ran in found.runs.items():
        expected = by_definition(donor, recipient, subset, what)
        torch.testing.assert_close(ran.answers.log_probs, expected, rtol=1e-10, atol=1e-10)
    apart = [found.runs[frozenset([name])].answers.log_probs - found.recipient.log_probs for name in CIRCUIT.groups]
    assert min(float(change.abs().max()) for change in apart) > 1e-6, "the patches must show"


@torch.no_grad()
def test_the_donor_need_not_be_in_memory_with_the_recipient():
    donor, recipient, pairs = donor_of("llama"), subject("llama"), fake_pairs()
    kept = read_activations(donor.model, pairs, CIRCUIT.groups.values())
    n_values = sum(values.numel() for layers in kept.values.values() for values in layers.values())
    assert n_values == len(pairs) * D_HEAD * len(CIRCUIT), "nothing but the group's heads at their roles"
    one, other = (patch_across(source, recipient.model, CIRCUIT, pairs) for source in (kept, donor.model))
    for subset in one.runs:
        assert torch.equal(one.runs[subset].answers.log_probs, other.runs[subset].answers.log_probs)


@torch.no_grad()
def test_the_recipient_patched_into_itself_is_itself():
    model, pairs = subject("qwen3").model, fake_pairs()
    full = patch_across(model, model, CIRCUIT, pairs, executor="full")
    window = patch_across(model, model, CIRCUIT, pairs)
    assert full.noise_floor == 0.0
    assert window.noise_floor < 1e-12
    for found in (full, window):
        assert all(float(ran.distance.max()) < 1e-10 for ran in found.runs.values())
        assert "its interval covers 0" in (found.attribution().together.undefined or "")


@torch.no_grad()
def test_heads_of_a_lone_group_are_its_parts():
    donor, recipient, pairs = donor_of("llama"), subject("llama"), fake_pairs()
    theirs = read_several(donor.model, pairs, [LATE], ["z"])
    found = patch_across_several(theirs, recipient.model, LATE, pairs, per_head=True)["z"]
    assert found.order == ("2.0", "3.1", "3.5")
    whole = patch_across(donor.model, recipient.model, LATE, pairs)
    together = found.runs[frozenset(found.order)].answers.log_probs
    torch.testing.assert_close(together, whole.runs[frozenset(["group"])].answers.log_probs, rtol=0, atol=1e-12)


def test_groups_enter_last_found_first_unless_said_otherwise():
    donor, recipient, pairs = donor_of("llama"), subject("llama"), fake_pairs()
    assert patch_across(donor.model, recipient.model, CIRCUIT, pairs).order == ("early", "late")
    turned = dict(reversed(CIRCUIT.groups.items()))
    assert patch_across(donor.model, recipient.model, turned, pairs).order == ("late", "early")


@torch.no_grad()
def test_controls_are_what_they_are_called():
    donor, recipient, pairs = donor_of("llama"), subject("llama"), fake_pairs()
    chosen = control_groups(LATE, N_LAYERS, N_HEADS, n_random=3, other_role="query_label")
    kept = read_activations(donor.model, pairs, [LATE, *chosen])
    found = run_controls(kept, recipient.model, LATE, chosen, pairs)
    assert torch.equal(
        found.nothing.answers.log_probs, patch_across(kept, recipient.model, LATE, pairs).recipient.log_probs
    )
    for group, ran in [(LATE, found.group), (chosen.elsewhere, found.elsewhere)]:
        alone = patch_across(kept, recipient.model, group, pairs).runs[frozenset(["group"])]
        torch.testing.assert_close(ran.answers.log_probs, alone.answers.log_probs, rtol=0, atol=1e-12)
    assert len(found.same_layers) == 3
    for ran in (*found.same_layers, found.noise, found.scaled):
        assert (ran.answers.log_probs - found.nothing.answers.log_probs).abs().max() > 1e-6


@torch.no_grad()
def test_noise_is_as_far_from_the_recipients_values_as_the_donors_and_scaling_keeps_directions():
    from circuitdiff.methods.cross_model.patching import _noise, _scaled

    g = torch.Generator().manual_seed(0)
    donor, own = (torch.randn(5, 2, 7, generator=g, dtype=torch.float64) for _ in range(2))
    donor = 3 * donor
    noise = _noise(donor, own, g)
    torch.testing.assert_close((noise - own).norm(dim=-1), (donor - own).norm(dim=-1))
    assert (noise - donor).norm() > 0.1
    scaled = _scaled(donor, own)
    ratio = scaled / own
    torch.testing.assert_close(ratio, ratio[:1, :, :1].expand_as(ratio))
    torch.testing.assert_close(scaled.square().sum((0, 2)), donor.square().sum((0, 2)))


def test_random_groups_have_the_groups_layers_and_none_of_its_heads():
    group = Group("last", (Head(1, 0), Head(1, 3), Head(3, 5)))
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        drawn = random_group(group, N_LAYERS, N_HEADS, g)
        assert sorted(head.layer for head in drawn.heads) == [1, 1, 3]
        assert len(set(drawn.heads)) == 3
        assert not set(drawn.heads) & set(group.heads)


def test_where_a_layer_has_too_few_others_the_layers_next_to_it_are_drawn_from():
    g = torch.Generator().manual_seed(0)
    most = Group("last", tuple(Head(2, i) for i in range(N_HEADS - 1)))
    layers = set()
    for _ in range(50):
        drawn = random_group(most, N_LAYERS, N_HEADS, g).heads
        assert len(set(drawn)) == N_HEADS - 1
        assert not set(drawn) & set(most.heads)
        layers |= {head.layer for head in drawn}
    assert layers == {1, 2, 3}
    half = Group("last", tuple(Head(i, j) for i in range(N_LAYERS // 2) for j in range(N_HEADS)))
    everything_else = {Head(i, j) for i in range(N_LAYERS // 2, N_LAYERS) for j in range(N_HEADS)}
    assert set(random_group(half, N_LAYERS, N_HEADS, g).heads) == everything_else
    more = Group("last", (*half.heads, Head(N_LAYERS - 1, 0)))
    assert not control_groups(more, N_LAYERS, N_HEADS).same_layers
    with pytest.raises(InputError, match=f"of the model's {N_LAYERS * N_HEADS} heads {len(more.heads)} are to be"):
        random_group(more, N_LAYERS, N_HEADS, g)


def test_random_groups_leave_out_heads_that_are_touched_along_while_there_are_others():
    g, group = torch.Generator().manual_seed(0), Group("last", (Head(1, 0),))
    touched = [Head(1, i) for i in range(1, N_HEADS - 1)]
    for _ in range(20):
        assert random_group(group, N_LAYERS, N_HEADS, g, besides=touched).heads == (Head(1, N_HEADS - 1),)
    everyone = [Head(1, i) for i in range(1, N_HEADS)]
    assert random_group(group, N_LAYERS, N_HEADS, g, besides=everyone).heads[0] in everyone


def test_a_head_of_two_groups_is_refused_where_its_contribution_would_be_patched_twice():
    recipient, donor = subject("llama"), donor_of("llama")
    groups = {"a": Group("last", (Head(1, 0), Head(2, 1))), "b": Group("last", (Head(2, 1),))}
    with pytest.raises(InputError, match=r"head 2\.1 at 'last' is in both a and b"):
        patch_across(donor.model, recipient.model, groups, fake_pairs(), what="contribution")
    patch_across(donor.model, recipient.model, groups, fake_pairs())


def test_a_hybrid_between_recipient_and_donor_is_near_and_one_beside_is_far():
    recipient, donor = torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]])
    ends = {"half way": [2.0, 0.0], "beside": [2.0, 3.0], "beyond": [7.0, 4.0], "before": [-3.0, 4.0]}
    far = {name: float(distance_from_clean(torch.tensor([end]), donor, recipient, 2.0)) for name, end in ends.items()}
    assert far == pytest.approx({"half way": 0.0, "beside": 1.5, "beyond": 2.5, "before": 2.5})
    assert float(distance_from_clean(torch.tensor([[3.0, 4.0]]), recipient, recipient, 1.0)) == pytest.approx(5.0)
    assert spread(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])) == pytest.approx((5 + 1 + 18**0.5) / 3)


@torch.no_grad()
def test_values_in_another_basis_are_found_out():
    """On 40 prompts of random values: the same, turned, and unrelated ones."""
    read = read_activations(subject("llama").model, fake_pairs(), [LATE])
    g = torch.Generator().manual_seed(0)

    def draw() -> dict[int, Tensor]:
        layers = read.heads["last"].items()
        return {n: torch.randn(40, len(heads), D_HEAD, generator=g, dtype=torch.float64) for n, heads in layers}

    turn = torch.linalg.qr(torch.randn(D_HEAD, D_HEAD, generator=g, dtype=torch.float64)).Q
    own = replace(read, values={"last": draw()}, logits=torch.zeros(40, 3))
    turned = replace(own, values={"last": {n: x @ turn for n, x in own.values["last"].items()}})
    unrelated = replace(own, values={"last": draw()})
    assert basis_of(own, own, LATE) == pytest.approx((1, 1))
    assert basis_of(turned, own, LATE).turned == pytest.approx(1)
    assert basis_of(turned, own, LATE).as_it_is < 0.5
    by_chance = basis_of(unrelated, own, LATE)
    assert by_chance.turned - by_chance.as_it_is < 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"what": "v"}, r"donor's z was read, but v is to be patched"),
        ({"group": Group("last", (Head(1, 1),))}, r"not read at head 1\.1 of 'group' at 'last'"),
        ({"group": Group("nowhere", (Head(1, 1),))}, r"not read at head 1\.1 of 'group' at 'nowhere'"),
        ({"group": {}}, r"the circuit has none"),
        ({"group": Circuit({"a": LATE, "b": Group("last", ())})}, r"needs heads .* b has none"),
        ({"group": {str(i): LATE for i in range(7)}}, r"at most 6 groups is patched; got 7"),
    ],
)
def test_what_cannot_be_patched_is_said_in_one_line(change, message):
    donor, recipient, pairs = donor_of("llama"), subject("llama"), fake_pairs()
    kept = read_activations(donor.model, pairs, [LATE])
    wanted = {"group": LATE} | change
    with pytest.raises(InputError, match=message):
        patch_across(kept, recipient.model, wanted.pop("group"), pairs, **wanted)
    with pytest.raises(InputError, match="per_head takes a single group"):
        patch_across_several({"z": kept}, recipient.model, CIRCUIT, pairs, per_head=True)


def test_prompts_that_the_donor_was_not_read_on_are_refused():
    kept = read_activations(donor_of("llama").model, fake_pairs(), [LATE])
    with pytest.raises(InputError, match="read on 5 other prompts than these 3"):
        patch_across(kept, subject("llama").model, LATE, fake_pairs().select(torch.arange(3)))


@pytest.mark.parametrize(
    ("role", "message"), [("nowhere", "no role 'nowhere'"), ("absent", "no place in some prompts")]
)
def test_a_role_that_is_not_there_is_an_error(role, message):
    with pytest.raises(InputError, match=message):
        patch_across(donor_of("llama").model, subject("llama").model, Group(role, (Head(1, 1),)), fake_pairs())


def test_a_head_that_is_not_there_is_an_error():
    with pytest.raises(InputError, match=r"head 1\.9 does not exist: llama has 4 layers of 6 heads"):
        patch_across(donor_of("llama").model, subject("llama").model, Group("last", (Head(1, 9),)), fake_pairs())


@pytest.mark.parametrize(
    ("donor", "message"),
    [
        (
            "mistral",
            r"mistral cannot be patched into llama: .*architecture \(MistralForCausalLM, not LlamaForCausalLM\)",
        ),
        ("gpt2", r"key/value heads \(6, not 2\), width \(60, not 42\)"),
    ],
)
def test_models_that_do_not_fit_together_are_refused_with_what_differs(donor, message):
    with pytest.raises(InputError, match=message):
        patch_across(subject(donor).model, subject("llama").model, LATE, fake_pairs())


def test_another_tokenizer_is_refused_by_the_tokens_that_differ():
    recipient, pairs = subject("llama").model, fake_pairs()
    token = int(pairs.clean[0, 1])
    names = [f"w{i}" for i in range(token + 1)]
    ours, theirs = (
        replace(recipient, name=n, tokenizer=_words(w)) for n, w in (("own", names), ("other", names[::-1]))
    )
    with pytest.raises(InputError, match=r"differ in tokens of the prompts \(\d+ is 'w\d+', not 'w\d+'.*\)"):
        patch_across(theirs, ours, LATE, pairs)


def _words(names):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[0])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))


def extended(model, n_tokens=3):
    """The same model with tokens added behind the others, which answer as often as they were pushed to."""
    module = copy.deepcopy(model.module)
    module.resize_token_embeddings(model.d_vocab + n_tokens, mean_resizing=False)
    return as_model("extended", module)


@pytest.mark.parametrize("swap", [False, True])
def test_added_tokens_change_nothing_of_what_is_patched(swap):
    recipient, donor, pairs = subject("llama").model, donor_of("llama").model, fake_pairs()
    plain = patch_across(donor, recipient, CIRCUIT, pairs)
    wide = patch_across(*((donor, extended(recipient)) if swap else (extended(donor), recipient)), CIRCUIT, pairs)
    for subset, ran in plain.runs.items():
        torch.testing.assert_close(
            wide.runs[subset].answers.logit_differences, ran.answers.logit_differences, rtol=1e-9, atol=1e-9
        )
        torch.testing.assert_close(wide.runs[subset].distance, ran.distance, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_subsets_that_begin_alike_build_on_one_run(monkeypatch):
    """The early group begins half of the subsets of each kind: one run for each kind and bucket, not one a subset."""
    recipient, donor, pairs = subject("llama").model, donor_of("llama").model, fake_pairs()
    begun: list[tuple[int, int]] = []

    def counted(batch, edits, start):
        begun.append((batch.length, batch.n_prompts))
        return branched(batch, edits, start)

    monkeypatch.setattr("circuitdiff.evaluation.edited.branched", counted)
    kinds = ["z", "contribution"]
    theirs = read_several(donor, pairs, CIRCUIT.groups.values(), kinds)
    n_buckets = len(buckets(pairs.clean_prompts, CIRCUIT.roles))
    found = patch_across_several(theirs, recipient, CIRCUIT, pairs)
    assert len(begun) == len(kinds) * n_buckets
    for what in kinds:
        alone = patch_across(theirs[what], recipient, CIRCUIT, pairs, what=what)
        for subset, ran in alone.runs.items():
            torch.testing.assert_close(found[what].runs[subset].answers.log_probs, ran.answers.log_probs)
