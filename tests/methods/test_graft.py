"""Grafts against models put together by hand, weight by weight."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.errors import InputError
from circuitdiff.methods.graft import graft, graft_alone, layer_ranges
from circuitdiff.stats.shapley import Subset, needed_subsets
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import D_HEAD, N_HEADS, N_LAYERS, as_model, subject
from helpers.two_tiny_models import donor_of

CIRCUIT = Circuit(
    {
        "late": Group("last", (Head(3, 5), Head(2, 0))),
        "early": Group("previous_query_label", (Head(0, 2), Head(0, 3))),  # of two key/value heads
    }
)
ORDER = ("early", "late", "other heads", "mlps", "norms", "embeddings", "unembedding")


def rows(head: int) -> slice:
    return slice(head * D_HEAD, (head + 1) * D_HEAD)


def take_heads(into: dict[str, Tensor], source: dict[str, Tensor], group: Group, projections: str = "qkvo") -> None:
    """The weights of a llama's heads, six query heads over two key/value heads, by their names."""
    for head in group.heads:
        at = f"model.layers.{head.layer}.self_attn"
        if "q" in projections:
            for name in (f"{at}.q_proj.weight", f"{at}.q_proj.bias"):
                into[name][rows(head.index)] = source[name][rows(head.index)]
        for what in set("kv") & set(projections):
            for name in (f"{at}.{what}_proj.weight", f"{at}.{what}_proj.bias"):
                into[name][rows(head.index // 3)] = source[name][rows(head.index // 3)]
        if "o" in projections:
            name = f"{at}.o_proj.weight"
            into[name][:, rows(head.index)] = source[name][:, rows(head.index)]


def kind_of(name: str) -> str:
    for word, kind in (("norm", "norms"), ("embed", "embeddings"), ("lm_head", "unembedding"), ("mlp", "mlps")):
        if word in name:
            return kind
    return "other heads"


def by_hand(subset: Subset) -> Tensor:
    """Log probabilities of a llama with the donor's weights in some parts, by the reference."""
    recipient, donor = subject("llama"), donor_of("llama").model.module.state_dict()
    module = copy.deepcopy(recipient.reference.module)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    own = {name: value.clone() for name, value in weights.items()}
    for name in weights:
        if kind_of(name) in subset:
            weights[name] = donor[name].clone()
    for name, group in CIRCUIT.groups.items():
        take_heads(weights, donor if name in subset else own, group)
    module.load_state_dict(weights)
    projections = [layer.self_attn.o_proj for layer in module.model.layers]
    pairs, values = fake_pairs(), []
    for i in range(len(pairs)):
        tokens = pairs.clean[i : i + 1, : pairs.lengths[i]]
        logits = replace(recipient.reference, module=module, projections=projections).logits(tokens)[0]
        values.append(logits.log_softmax(0)[pairs.answers[i]])
    return torch.stack(values)


@torch.no_grad()
def test_every_run_agrees_with_a_model_put_together_by_hand():
    found = graft(donor_of("llama").model, subject("llama").model, CIRCUIT, fake_pairs())
    assert found.order == ORDER
    assert list(found.runs) == needed_subsets(ORDER)
    for subset, answers in found.runs.items():
        torch.testing.assert_close(answers.log_probs, by_hand(subset), rtol=1e-10, atol=1e-10)
    assert found.whole_graft_error < 1e-10
    assert torch.equal(found.runs[frozenset(ORDER)].log_probs, found.donor.log_probs)
    spread = torch.stack([answers.log_probs for answers in found.runs.values()])
    assert (spread[:, None] - spread[None]).abs().amax(-1).fill_diagonal_(1).min() > 1e-5, "the runs must differ"


@torch.no_grad()
def test_what_is_left_out_is_the_recipients_own_even_where_another_group_shares_it():
    """Heads 2.0 and 2.1 read one key/value head: without the first group it is the recipient's."""
    recipient, donor = subject("llama"), donor_of("llama").model
    groups = {"one": Group("last", (Head(2, 0),)), "other": Group("last", (Head(2, 1),))}
    found = graft(donor, recipient.model, groups, fake_pairs())
    module = copy.deepcopy(donor.module)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    take_heads(weights, recipient.model.module.state_dict(), groups["one"])
    module.load_state_dict(weights)
    pairs, without = fake_pairs(), found.runs[frozenset(found.order) - {"one"}]
    tokens = pairs.clean[:1, : pairs.lengths[0]]
    expected = as_model("by hand", module).forward(tokens)[0].log_softmax(0)[pairs.answers[0]]
    assert float(without.log_probs[0]) == pytest.approx(float(expected), abs=1e-12)


def test_query_heads_that_share_grafted_keys_are_named():
    models, pairs = (donor_of("llama").model, subject("llama").model), fake_pairs()
    late = graft(*models, CIRCUIT.groups["late"], pairs).parts["group"]
    assert [str(head) for head in late.also_touched] == ["2.1", "2.2", "3.3", "3.4"]
    assert graft(*models, CIRCUIT.groups["late"], pairs, projections=("q", "o")).parts["group"].also_touched == ()


@torch.no_grad()
def test_only_the_projections_that_are_named_are_grafted():
    recipient, donor, late = subject("llama").model, donor_of("llama").model, CIRCUIT.groups["late"]
    [found] = graft_alone(donor, recipient, [late], fake_pairs(), projections=("q", "o"))
    weights = {name: value.clone() for name, value in recipient.module.state_dict().items()}
    take_heads(weights, donor.module.state_dict(), late, "qo")
    module = copy.deepcopy(recipient.module)
    module.load_state_dict(weights)
    pairs = fake_pairs()
    tokens = pairs.clean[:1, : pairs.lengths[0]]
    expected = as_model("by hand", module).forward(tokens)[0].log_softmax(0)[pairs.answers[0]]
    assert float(found.log_probs[0]) == pytest.approx(float(expected), abs=1e-12)


@torch.no_grad()
def test_ranges_of_layers_and_single_heads_can_be_parts():
    recipient, donor, pairs = subject("gpt2").model, donor_of("gpt2").model, fake_pairs()
    found = graft(donor, recipient, {"second": range(2, N_LAYERS), "first": range(2)}, pairs)
    assert found.order[:2] == ("first", "second"), "lower layers come first"
    assert found.order == ("first", "second", "norms", "embeddings")  # gpt2's unembedding is its embedding
    assert torch.equal(found.runs[frozenset(found.order)].log_probs, found.donor.log_probs)
    late = Group("last", (Head(3, 5), Head(2, 0)))
    heads = graft(donor, recipient, late, pairs, per_head=True)
    assert heads.order[:2] == ("2.0", "3.5")
    [both] = graft_alone(donor, recipient, [late], pairs)
    together = heads.runs[frozenset(["2.0", "3.5"])]
    torch.testing.assert_close(together.log_probs, both.log_probs, rtol=0, atol=1e-12)


LLAMA = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj.weight"}
LLAMA |= {"mlp in": ("gate_proj", "up_proj"), "mlp out": "down_proj", "the rest of attention": "o_proj.bias"}
LLAMA |= {"norms": "norm", "embeddings": "embed", "unembedding": "lm_head"}
PHI3 = LLAMA | {"mlp in": "gate_up_proj", "o": "o_proj"}
OLMO2 = LLAMA | {
    "q": ("q_proj", "q_norm"),
    "k": ("k_proj", "k_norm"),
    "o": "o_proj",
    "norms": ("layernorm", "model.norm"),
}
GPT2 = {"o": "attn.c_proj.weight", "the rest of attention": "attn.c_proj.bias", "mlp in": "mlp.c_fc"}
GPT2 |= {"mlp out": "mlp.c_proj", "norms": "ln_", "embeddings": ("wte", "wpe")}


def as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


FUSED = {"gpt2": ("attn.c_attn", -1), "phi3": ("qkv_proj", 0)}  # q, k and v in one parameter, along this axis


@pytest.mark.parametrize(
    ("architecture", "names"), [("llama", LLAMA), ("gpt2", GPT2), ("phi3", PHI3), ("olmo2", OLMO2)]
)
@torch.no_grad()
def test_all_weights_of_one_kind_of_matrix_can_be_parts(architecture, names):
    recipient, donor, pairs = subject(architecture).model, donor_of(architecture).model, fake_pairs()
    found = graft(donor, recipient, "matrices", pairs)
    assert found.order[:6] == ("q", "k", "v", "o", "mlp in", "mlp out")
    theirs = dict(donor.module.named_parameters())
    fused, axis = FUSED.get(architecture, ("none", 0))
    widths = [N_HEADS * D_HEAD, *[recipient.n_kv_heads * D_HEAD] * 2]
    for part in found.order:
        module = copy.deepcopy(recipient.module)
        for name, own in module.named_parameters():
            if fused in name and part in ("q", "k", "v"):
                i = "qkv".index(part)
                own.split(widths, axis)[i].copy_(theirs[name].split(widths, axis)[i])
            elif fused not in name and part in names and any(each in name for each in as_tuple(names[part])):
                own.copy_(theirs[name])
        tokens = pairs.clean[:1, : pairs.lengths[0]]
        expected = as_model("by hand", module).forward(tokens)[0].log_softmax(0)[pairs.answers[0]]
        assert float(found.runs[frozenset([part])].log_probs[0]) == pytest.approx(float(expected), abs=1e-12), part


@torch.no_grad()
def test_parts_whose_weights_are_the_same_change_nothing_and_are_named():
    recipient, pairs = subject("llama").model, fake_pairs()
    module = copy.deepcopy(recipient.module)
    module.model.layers[1].mlp.up_proj.weight.mul_(2)
    found = graft(as_model("louder", module), recipient, CIRCUIT, pairs)
    assert set(ORDER) - set(found.unchanged) == {"mlps"}
    for subset, answers in found.runs.items():
        expected = found.donor if "mlps" in subset else found.recipient
        assert torch.equal(answers.log_probs, expected.log_probs)


@torch.no_grad()
def test_a_model_grafted_onto_itself_has_no_gain():
    recipient, pairs = subject("llama").model, fake_pairs()
    found = graft(recipient, recipient, CIRCUIT, pairs)
    assert found.unchanged == ORDER
    assert "its interval covers 0" in (found.attribution().together.undefined or "")


@torch.no_grad()
def test_the_models_are_what_they_were_afterwards():
    models = donor_of("llama").model, subject("llama").model
    before = [{n: v.clone() for n, v in model.module.state_dict().items()} for model in models]
    graft(*models, CIRCUIT, fake_pairs())
    for model, was in zip(models, before, strict=True):
        assert all(torch.equal(value, was[name]) for name, value in model.module.state_dict().items())


@torch.no_grad()
def test_models_that_differ_outside_their_weights_are_refused():
    recipient = subject("granite").model
    module = copy.deepcopy(recipient.module)
    module.config.logits_scaling = 0.7
    other = as_model("rescaled", module)
    with pytest.raises(InputError, match=r"rescaled grafted into granite do not make rescaled: .*config"):
        graft(other, recipient, CIRCUIT, fake_pairs())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": Group("last", (Head(9, 1),))}, r"head 9\.1 does not exist: llama has 4 layers of 6 heads"),
        ({"group": Group("last", ())}, r"needs heads"),
        ({"group": {"mlps": Group("last", (Head(1, 1),))}}, r"'mlps' is the name of what the groups leave"),
        ({"group": {"late": range(2, 5)}}, r"layers 2 to 4 do not all exist: llama has 4 layers"),
        ({"projections": ("q", "q")}, r"projections are some of q, k, v, o"),
        ({"per_head": True}, r"per_head takes a single group"),
    ],
)
def test_what_cannot_be_grafted_is_said_in_one_line(change, message):
    wanted = {"group": CIRCUIT} | change
    with pytest.raises(InputError, match=message):
        graft(donor_of("llama").model, subject("llama").model, wanted.pop("group"), fake_pairs(), **wanted)


