"""Path patching of MLPs against its definition, one layer and one prompt at a time."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

import circuitdiff as cd
from circuitdiff.circuit import Head
from circuitdiff.engine import MlpEdit, Site
from circuitdiff.engine.capture import stream_at_positions
from circuitdiff.engine.kept_runs import PairRuns
from circuitdiff.errors import InputError
from circuitdiff.methods.path_patching import mlp_path_effects
from circuitdiff.prompts import Pairs
from helpers.fake_pairs import fake_pairs, logit_difference
from helpers.tiny_models import ARCHITECTURES, D_HEAD, N_HEADS, N_LAYERS, Subject, as_model, subject

RECEIVERS = [Head(2, 1), Head(2, 4), Head(3, 5)]
ONE = torch.tensor([0])
PATHS = {
    "direct": ("last", None, None),
    "via_q": ("last", "q", None),
    "via_v_read_anywhere": ("previous_query_label", "v", None),
    "via_v_read_at_one_role": ("previous_query_label", "v", "query_label"),
    "via_k_read_at_one_role": ("previous_query_label", "k", "last"),
}


def by_definition(chosen: Subject, pairs: Pairs, layer: int, at: str, via=None, receivers_at=None) -> list[float]:
    """The effect of one MLP on each prompt, each run on its own, without padding and without the engine."""
    effects = []
    for i in range(len(pairs)):
        clean = pairs.clean[i : i + 1, : pairs.lengths[i]]
        other = pairs.counterfactual[i : i + 1, : pairs.counterfactual_lengths[i]]
        here, there = int(pairs.positions[at][i]), int(pairs.counterfactual_positions[at][i])
        edit = MlpEdit(layer, here, ONE, chosen.reference.clean(other).seen[layer, "mlp_out"][None, :, there])
        if via is None:
            patched = chosen.reference.frozen(clean, [edit], 1, here)
        else:
            layers = sorted({head.layer for head in RECEIVERS})
            sites = [Site(n, via, here, torch.tensor([h.index for h in RECEIVERS if h.layer == n])) for n in layers]
            read_at = None if receivers_at is None else int(pairs.positions[receivers_at][i])
            patched = chosen.reference.path_patched(clean, [edit], 1, here, sites, read_at)
        effects.append(
            logit_difference(patched[0], pairs, i) - logit_difference(chosen.reference.logits(clean), pairs, i)
        )
    return effects


@pytest.mark.parametrize("executor", ["window", "full"])
@pytest.mark.parametrize("path", PATHS)
def test_effects_agree_with_the_definition(path, executor):
    at, via, receivers_at = PATHS[path]
    chosen, pairs = subject("llama"), fake_pairs()
    receivers = None if via is None else tuple(RECEIVERS)
    found = mlp_path_effects(chosen.model, pairs, at, receivers, via, receivers_at, executor=executor)
    for layer in range(N_LAYERS if via is None else 3):
        expected = torch.tensor(by_definition(chosen, pairs, layer, at, via, receivers_at), dtype=torch.float64)
        assert layer > 1 or expected.abs().max() > 1e-4  # what the last layer receives early reaches no logits
        torch.testing.assert_close(found.per_prompt[layer], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_effects_agree_with_the_definition_in_every_architecture(architecture):
    chosen, pairs = subject(architecture), fake_pairs()
    found = mlp_path_effects(chosen.model, pairs, "last", RECEIVERS, "q", layers=[1])
    expected = torch.tensor(by_definition(chosen, pairs, 1, "last", "q"), dtype=torch.float64)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found.per_prompt[1], expected, rtol=0, atol=1e-10)
    assert found.noise_floor < 1e-10


def test_mlps_that_no_receiver_can_see_have_exactly_no_effect_and_layers_not_asked_are_nan():
    chosen, pairs, seen = subject("llama"), fake_pairs(), list[tuple[int, int]]()
    how = {"layers": [1, 2, 3], "progress": lambda *step: seen.append(step)}
    effects = mlp_path_effects(chosen.model, pairs, "last", [Head(2, 1)], "q", **how).per_prompt
    assert seen[-1] == (len(pairs), len(pairs)), "they are not run"
    assert (effects[2:] == 0).all()
    assert (effects[1] != 0).all()
    assert effects[0].isnan().all()


def test_little_memory_and_shared_runs_change_nothing_but_the_order_of_work():
    chosen, pairs = subject("qwen2"), fake_pairs()
    args = (chosen.model, pairs, "previous_query_label", RECEIVERS, "v")
    shared = PairRuns(chosen.model, pairs, ["last", "previous_query_label"], memory_gb=1.0)
    whole, parts, together = (mlp_path_effects(*args, **how) for how in ({}, {"memory_gb": 5e-5}, {"shared": shared}))
    for other in (parts, together):
        torch.testing.assert_close(other.per_prompt, whole.per_prompt, rtol=0, atol=1e-10)


def test_the_counterfactuals_own_answer_gets_an_effect_of_its_own_and_progress_ends_at_the_whole():
    chosen, pairs, seen = subject("llama"), fake_pairs(own_answers=True), list[tuple[int, int]]()
    found = mlp_path_effects(chosen.model, pairs, "last", metric="log_prob", progress=lambda *step: seen.append(step))
    swapped = fake_pairs()
    object.__setattr__(swapped, "answers", torch.full((5,), 8))
    expected = mlp_path_effects(chosen.model, swapped, "last", metric="log_prob")
    assert found.on_counterfactual_answer is not None
    torch.testing.assert_close(found.on_counterfactual_answer, expected.per_prompt, rtol=0, atol=1e-10)
    assert seen[-1] == (N_LAYERS * len(pairs), N_LAYERS * len(pairs))


def test_the_noise_floor_is_far_below_the_effects_and_not_zero_by_construction(monkeypatch):
    chosen, pairs = subject("granite"), fake_pairs()
    found = cd.mlp_path_effects(chosen.model, pairs, "last")
    assert found.noise_floor < 1e-10 < 1e-3 < found.effects.abs().max()
    name = "circuitdiff.methods.path_patching.stream_at_positions"
    wrong = lambda *arguments: tuple(1.01 * each for each in stream_at_positions(*arguments))  # noqa: E731
    monkeypatch.setattr(name, wrong)
    assert cd.mlp_path_effects(chosen.model, pairs, "last").noise_floor > 1e-4


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "opt", "granite", "gpt_neox"])
def test_what_mlps_add_is_read_as_the_reference_sees_it(architecture):
    chosen, prompts = subject(architecture), fake_pairs().clean_prompts
    positions = torch.stack([prompts.positions[role] for role in ("query_label", "last")], dim=1)
    found, _ = stream_at_positions(chosen.model, "mlp_out", prompts, positions, [3, 1])
    for i in range(len(prompts.tokens)):
        seen = chosen.reference.clean(prompts.tokens[i : i + 1, : prompts.lengths[i]]).seen
        expected = torch.stack([seen[layer, "mlp_out"][0, positions[i]] for layer in (3, 1)])
        torch.testing.assert_close(found[:, i], expected, rtol=0, atol=1e-10)


def test_a_table_has_a_row_for_each_layer():
    found = cd.mlp_path_effects(subject("llama").model, fake_pairs(), "last")
    table, (value, low, high) = found.to_pandas(), found.intervals()
    assert table.layer.tolist() == list(range(N_LAYERS))
    assert table[["effect", "low", "high"]].to_numpy().T.tolist() == [value.tolist(), low.tolist(), high.tolist()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"at": "query_label"}, "name receivers that read it"),
        ({"at": "last", "layers": [4]}, r"layers are from 0 to 3 in llama; got \[4\]"),
        ({"at": "last", "layers": []}, "layers are from 0 to 3"),
    ],
)
def test_a_path_that_cannot_work_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        mlp_path_effects(subject("llama").model, fake_pairs(), **arguments)


def test_an_architecture_whose_mlps_cannot_be_told_apart_is_refused():
    sizes = {"hidden_size": 60, "word_embed_proj_dim": 28, "ffn_dim": 44, "vocab_size": 61, "pad_token_id": 0}
    config = tf.OPTConfig(**sizes, num_hidden_layers=4, num_attention_heads=6, do_layer_norm_before=False)
    module = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval().requires_grad_(False)
    with pytest.raises(InputError, match="can be neither read nor replaced"):
        mlp_path_effects(as_model("theirs", module), fake_pairs(), "last")


def test_the_fake_prompts_have_the_sizes_that_catch_mixed_axes():
    pairs = fake_pairs()
    assert len({N_LAYERS, N_HEADS, D_HEAD, len(pairs), pairs.clean.shape[1], pairs.foils.shape[1]}) == 6
