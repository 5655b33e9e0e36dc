"""Mixtures of two models' weights that share their runs, against each mixture run by itself."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.engine.capture import capture
from circuitdiff.engine.mixtures import Mixture, mixtures_of, run_mixtures
from circuitdiff.engine.replay import run_layer
from circuitdiff.engine.weights import Slice, complement, head_slices, swapped
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import N_LAYERS, subject
from helpers.two_tiny_models import donor_of


def everything(logits, _):
    return logits


def whole_layer(model, layer: int) -> list[Slice]:
    inside = {id(p) for p in model.layers[layer].parameters()}
    return [Slice(name) for name, p in model.module.named_parameters() if id(p) in inside]


def wanted(model) -> list[Mixture]:
    """Alike up to different layers, in embeddings or not, the same twice, and the other way round."""
    late, early = head_slices(model, 3, [1, 5], "q"), head_slices(model, 1, [0], "v")
    one, last = whole_layer(model, 1), whole_layer(model, N_LAYERS - 1)
    layers = {id(p) for layer in model.layers for p in layer.parameters()}
    outside = [Slice(name) for name, p in model.module.named_parameters() if id(p) not in layers]
    several = [[], late, early, [*late, *early], one, last, outside, [*outside, *early], [*early, *one]]
    return [Mixture(tuple(pieces), inverted) for pieces in several for inverted in (False, True)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "gemma2"])
@torch.no_grad()
def test_shared_runs_are_those_of_each_mixture_by_itself(architecture):
    model, other, prompts = subject(architecture).model, donor_of(architecture).model, fake_pairs().clean_prompts
    mixtures = wanted(model)
    found = run_mixtures(mixtures_of(model, other, mixtures), prompts, everything)
    names = [name for name, _ in model.module.named_parameters()]
    for mixture, values in zip(mixtures, found, strict=True):
        pieces = complement(model.module, mixture.slices, names) if mixture.inverted else mixture.slices
        with swapped(model, pieces, other):
            expected = capture(model, prompts, readout=everything)
        torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-10)


def test_a_layer_is_run_once_for_all_mixtures_that_are_alike_up_to_it(monkeypatch):
    model, other, runs = subject("llama").model, donor_of("llama").model, []
    one = fake_pairs().clean_prompts.select(torch.tensor([0]))
    monkeypatch.setattr("circuitdiff.engine.mixtures.run_layer", lambda *args: runs.append(1) or run_layer(*args))
    late, later = (tuple(head_slices(model, layer, [1], "q")) for layer in (2, 3))

    def n_runs(*mixtures: Mixture, of=other) -> int:
        runs.clear()
        run_mixtures(mixtures_of(model, of, mixtures), one, everything)
        return len(runs)

    assert n_runs(Mixture(())) == N_LAYERS == 4
    assert n_runs(Mixture(()), Mixture(())) == 4
    assert n_runs(Mixture(()), Mixture(late)) == 4 + 2
    assert n_runs(Mixture(()), Mixture(late), Mixture(later), Mixture((*late, *later))) == 4 + 2 + 1 + 1
    assert n_runs(Mixture(()), Mixture((), inverted=True)) == 8
    assert n_runs(Mixture(()), Mixture(late), of=model) == 4, "nothing differs"


def test_progress_counts_mixtures_and_prompts():
    model, other, seen = subject("llama").model, donor_of("llama").model, []
    pairs = fake_pairs()
    two = mixtures_of(model, other, [Mixture(()), Mixture((), inverted=True)])
    run_mixtures(two, pairs.clean_prompts, everything, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2 * len(pairs), 2 * len(pairs))
