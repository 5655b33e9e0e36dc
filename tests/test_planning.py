"""The plan that is printed before the work: its arithmetic, by hand."""

from __future__ import annotations

import pytest

from circuitdiff import planning
from circuitdiff.models import load_model
from circuitdiff.settings import read_settings
from circuitdiff.study import plans_of
from circuitdiff.workbench import sample_splits
from tiny_folder import N_HEADS, N_LAYERS, save_tiny_model, study_yaml


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    model = load_model(save_tiny_model(folder / "model"))
    (folder / "s.yaml").write_text(study_yaml(folder / "model"))
    settings = read_settings(folder / "s.yaml")
    pairs = sample_splits(settings, model).evaluation
    return model, planning.estimate(settings, plans_of(settings), model, pairs)


def test_a_stage_that_two_plans_share_counts_once(planned):
    _, expected = planned
    assert [part.what.partition(" (")[0] for part in expected.parts] == [
        "fetcher",
        "transmitter",
        "evaluation of the main circuit",
        "evaluation of the other circuit",
    ]


def test_a_sweep_straight_into_the_logits_costs_one_token_in_half_of_the_layers(planned):
    model, expected = planned
    layer = 2 * sum(p.numel() for p in model.layers[0].parameters())
    head = 2 * 28 * len(model.tokenizer)
    runs = 6 * N_LAYERS * N_HEADS  # prompts x senders
    assert expected.parts[0].forwards == runs
    assert expected.parts[0].flop == pytest.approx(runs * (N_LAYERS / 2 * layer + head))


def test_a_sweep_into_q_at_the_last_token_adds_one_token_more(planned):
    model, expected = planned
    layer = 2 * sum(p.numel() for p in model.layers[0].parameters())
    runs = 6 * N_LAYERS * N_HEADS
    assert expected.parts[1].forwards == 2 * runs
    assert expected.parts[1].flop - expected.parts[0].flop == pytest.approx(runs * N_LAYERS / 2 * layer)


def test_minutes_are_flop_at_the_measured_speed(planned, monkeypatch):
    _, expected = planned
    speeds = {part.flop / part.minutes for part in expected.parts}
    assert max(speeds) == pytest.approx(min(speeds))
    assert expected.memory_gb > 0.6
