"""Weights that differ are counted and measured as by hand, in float64, whatever a model calls them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from circuitdiff.engine import Model
from circuitdiff.errors import InputError
from circuitdiff.models import load_model, weight_changes
from circuitdiff.models.checks import CheckError
from circuitdiff.models.fingerprint import weight_digests
from circuitdiff.models.weight_changes import MOST_RANK, WeightChange, numerical_rank
from helpers.tiny_decoders import save_random_adapter, tiny_decoder, tiny_tokenizer
from helpers.tiny_models import ARCHITECTURES, D_HEAD, N_HEADS, N_LAYERS, as_model, subject

LAYER = 2
_WIDE = N_HEADS * D_HEAD
# By hand: the fused parameter of one layer, the axis of its outputs, and which of these are q, k and v.
FUSED = {
    "gpt2": ("transformer.h.2.attn.c_attn.weight", 1, {"q": range(_WIDE), "k": range(_WIDE, 2 * _WIDE)}),
    "phi3": ("model.layers.2.self_attn.qkv_proj.weight", 0, {"q": range(60), "k": range(60, 80), "v": range(80, 100)}),
    "gpt_neox": (
        "gpt_neox.layers.2.attention.query_key_value.weight",
        0,
        {
            kind: [30 * head + 10 * place + i for head in range(N_HEADS) for i in range(D_HEAD)]
            for place, kind in enumerate("qkv")
        },
    ),
}
SEPARATE = {kind: f"model.layers.2.self_attn.{kind}_proj.weight" for kind in ("q", "k", "v", "o")}


@torch.no_grad()
def changed(base: Model, seed: int = 3) -> Model:
    """Every second number or so moved, up or down. The changes of matrices have rank 3, of one in the MLP rank 1."""
    module, g = copy.deepcopy(base.module), torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.dim() == 2:
            rank = 1 if "up_proj" in name else 3
            rows, columns = (torch.randn(rank, n, generator=g, dtype=torch.float64) for n in parameter.shape)
            rows[:, ::2] = 0
            parameter.add_(rows.T @ columns)
        else:
            parameter[::3] -= 0.5
    return as_model("changed", module)


def weights_of(base: Model, variant: Model) -> dict[tuple[int | None, str], WeightChange]:
    return {(each.layer, each.kind): each for each in weight_changes.weight_changes(base, variant).weights}


def by_hand(base: Tensor, variant: Tensor) -> tuple[int, int, float, float]:
    """Numbers, changed ones, and the norms of the change and of the base, number by number."""
    pairs = list(zip(base.flatten().tolist(), variant.flatten().tolist(), strict=True))
    norms = math.sqrt(sum((b - a) ** 2 for a, b in pairs)), math.sqrt(sum(a * a for a, _ in pairs))
    return len(pairs), sum(a != b for a, b in pairs), *norms


def assert_as_by_hand(found: WeightChange, base: Tensor, variant: Tensor) -> None:
    n, n_changed, change, size = by_hand(base, variant)
    assert (found.n_numbers, found.n_changed) == (n, n_changed)
    assert (found.change, found.size, found.relative) == pytest.approx((change, size, change / size), rel=1e-12)


def rank_by_hand(change: Tensor) -> int:
    return int(torch.linalg.matrix_rank(change, rtol=1e-3))


@pytest.mark.parametrize("architecture", FUSED)
def test_a_fused_projection_is_split_into_q_k_and_v_as_by_hand(architecture):
    base = subject(architecture).model
    variant, (name, axis, index) = changed(base), FUSED[architecture]
    found = weights_of(base, variant)
    for kind, rows in index.items():
        one, other = (
            each.module.get_parameter(name).index_select(axis, torch.tensor(rows)) for each in (base, variant)
        )
        assert_as_by_hand(found[LAYER, kind], one, other)
        assert found[LAYER, kind].rank == rank_by_hand(other - one) == 3
    assert (LAYER, "qkv") not in found


def test_each_projection_is_measured_as_by_hand():
    base = subject("llama").model
    variant = changed(base)
    found = weights_of(base, variant)
    for kind, name in SEPARATE.items():
        assert_as_by_hand(found[LAYER, kind], *(each.module.get_parameter(name) for each in (base, variant)))
        assert found[LAYER, kind].rank == 3
    several = {
        "mlp": ["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"],
        "biases": [f"self_attn.{each}_proj.bias" for each in "qkvo"],
        "norms": ["input_layernorm.weight", "post_attention_layernorm.weight"],
    }
    for kind, names in several.items():
        one, other = (
            torch.cat([each.module.get_parameter(f"model.layers.2.{name}").flatten() for name in names])
            for each in (base, variant)
        )
        assert_as_by_hand(found[LAYER, kind], one, other)
    for kind, name in (
        ("embeddings", "model.embed_tokens.weight"),
        ("head", "lm_head.weight"),
        ("norms", "model.norm.weight"),
    ):
        assert_as_by_hand(found[None, kind], *(each.module.get_parameter(name) for each in (base, variant)))
    assert (found[LAYER, "norms"].rank, found[LAYER, "mlp"].rank) == (None, 3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_number_of_every_architecture_is_counted_once(architecture):
    base = subject(architecture).model
    found = weights_of(base, base)
    assert sum(each.n_numbers for each in found.values()) == sum(p.numel() for p in base.module.parameters())
    assert not any(each.n_changed or each.relative or each.rank for each in found.values())
    for layer in range(N_LAYERS):
        assert {"q", "k", "v", "o", "mlp", "norms"} <= {kind for at, kind in found if at == layer}
    assert not {"qkv", "other"} & {kind for _, kind in found} - ({"other"} if architecture == "opt" else set())


def test_what_cannot_be_told_apart_is_called_qkv(monkeypatch):
    def refuse(*_: object) -> None:
        raise InputError("they depend on one another")

    base = subject("phi3").model
    monkeypatch.setattr(weight_changes, "head_slices", refuse)
    variant = changed(base)
    found = weights_of(base, variant)
    name = "model.layers.2.self_attn.qkv_proj.weight"
    assert_as_by_hand(found[LAYER, "qkv"], *(each.module.get_parameter(name) for each in (base, variant)))
    assert not {"q", "k", "v"} & {kind for _, kind in found}


@torch.no_grad()
def test_one_changed_matrix_is_all_that_is_found():
    base = subject("qwen3").model
    module = copy.deepcopy(base.module)
    g = torch.Generator().manual_seed(1)
    weight = module.get_parameter("model.layers.1.self_attn.o_proj.weight")
    weight.add_(torch.randn(weight.shape, generator=g, dtype=weight.dtype))
    found = weights_of(base, as_model("one", module))
    assert [place for place, each in found.items() if each.n_changed] == [(1, "o")]
    assert found[1, "o"].n_changed == weight.numel()
    assert found[1, "o"].rank == min(weight.shape)


def test_a_lora_of_rank_two_merged_by_peft_has_rank_two_where_it_was_aimed(tmp_path):
    base = load_model(tiny_decoder(), tokenizer=tiny_tokenizer())
    folder = save_random_adapter(tmp_path / "lora", targets=("q_proj", "o_proj", "up_proj"))
    merged = PeftModel.from_pretrained(tiny_decoder(), str(folder)).merge_and_unload()  # pyright: ignore
    found = weights_of(base, load_model(merged, tokenizer=tiny_tokenizer()))
    aimed = {(layer, kind) for layer in range(3) for kind in ("q", "o", "mlp")}
    assert {place for place, each in found.items() if each.n_changed} == aimed
    assert {found[place].rank for place in aimed} == {2}
    matrices = {"q": 30 * 24, "o": 24 * 30, "mlp": 28 * 24}
    assert all(found[layer, kind].n_changed > 0.9 * matrices[kind] for layer, kind in aimed)


def test_a_lora_of_zeros_changed_nothing(tmp_path):
    """PEFT's own start: B is zero."""
    base = load_model(tiny_decoder(), tokenizer=tiny_tokenizer())
    merged = get_peft_model(tiny_decoder(), LoraConfig(r=2, target_modules=["v_proj"])).merge_and_unload()
    found = weights_of(base, load_model(merged, tokenizer=tiny_tokenizer()))
    assert sum(each.n_changed for each in found.values()) == 0


