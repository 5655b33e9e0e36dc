"""Runs with nothing frozen: both executors do what the looped definition does."""

from __future__ import annotations

import copy

import peft
import pytest
import torch

from circuitdiff.engine import Edit, FullExecutor, WindowExecutor
from helpers.tiny_models import (
    ARCHITECTURES,
    N_VARIANTS,
    Draw,
    as_subject,
    assert_same,
    batch_of,
    everything,
    random_tokens,
    subject,
)

EXECUTORS = [pytest.param(FullExecutor(), id="full"), pytest.param(WindowExecutor(), id="window")]


def at_the_last_position(draw: Draw) -> list[Edit]:
    return [
        draw.edit(1, "z", 12, [0, 3, 5], [0, 2]),
        draw.edit(3, "z", 12, [2], [1]),
        draw.edit(0, "z", 12, [4, 1], [3, 2], shared=True),
        draw.edit(3, "q", 12, [4], [4, 0]),
    ]


def inside_the_prompt(draw: Draw) -> list[Edit]:
    return [
        draw.edit(1, "q", 7, [4, 1], [1, 0]),
        draw.edit(2, "z", 9, [0, 5], [1, 3]),
        draw.edit(2, "q", 11, [2, 3], [2]),
        draw.edit(0, "z", 8, [3], [3, 4], shared=True),
    ]


def keys_and_values_read_anywhere(draw: Draw) -> list[Edit]:
    return [
        draw.edit(1, "k", 8, [1], [0, 2]),
        draw.edit(1, "v", 8, [4, 0], [2, 1]),
        draw.edit(2, "v", 10, [5], [3]),
        draw.edit(2, "k", 11, [5, 2], [4, 3], shared=True),
        draw.edit(2, "z", 9, [5, 0], [3]),
    ]


def keys_and_values_read_at_one_later_position(draw: Draw) -> list[Edit]:
    return [
        draw.edit(1, "k", 9, [1], [0, 2], read_at=11),
        draw.edit(1, "v", 9, [3, 1], [2, 1], read_at=11),
        draw.edit(1, "v", 8, [2], [2, 3], read_at=11),
        draw.edit(2, "v", 10, [0], [3], read_at=11),
        draw.edit(0, "k", 10, [5, 4], [4, 3], read_at=12),
    ]


def read_where_they_are(draw: Draw) -> list[Edit]:
    return [
        draw.edit(1, "v", 9, [3, 1], [2, 1], read_at=9),
        draw.edit(1, "k", 10, [0], [0, 4], read_at=10),
        draw.edit(3, "v", 12, [2, 5], [3, 0], read_at=12),
    ]


def several_readers_of_one_layer(draw: Draw) -> list[Edit]:
    return [
        draw.edit(2, "v", 9, [0, 1], [0, 1], read_at=12),
        draw.edit(2, "k", 9, [1, 5], [2, 0], read_at=10),
        draw.edit(2, "v", 8, [2], [0, 3], read_at=10),
        draw.edit(2, "k", 11, [2, 0], [0, 4]),
        draw.edit(2, "q", 10, [1], [0, 2]),
    ]


def partly_kept(draw: Draw) -> list[Edit]:
    return [
        draw.edit(0, "z", 9, [0, 1, 5], [0, 1, 4], kept=True),
        draw.edit(1, "q", 10, [4], [1, 2], kept=True, shared=True),
        draw.edit(2, "v", 8, [3, 1], [3, 2], kept=True, read_at=11),
        draw.edit(2, "k", 10, [3, 0], [0, 3], kept=True),
    ]


SCENARIOS = [
    at_the_last_position,
    inside_the_prompt,
    keys_and_values_read_anywhere,
    keys_and_values_read_at_one_later_position,
    read_where_they_are,
    several_readers_of_one_layer,
    partly_kept,
]


BASIC = [at_the_last_position, keys_and_values_read_at_one_later_position, partly_kept]
# every scenario where something differs: plain, sliding windows, both and a soft-cap, parallel blocks, post-norms
THOROUGH = ("llama", "mistral", "gemma2", "gpt_neox", "olmo2")
CASES = [(a, s) for a in ARCHITECTURES for s in (SCENARIOS if a in THOROUGH else BASIC)]