def test_models_of_another_form_or_dtype_are_refused():
    recipient = subject("llama").model
    with pytest.raises(InputError, match="differ in architecture"):
        graft(subject("mistral").model, recipient, CIRCUIT, fake_pairs())
    half = as_model("half", copy.deepcopy(recipient.module).float())
    with pytest.raises(InputError, match=r"half is in torch\.float32 and llama in torch\.float64"):
        graft(half, recipient, CIRCUIT, fake_pairs())


assert N_HEADS // 3 == 2, "two key/value heads, as `take_heads` has it"


def test_a_donor_with_added_tokens_grafts_as_the_one_without():
    recipient, donor, pairs = subject("llama").model, donor_of("llama").model, fake_pairs()
    module = copy.deepcopy(donor.module)
    module.resize_token_embeddings(donor.d_vocab + 3, mean_resizing=False)
    plain, wide = (graft(each, recipient, CIRCUIT, pairs) for each in (donor, as_model("wide", module)))
    assert wide.order == plain.order
    for subset, run in plain.runs.items():
        torch.testing.assert_close(wide.runs[subset].logit_differences, run.logit_differences, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("swap", [False, True])
def test_a_model_that_ties_its_head_is_grafted_as_if_it_did_not(swap):
    recipient, donor, pairs = subject("llama").model, donor_of("llama").model, fake_pairs()

    def tied(model):
        module = copy.deepcopy(model.module)
        module.lm_head.weight.data.copy_(module.model.embed_tokens.weight)
        same = as_model("apart", copy.deepcopy(module))
        module.lm_head.weight = module.model.embed_tokens.weight
        return as_model("tied", module), same

    (one, apart), other = tied(recipient if swap else donor), donor if swap else recipient
    expected, found = (graft(*((other, each) if swap else (each, other)), CIRCUIT, pairs) for each in (apart, one))
    assert found.order == expected.order
    assert "unembedding" in found.order
    assert one.module.lm_head.weight is one.module.model.embed_tokens.weight, "a later graft finds it as it was"
    for subset, run in expected.runs.items():
        torch.testing.assert_close(found.runs[subset].log_probs, run.log_probs, rtol=1e-12, atol=1e-12)


def test_ranges_of_layers_begin_where_they_are_told_and_hold_every_layer_once():
    assert layer_ranges(7, None) == {"layers 0 to 2": range(3), "layers 3 to 6": range(3, 7)}
    three = layer_ranges(7, (2, 6))
    assert list(three) == ["layers 0 to 1", "layers 2 to 5", "layers 6 to 6"]
    assert [layer for each in three.values() for layer in each] == list(range(7))
    for begins in ((0,), (3, 3), (7,)):
        with pytest.raises(InputError, match="rising layers between 1 and 6"):
            layer_ranges(7, begins)
