"""A head's own weights, found by gradients, against what changing them does; and weights swapped for a while."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config

from circuitdiff.engine.attention import AttentionCall, attend, expand_kv, handled_by
from circuitdiff.engine.mixtures import Mixture, mixtures_of
from circuitdiff.engine.weights import Slice, complement, head_slices, sharing_heads, swapped
from circuitdiff.errors import InputError
from helpers.tiny_models import ARCHITECTURES, D_HEAD, N_HEADS, N_KV_HEADS, as_model, random_tokens, randomise, subject
from helpers.two_tiny_models import donor_of

LAYER, HEADS = 1, [1, 5]
UNDER_ONE_NORM = ("olmo2",)  # its norm is over all heads' q, and over all heads' k
SLICEABLE = [a for a in ARCHITECTURES if a not in UNDER_ONE_NORM]


@torch.no_grad()
def seen(model, tokens: Tensor) -> dict[str, Tensor]:
    """q, k and v per query head, and what the attention writes when every z is 1, all in layer `LAYER`."""
    found: dict[str, Tensor] = {}

    def handler(call: AttentionCall) -> Tensor:
        z = attend(call)
        if call.layer != LAYER:
            return z
        n_heads = call.q.shape[1]
        found.update(q=call.q, k=expand_kv(call.k, n_heads), v=expand_kv(call.v, n_heads))
        for head in range(n_heads):
            only = torch.zeros_like(z)
            only[:, :, head] = 1
            found[f"o of {head}"] = model.projections[LAYER](only.flatten(2))
        return z

    with handled_by(handler):
        model.forward(tokens)
    return found


def same_weights(model, other, slices) -> bool:
    return not any(mixtures_of(model, other, [Mixture(tuple(slices))]).entries)


def changed_heads(before: dict[str, Tensor], after: dict[str, Tensor], what: str) -> set[int]:
    if what == "o":
        return {h for h in range(N_HEADS) if not torch.equal(before[f"o of {h}"], after[f"o of {h}"])}
    return {h for h in range(N_HEADS) if not torch.equal(before[what][:, h], after[what][:, h])}


@pytest.mark.parametrize("architecture", SLICEABLE)
@torch.no_grad()
def test_a_heads_weights_change_what_it_computes_and_nothing_else_does(architecture):
    """Its rows grafted: its q (or k, v, o) is the donor's, but for norms that all heads share; the others' is not."""
    recipient, donor, tokens = subject(architecture).model, donor_of(architecture).model, random_tokens()
    before = seen(recipient, tokens)
    grouped = N_HEADS // recipient.n_kv_heads
    for what in ("q", "k", "v", "o"):
        with swapped(recipient, head_slices(recipient, LAYER, HEADS, what), donor):
            after = seen(recipient, tokens)
        of_kv = {h for h in range(N_HEADS) if h // grouped in {head // grouped for head in HEADS}}
        expected = of_kv if what in ("k", "v") else set(HEADS)
        assert changed_heads(before, after, what) == expected
        for other in {"q", "k", "v", "o"} - {what}:
            assert not changed_heads(before, after, other)


@pytest.mark.parametrize("architecture", SLICEABLE)
@torch.no_grad()
def test_the_weights_of_all_heads_and_what_they_share_make_the_donors_attention(architecture):
    recipient, donor = subject(architecture).model, donor_of(architecture).model
    pieces = [
        p for what in ("q", "k", "v", "o") for h in range(N_HEADS) for p in head_slices(recipient, LAYER, [h], what)
    ]
    prefix = [
        n
        for n, p in recipient.module.named_parameters()
        if any(p is q for q in recipient.attentions[LAYER].parameters())
    ]
    shared = complement(recipient.module, pieces, prefix)
    assert all("norm" in piece.parameter or "bias" in piece.parameter for piece in shared), "no matrix is left"
    assert not same_weights(recipient, donor, pieces)
    with swapped(recipient, [*pieces, *shared], donor):
        assert same_weights(recipient, donor, [Slice(name) for name in prefix])


@pytest.mark.parametrize("architecture", UNDER_ONE_NORM)
def test_heads_under_one_norm_are_refused_but_their_values_are_not(architecture):
    model = subject(architecture).model
    with pytest.raises(InputError, match=r"q weights of single heads in layer 1 of olmo2 .* norm over all heads"):
        head_slices(model, LAYER, HEADS, "q")
    assert head_slices(model, LAYER, HEADS, "v")
    assert head_slices(model, LAYER, list(range(N_HEADS)), "q"), "all of them together are no problem"


@pytest.mark.parametrize(
    ("architecture", "axis", "n"), [("llama", 0, 2 * D_HEAD), ("gpt2", 1, 2 * D_HEAD), ("phi3", 0, 2 * D_HEAD)]
)
def test_slices_are_rows_or_columns_as_the_layout_has_them(architecture, axis, n):
    [matrix] = [p for p in head_slices(subject(architecture).model, LAYER, HEADS, "q") if "bias" not in p.parameter]
    assert matrix.axis == axis
    assert len(matrix.index) == n


def test_query_heads_of_one_key_are_named():
    assert N_HEADS // N_KV_HEADS == 3
    assert sharing_heads(subject("llama").model, [1]) == [0, 2]
    assert sharing_heads(subject("llama").model, [0, 4, 5]) == [1, 2, 3]
    assert sharing_heads(subject("gpt2").model, [0, 4, 5]) == []


@torch.no_grad()
def test_weights_come_back_bit_by_bit_even_if_the_block_fails():
    recipient, donor = subject("gpt2").model, donor_of("gpt2").model
    before = {name: value.clone() for name, value in recipient.module.state_dict().items()}
    first = head_slices(recipient, LAYER, HEADS, "k")
    pieces = [*first, *first, Slice(first[0].parameter)]  # overlaps, and a whole parameter over its own slice

    def fail_inside():
        with swapped(recipient, pieces, donor):
            assert same_weights(recipient, donor, pieces)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    for name, value in recipient.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(parameter.requires_grad for parameter in recipient.module.parameters())


def test_a_complement_is_all_that_the_slices_leave():
    model = subject("llama").model
    name = "model.layers.1.self_attn.o_proj.weight"
    pieces = [Slice(name, 1, (0, 1)), Slice(name, 1, (1, 3))]
    [left] = complement(model.module, pieces, [name])
    assert left == Slice(name, 1, (2, *range(4, N_HEADS * D_HEAD)))
    assert complement(model.module, [Slice(name)], [name]) == []
    assert complement(model.module, [], [name]) == [Slice(name)]


def test_where_one_group_has_all_of_a_parameter_and_another_some_nothing_of_it_is_left():
    """As when a group's heads read every key/value head of a layer."""
    module = torch.nn.Linear(3, 4, bias=False)
    assert complement(module, [Slice("weight"), Slice("weight", 0, (1, 2))], ["weight"]) == []
    assert complement(module, [Slice("weight", 0, (0,)), Slice("weight", 0, (1, 2))], ["weight"]) == [
        Slice("weight", 0, (3,))
    ]


def test_in_16_bits_the_same_entries_belong_to_a_head():
    """A gradient in 16 bits is zero by accident here and there: of a thousand entries of the output's bias, say."""
    config = GPT2Config(n_embd=1024, n_head=8, n_layer=3, n_inner=4, vocab_size=9, n_positions=16)
    wide = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    randomise(wide)
    narrow = copy.deepcopy(wide).to(torch.bfloat16)
    models = [as_model("gpt2", module) for module in (wide, narrow)]
    for layer in range(3):
        for what in ("q", "k", "v", "o"):
            expected, found = (head_slices(model, layer, HEADS, what) for model in models)
            assert found == expected
    assert all(p.grad is None and not p.requires_grad and p.dtype == torch.bfloat16 for p in narrow.parameters())
