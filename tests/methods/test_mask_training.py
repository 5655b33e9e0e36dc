"""How a mask is trained: when it ends, which mask is kept, and what its gates may be."""

from __future__ import annotations

import pytest
import torch

from circuitdiff.methods.component_mask.patching import Patching
from circuitdiff.methods.component_mask.training import GATES, Part, Training, train_mask
from helpers.fake_triples import fake_triples
from helpers.masked_subject import HEADS, patching_of
from helpers.tiny_models import subject


def answering(accuracies) -> Patching:
    """A patching whose right answers are 1, as often as is said for each number of heads; all heads want patching."""
    patching = patching_of(subject("llama"), fake_triples(), "last")
    fakes = {
        "answers": lambda patched, rows: (torch.arange(len(rows)) < len(rows) * accuracies[len(patched)]).long(),
        "buckets": lambda rows, training: [rows],
        "values": lambda heads, keep, bucket, quantity: keep.sum()[None],
    }
    for name, fake in fakes.items():
        object.__setattr__(patching, name, fake)
    return patching


def test_training_ends_once_the_rounded_mask_stays_the_same():
    part = Part(torch.arange(10), torch.ones(10, dtype=torch.long))
    patching = answering({0: 0.5, 4: 0.7})
    how = Training(steps=40, check_every=2, patience=3)
    mask = train_mask(patching, HEADS, part, part, how, penalty=0.0)
    assert [(check.step, check.n_patched) for check in mask.checks] == [
        (0, 0),
        (2, 0),
        (4, 0),
        (6, 4),
        (8, 4),
        (10, 4),
        (12, 4),
    ]


def test_a_mask_that_could_not_have_moved_yet_does_not_end_the_training():
    """At a fifth of the learning rate no head can be patched before step 26."""
    part = Part(torch.arange(10), torch.ones(10, dtype=torch.long))
    how = Training(steps=40, check_every=5, patience=3, learning_rate=0.02)
    mask = train_mask(answering({0: 0.5, 4: 0.7}), HEADS, part, part, how, penalty=0.0)
    assert how.first_move == 26
    assert len(mask.patched) == 4
    assert [check.step for check in mask.checks] == [0, 5, 10, 15, 20, 25, 30, 35, 40]


def test_wide_windows_take_fewer_prompts_a_step(monkeypatch):
    seen = []
    monkeypatch.setattr(
        Patching, "buckets", lambda self, rows, training: seen.append(len(rows)) or [] if training else []
    )
    part = Part(torch.arange(20), torch.ones(20, dtype=torch.long))
    for at in ("last", "middle"):
        patching = patching_of(subject("llama"), fake_triples(), at, memory_gb=0.0)
        train_mask(patching, HEADS, part, part, Training(steps=1, positions_per_step=21), penalty=0.0)
    width = float((patching.widths[:20]).double().mean())
    assert seen == [20, int(21 / width)]
    assert 3 < width < 5


@pytest.mark.parametrize(("accuracies", "expected"), [((0.5, 0.5), 0), ((0.4, 0.5), 4), ((0.6, 0.5), 0)])
def test_the_best_mask_on_validation_is_kept_and_of_equal_ones_that_with_fewer_heads(accuracies, expected):
    patching = answering({0: accuracies[0], 4: accuracies[1]})
    part = Part(torch.arange(10), torch.ones(10, dtype=torch.long))
    mask = train_mask(patching, HEADS, part, part, Training(steps=9, check_every=2), penalty=0.0)
    assert len(mask.patched) == expected
    assert mask.validation_accuracy == max(accuracies)
    assert [check.step for check in mask.checks] == [0, 2, 4, 6, 8, 9]


def test_masks_stay_between_0_and_1_and_begin_at_1():
    for name in ("clamped", "hard_concrete"):
        gates, g = GATES[name], torch.Generator().manual_seed(0)
        start = torch.full((5,), gates.start, dtype=torch.float64)
        torch.testing.assert_close(gates.keep(start), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-12)
        for parameter in (start, start - 40, start + 40):
            for keep in (gates.keep(parameter.clone()), gates.sample(parameter.clone(), g)):
                assert name == "clamped" or ((keep >= 0) & (keep <= 1)).all()
    parameter = torch.tensor([1.3, -0.2, 0.4])
    GATES["clamped"].project(parameter)
    assert parameter.tolist() == pytest.approx([1.0, 0.0, 0.4])


def test_the_penalty_of_hard_concrete_gates_is_the_expected_number_that_patch_at_all():
    gates, g = GATES["hard_concrete"], torch.Generator().manual_seed(0)
    parameter = torch.tensor([-2.0, 0.3, 1.5], dtype=torch.float64)
    drawn = torch.stack([gates.sample(parameter, g) < 1 for _ in range(4000)]).double().mean(0)
    assert float(gates.n_patched(parameter)) == pytest.approx(float(drawn.sum()), abs=0.04)  # 3 s.e.