@pytest.mark.parametrize(("architecture", "scenario"), CASES, ids=[f"{a}-{s.__name__}" for a, s in CASES])
@torch.no_grad()
def test_both_executors_agree_with_the_looped_definition(architecture, scenario):
    chosen, tokens, edits = subject(architecture), random_tokens(), scenario(Draw())
    expected = chosen.reference.run(tokens, edits, N_VARIANTS)
    batch = batch_of(chosen, tokens)
    edited = torch.cat([edit.variants for edit in edits]).unique()
    assert (expected - batch.clean.logits)[edited].abs().amax(dim=(1, 2)).min() > 1e-4, "the edits must show"
    for executor in (FullExecutor(), WindowExecutor()):
        assert_same(executor.run(batch, edits, N_VARIANTS, everything), expected)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("architecture", ["mistral", "gemma3", "llama"])
@torch.no_grad()
def test_a_key_outside_the_sliding_window_is_not_read(architecture, executor):
    chosen, tokens, draw = subject(architecture), random_tokens(), Draw()
    edits = [draw.edit(2, what, 4, [1, 4], [0], read_at=9) for what in ("k", "v")]  # window of 5: 9 reads 5 to 9
    batch = batch_of(chosen, tokens)
    actual = executor.run(batch, edits, 1, everything)
    assert_same(actual, chosen.reference.run(tokens, edits, 1))
    changed = (actual[0] - batch.clean.logits).abs().max()
    assert changed > 1e-4 if architecture == "llama" else changed < 1e-12


@pytest.mark.parametrize("executor", EXECUTORS)
@torch.no_grad()
def test_an_edit_in_the_first_position_is_seen_by_all(executor):
    chosen, tokens, draw = subject("qwen3"), random_tokens(), Draw()
    edits = [draw.edit(1, "v", 0, [3], [0]), draw.edit(0, "z", 0, [1], [1]), draw.edit(1, "k", 0, [0], [2], read_at=12)]
    expected = chosen.reference.run(tokens, edits, 3)
    assert_same(executor.run(batch_of(chosen, tokens), edits, 3, everything), expected)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "opt"])
@torch.no_grad()
def test_as_many_prompts_as_positions_are_not_cut_along_the_wrong_axis(architecture, executor):
    chosen, tokens = subject(architecture), random_tokens(n_prompts=7, length=7)
    draw = Draw(n_prompts=7)
    edits = [draw.edit(1, "v", 3, [3, 1], [0]), draw.edit(2, "z", 6, [0], [1]), draw.edit(1, "q", 5, [2], [0])]
    expected = chosen.reference.run(tokens, edits, 2)
    assert_same(executor.run(batch_of(chosen, tokens), edits, 2, everything), expected)


@pytest.mark.parametrize("executor", EXECUTORS)
@torch.no_grad()
def test_one_variant_and_one_prompt_give_what_they_give_among_many(executor):
    chosen, tokens, edits = subject("gemma2"), random_tokens(), partly_kept(Draw())
    many = executor.run(batch_of(chosen, tokens), edits, N_VARIANTS, everything)
    for variant in range(N_VARIANTS):
        mine = [
            Edit(
                e.layer,
                e.what,
                e.at,
                e.heads,
                torch.tensor([0]),
                (e.replacement.expand(len(e.variants), 3, -1, -1)[e.variants == variant])[:, 1:2],
                (e.keep.expand(len(e.variants), 3, -1)[e.variants == variant])[:, 1:2],
                e.read_at,
            )
            for e in edits
            if variant in e.variants
        ]
        assert_same(executor.run(batch_of(chosen, tokens[1:2]), mine, 1, everything)[0], many[variant, 1:2])


@pytest.mark.parametrize("executor", EXECUTORS)
@torch.no_grad()
def test_a_clean_run_kept_from_a_position_on_is_enough_for_edits_from_there_on(executor):
    chosen, tokens, edits = subject("mistral"), random_tokens(), keys_and_values_read_at_one_later_position(Draw())
    expected = chosen.reference.run(tokens, edits, N_VARIANTS)
    assert_same(executor.run(batch_of(chosen, tokens, start=11), edits, N_VARIANTS, everything), expected)


