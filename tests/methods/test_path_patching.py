"""Path patching against its definition, one sender and one prompt at a time."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.circuit import Head
from circuitdiff.engine import Edit, Model, Site
from circuitdiff.engine.fits import KEPT_SHARE
from circuitdiff.engine.kept_runs import PairRuns
from circuitdiff.errors import InputError
from circuitdiff.methods.path_patching import Path, group_path_effects, path_effects
from circuitdiff.prompts import Pairs
from helpers.fake_pairs import fake_pairs, logit_difference
from helpers.tiny_models import D_HEAD, N_HEADS, N_LAYERS, Subject, subject

RECEIVERS = [Head(2, 1), Head(2, 4), Head(3, 5)]
EVERYONE = torch.arange(N_HEADS)
ONE = torch.tensor([0])


def by_definition(chosen: Subject, pairs: Pairs, sender: Head, at: str, via=None, receivers_at=None) -> list[float]:
    return group_by_definition(chosen, pairs, [sender], at, via, receivers_at)


def group_by_definition(
    chosen: Subject, pairs: Pairs, senders: list[Head], at: str, via=None, receivers_at=None
) -> list[float]:
    """The effect of senders on each prompt, each run on its own, without padding and without the engine."""
    effects = []
    for i in range(len(pairs)):
        clean = pairs.clean[i : i + 1, : pairs.lengths[i]]
        other = pairs.counterfactual[i : i + 1, : pairs.counterfactual_lengths[i]]
        here, there = int(pairs.positions[at][i]), int(pairs.counterfactual_positions[at][i])
        edits = []
        for layer in sorted({sender.layer for sender in senders}):
            z = chosen.reference.clean(clean).seen[layer, "z"][:, here].clone()
            for sender in senders:
                if sender.layer == layer:
                    z[:, sender.index] = chosen.reference.clean(other).seen[layer, "z"][:, there, sender.index]
            edits.append(Edit(layer, "z", here, EVERYONE, ONE, z[None]))
        if via is None:
            patched = chosen.reference.frozen(clean, edits, 1, here)
        else:
            layers = sorted({head.layer for head in RECEIVERS})
            sites = [Site(n, via, here, torch.tensor([h.index for h in RECEIVERS if h.layer == n])) for n in layers]
            read_at = None if receivers_at is None else int(pairs.positions[receivers_at][i])
            patched = chosen.reference.path_patched(clean, edits, 1, here, sites, read_at)
        effects.append(
            logit_difference(patched[0], pairs, i) - logit_difference(chosen.reference.logits(clean), pairs, i)
        )
    return effects


PATHS = {
    "direct": ("last", None, None),
    "via_q": ("last", "q", None),
    "via_v_read_anywhere": ("previous_query_label", "v", None),
    "via_v_read_at_one_role": ("previous_query_label", "v", "query_label"),
    "via_k_read_at_one_role": ("previous_query_label", "k", "last"),
}


@pytest.mark.parametrize("executor", ["window", "full"])
@pytest.mark.parametrize("path", PATHS)
def test_effects_agree_with_the_definition(path, executor):
    at, via, receivers_at = PATHS[path]
    chosen, pairs = subject("llama"), fake_pairs()
    senders = [Head(0, 0), Head(1, 5), Head(1, 2)]
    receivers = None if via is None else tuple(RECEIVERS)
    found = path_effects(chosen.model, pairs, at, receivers, via, receivers_at, senders, executor=executor)
    for sender in senders:
        expected = torch.tensor(by_definition(chosen, pairs, sender, at, via, receivers_at), dtype=torch.float64)
        actual = found.per_prompt[sender.layer, sender.index]
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_the_window_executor_gives_what_the_full_one_gives_for_all_senders():
    chosen, pairs = subject("qwen2"), fake_pairs()
    window, full = (path_effects(chosen.model, pairs, "last", RECEIVERS, "q", executor=e) for e in ("window", "full"))
    torch.testing.assert_close(window.per_prompt, full.per_prompt, rtol=0, atol=1e-10)


def test_senders_in_the_last_receivers_layer_or_later_have_exactly_no_effect():
    chosen, pairs = subject("llama"), fake_pairs()
    effects = path_effects(chosen.model, pairs, "last", [Head(2, 1)], "q").per_prompt
    assert (effects[2:] == 0).all()
    assert (effects[:2] != 0).all()


def test_heads_that_were_not_senders_are_nan():
    chosen, pairs = subject("llama"), fake_pairs()
    effects = path_effects(chosen.model, pairs, "last", senders=[Head(1, 3)]).effects
    assert effects.isnan().sum() == N_LAYERS * N_HEADS - 1
    assert not effects[1, 3].isnan()


def test_little_memory_changes_nothing_but_the_order_of_work():
    chosen, pairs = subject("llama"), fake_pairs()
    args = (chosen.model, pairs, "previous_query_label", RECEIVERS, "v")
    whole, parts = path_effects(*args), path_effects(*args, memory_gb=5e-5)
    torch.testing.assert_close(parts.per_prompt, whole.per_prompt, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n_kept", [5, 2])
def test_sweeps_that_share_their_runs_give_what_each_gives_alone(n_kept):
    chosen, pairs = subject("llama"), fake_pairs()
    roles = [role for at, _, receivers_at in PATHS.values() for role in (at, receivers_at) if role]
    sources = PairRuns(chosen.model, pairs, roles, 1.0, keep=False).may_take_gb
    room = (PairRuns(chosen.model, pairs, roles, 1.0).may_take_gb - sources) / len(pairs) / KEPT_SHARE
    shared = PairRuns(chosen.model, pairs, roles, (n_kept + 0.5) * room)
    assert shared._runs.n_kept == min(n_kept, len(pairs))
    for at, via, receivers_at in PATHS.values():
        args = (chosen.model, pairs, at, None if via is None else RECEIVERS, via, receivers_at)
        alone, together = path_effects(*args), path_effects(*args, shared=shared)
        torch.testing.assert_close(together.per_prompt, alone.per_prompt, rtol=0, atol=1e-10)


def test_sweeps_that_share_their_runs_run_every_prompt_once(monkeypatch):
    chosen, pairs, n_run = subject("llama"), fake_pairs(), []
    forward = Model.forward
    monkeypatch.setattr(Model, "forward", lambda self, tokens: n_run.append(len(tokens)) or forward(self, tokens))
    shared = PairRuns(chosen.model, pairs, ["last", "previous_query_label"], memory_gb=1.0)
    path_effects(chosen.model, pairs, "last", shared=shared)
    path_effects(chosen.model, pairs, "previous_query_label", RECEIVERS, "v", "last", shared=shared)
    assert sum(n_run) == 2 * len(pairs)


def test_progress_ends_at_the_whole():
    seen: list[tuple[int, int]] = []
    chosen = subject("llama")
    path_effects(chosen.model, fake_pairs(), "last", RECEIVERS, "q", progress=lambda *step: seen.append(step))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_the_noise_floor_is_far_below_the_effects_and_not_zero_by_construction():
    chosen, pairs = subject("llama"), fake_pairs()
    found = path_effects(chosen.model, pairs, "last")
    assert found.noise_floor < 1e-10
    assert found.effects.abs().max() > 1e-3


def test_the_counterfactuals_own_answer_gets_an_effect_of_its_own():
    chosen, pairs = subject("llama"), fake_pairs(own_answers=True)
    sender = Head(3, 2)
    found = path_effects(chosen.model, pairs, "last", senders=[sender], metric="log_prob")
    assert found.on_counterfactual_answer is not None
    swapped = fake_pairs()
    object.__setattr__(swapped, "answers", torch.full((5,), 8))
    expected = path_effects(chosen.model, swapped, "last", senders=[sender], metric="log_prob")
    actual = found.on_counterfactual_answer[sender.layer, sender.index]
    torch.testing.assert_close(actual, expected.per_prompt[sender.layer, sender.index], rtol=0, atol=1e-10)


def test_for_the_other_answer_the_logit_difference_is_against_the_clean_answer_and_the_rest():
    chosen, pairs = subject("llama"), fake_pairs(own_answers=True)
    found = path_effects(chosen.model, pairs, "last", senders=[Head(3, 2)])
    swapped = fake_pairs()
    rest = torch.where(pairs.foils == 8, pairs.answers[:, None], pairs.foils)
    object.__setattr__(swapped, "answers", torch.full((5,), 8))
    object.__setattr__(swapped, "foils", rest)
    expected = path_effects(chosen.model, swapped, "last", senders=[Head(3, 2)])
    assert found.on_counterfactual_answer is not None
    torch.testing.assert_close(found.on_counterfactual_answer, expected.per_prompt, rtol=0, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"at": "nowhere"}, r"no role 'nowhere'; it has absent, last"),
        ({"at": "absent", "receivers": RECEIVERS, "via": "v"}, "has no place in some prompts"),
        ({"at": "query_label"}, "name receivers that read it"),
        ({"at": "last", "receivers": RECEIVERS}, "receivers and via go together"),
        ({"at": "last", "via": "q"}, "receivers and via go together"),
        ({"at": "last", "receivers": [], "via": "q"}, "list of receivers is empty"),
        ({"at": "last", "receivers": [Head(4, 0)], "via": "q"}, r"head 4\.0 does not exist: llama has 4 layers of 6"),
        ({"at": "last", "senders": [Head(0, 6)]}, r"head 0\.6 does not exist"),
        ({"at": "last", "senders": [Head(-1, 0)]}, r"head -1\.0 does not exist"),
        ({"at": "last", "receivers": RECEIVERS, "via": "v", "receivers_at": "query_label"}, "which comes later"),
        ({"at": "last", "receivers": RECEIVERS, "via": "q", "receivers_at": "last"}, "goes with via 'k' or 'v'"),
        ({"at": "last", "metric": "bleu"}, "logit_difference"),
        ({"at": "last", "executor": "fast"}, "'window' or 'full'"),
    ],
)
def test_a_path_that_cannot_work_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        path_effects(subject("llama").model, fake_pairs(), **arguments)


def test_the_fake_prompts_have_the_sizes_that_catch_mixed_axes():
    pairs = fake_pairs()
    assert len({N_LAYERS, N_HEADS, D_HEAD, len(pairs), pairs.clean.shape[1], pairs.foils.shape[1]}) == 6


@pytest.mark.parametrize("executor", ["window", "full"])
@pytest.mark.parametrize("path", PATHS)
def test_a_groups_effect_is_that_of_all_its_heads_patched_together(path, executor):
    at, via, receivers_at = PATHS[path]
    chosen, pairs = subject("llama"), fake_pairs()
    groups = {"two_layers": [Head(0, 0), Head(1, 5), Head(1, 2)], "one": [Head(1, 3)]}
    receivers = None if via is None else tuple(RECEIVERS)
    found = {
        name: group_path_effects(chosen.model, pairs, group, Path(at, receivers, via, receivers_at), executor=executor)
        for name, group in groups.items()
    }
    for name, group in groups.items():
        expected = group_by_definition(chosen, pairs, group, at, via, receivers_at)
        torch.testing.assert_close(found[name], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)
    alone = path_effects(chosen.model, pairs, at, receivers, via, receivers_at, groups["one"], executor=executor)
    torch.testing.assert_close(found["one"], alone.per_prompt[1, 3])