@pytest.mark.parametrize("shape", [(23, 31), (301, 419), (419, 301)])
def test_the_rank_counts_singular_values_above_a_thousandth_of_the_largest(shape):
    """Small matrices by all their singular values, larger ones by random directions; both with some rounding."""
    g = torch.Generator().manual_seed(2)
    left, right = (torch.randn(n, 5, generator=g, dtype=torch.float64) for n in shape)
    left[: 2 * shape[0] // 3], right[: 2 * shape[1] // 3] = 0, 0  # what changes is not among the first
    left, right = (torch.linalg.qr(each).Q for each in (left, right))
    values = torch.tensor([5.0, 1.0, 0.006, 0.004, 0.001], dtype=torch.float64)
    change = (left * values) @ right.T + 1e-7 * torch.randn(shape, generator=g, dtype=torch.float64)
    assert numerical_rank(change) == numerical_rank(change.float()) == rank_by_hand(change) == 3
    assert numerical_rank(torch.zeros(shape)) == 0


def test_a_rank_beyond_what_is_told_apart_is_the_most(monkeypatch):
    change = torch.randn(301, 419, generator=torch.Generator().manual_seed(4))
    assert rank_by_hand(change) > MOST_RANK == numerical_rank(change)
    assert numerical_rank(change[:200]) == MOST_RANK, "by all singular values"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_comparing_changes_no_weight_and_is_exact_in_any_precision(tmp_path, dtype):
    folder = tmp_path / "base"
    tiny_decoder().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    other = load_model(tiny_decoder(seed=1).to(getattr(torch, dtype)), tokenizer=tiny_tokenizer())
    base = load_model(folder, dtype=dtype)
    found = weights_of(base, other)[1, "k"]
    for each in (base, other):
        assert weight_digests(each.module) == each.weights
    name = "model.layers.1.self_attn.k_proj.weight"
    _, n_changed, change, _ = by_hand(*(each.module.get_parameter(name) for each in (base, other)))
    assert found.n_changed == n_changed
    assert found.change == pytest.approx(change, rel=1e-6)  # a difference of two bfloat16 is rounded in float32


@torch.no_grad()
def test_a_weight_that_changed_since_it_was_loaded_is_refused():
    base, variant = (load_model(tiny_decoder(), tokenizer=tiny_tokenizer()) for _ in range(2))
    variant.module.get_parameter("model.layers.0.mlp.up_proj.weight")[0, 0] += 1
    with pytest.raises(CheckError, match=r"no longer what was loaded: model\.layers\.0\.mlp\.up_proj\.weight"):
        weights_of(base, variant)


@torch.no_grad()
def test_tied_weights_count_once_unless_one_model_has_them_apart():
    base = load_model(tiny_decoder(tie_word_embeddings=True), tokenizer=tiny_tokenizer())
    assert (None, "head") not in weights_of(base, base)
    apart = tiny_decoder(tie_word_embeddings=False)
    apart.load_state_dict(base.module.state_dict())
    apart.lm_head.weight[3] += 1.0
    found = weights_of(base, load_model(apart, tokenizer=tiny_tokenizer()))
    assert (found[None, "head"].n_changed, found[None, "embeddings"].n_changed) == (24, 0)


@torch.no_grad()
def test_further_rows_of_embeddings_are_named_and_the_others_compared():
    base = load_model(tiny_decoder(), tokenizer=tiny_tokenizer())
    longer = tiny_decoder()
    longer.resize_token_embeddings(44, mean_resizing=False)
    result = weight_changes.weight_changes(base, load_model(longer, tokenizer=tiny_tokenizer()))
    assert result.not_compared == (
        "model.embed_tokens.weight: 44 × 24, not 41 × 24; the first 41 rows are compared",
        "lm_head.weight: 44 × 24, not 41 × 24; the first 41 rows are compared",
    )
    assert not any(each.n_changed for each in result.weights)


def test_tensors_that_do_not_stand_beside_one_another_are_named():
    base, other = (
        load_model(tiny_decoder(**sizes), tokenizer=tiny_tokenizer())
        for sizes in ({}, {"num_hidden_layers": 2, "intermediate_size": 20})
    )
    result = weight_changes.weight_changes(base, other)
    assert (
        "model.layers.0.mlp.up_proj.weight: 20 × 24, not 28 × 24; the first 20 rows are compared"
        not in result.not_compared
    )
    assert "model.layers.0.mlp.up_proj.weight: 20 × 24, not 28 × 24" in result.not_compared
    assert f"model.layers.2.mlp.up_proj.weight is in {base.name} only" in result.not_compared


@torch.no_grad()
def test_what_came_from_zeros_has_no_relative_size():
    modules = [tiny_decoder(attention_bias=True) for _ in range(2)]
    modules[1].get_parameter("model.layers.1.self_attn.v_proj.bias").fill_(0.5)
    found = weights_of(*(load_model(each, tokenizer=tiny_tokenizer()) for each in modules))
    assert (found[1, "biases"].relative, found[1, "biases"].n_changed) == (None, 10)
    assert (found[0, "biases"].relative, found[0, "biases"].size) == (0.0, 0.0)