@torch.no_grad()
def test_an_edit_before_the_kept_part_of_the_clean_run_is_an_error():
    chosen, tokens = subject("llama"), random_tokens()
    edit = Draw().edit(1, "z", 8, [2], [0])
    with pytest.raises(AssertionError, match="kept"):
        WindowExecutor().run(batch_of(chosen, tokens, start=9), [edit], 1, everything)


@pytest.mark.parametrize("executor", EXECUTORS)
@torch.no_grad()
def test_variants_without_edits_are_the_clean_run(executor):
    chosen, tokens = subject("olmo2"), random_tokens()
    batch = batch_of(chosen, tokens)
    actual = executor.run(batch, [], 2, everything)
    assert_same(actual, chosen.reference.logits(tokens).expand(2, -1, -1))


@pytest.mark.parametrize("what", ["z", "q", "k", "v"])
@pytest.mark.parametrize("executor", EXECUTORS)
@torch.no_grad()
def test_an_edit_that_keeps_all_changes_nothing(executor, what):
    chosen, tokens = subject("gemma3"), random_tokens()
    edit = Draw().edit(1, what, 9, [0, 4], [0, 1], kept=True)
    nothing = Edit(edit.layer, what, 9, edit.heads, edit.variants, edit.replacement, torch.ones_like(edit.keep))
    batch = batch_of(chosen, tokens)
    assert_same(executor.run(batch, [nothing], 2, everything), batch.clean.logits.expand(2, -1, -1))


@pytest.mark.parametrize("executor", EXECUTORS)
@torch.no_grad()
def test_the_readout_sees_each_row_with_the_prompt_it_belongs_to(executor, monkeypatch):
    monkeypatch.setattr("circuitdiff.engine.executor._UNEMBED_ROWS", 4)  # 15 rows: three and a part
    chosen, tokens = subject("llama"), random_tokens()
    answers = torch.tensor([7, 11, 50])
    edits = at_the_last_position(Draw())

    def of_answer(logits, prompts):
        return torch.stack([logits[torch.arange(len(prompts)), answers[prompts]], prompts.double()], 1)

    actual = executor.run(batch_of(chosen, tokens), edits, N_VARIANTS, of_answer)
    expected = chosen.reference.run(tokens, edits, N_VARIANTS)[:, torch.arange(3), answers]
    assert_same(actual[..., 0], expected)
    assert torch.equal(actual[..., 1], torch.arange(3.0).double().expand(N_VARIANTS, 3))


@torch.no_grad()
def test_the_clean_run_is_read_out_only_where_a_variant_has_no_edit():
    chosen, tokens, rows = subject("llama"), random_tokens(), []
    batch = batch_of(chosen, tokens)

    def counted(logits, _):
        rows.append(len(logits))
        return logits[:, :1]

    WindowExecutor().run(batch, at_the_last_position(Draw()), N_VARIANTS, counted)
    assert sum(rows) == N_VARIANTS * len(tokens)
    rows.clear()
    WindowExecutor().run(batch, at_the_last_position(Draw()), N_VARIANTS + 1, counted)
    assert sum(rows) == (N_VARIANTS + 1) * len(tokens)


@torch.no_grad()
def test_an_adapter_beside_the_output_projection_is_not_left_out():
    module = copy.deepcopy(subject("llama").model.module)
    adapter = peft.LoraConfig(r=3, target_modules=["o_proj", "k_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(adapter, module)
    adapted, tokens, edits = as_subject("llama", module.double()), random_tokens(), at_the_last_position(Draw())
    batch = batch_of(adapted, tokens)
    plain = subject("llama").model.forward(tokens)
    assert (batch.clean.logits - plain).abs().min(dim=1).values.max() > 1e-4, "the adapter must show"
    for executor in (FullExecutor(), WindowExecutor()):
        assert_same(
            executor.run(batch, edits, N_VARIANTS, everything), adapted.reference.run(tokens, edits, N_VARIANTS)
        )
        z_edits = [edit for edit in edits if edit.what == "z"]
        expected = adapted.reference.frozen(tokens, z_edits, N_VARIANTS, 12)
        assert_same(executor.frozen(batch, z_edits, N_VARIANTS, 12, everything), expected)
