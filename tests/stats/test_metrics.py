import math

import pytest
import torch

from circuitdiff.errors import InputError
from circuitdiff.stats.metrics import METRICS, hit, log_prob, logit_difference, metric_named, probability_difference

LOGITS = torch.tensor([[1.0, 4.0, 2.5, 9.0], [3.0, 0.0, 3.0, -1.0]])
ANSWER = torch.tensor([[1], [0]])
ALTERNATIVES = torch.tensor([[0, 2], [1, 3]])


def test_the_logit_difference_is_against_the_best_other_listed_answer():
    assert logit_difference(LOGITS, ANSWER, ALTERNATIVES).tolist() == [1.5, 3.0]


def test_a_constant_on_all_logits_changes_neither_quantity():
    for metric in METRICS.values():
        moved = metric.quantity(LOGITS + 7, ANSWER, ALTERNATIVES)
        torch.testing.assert_close(moved, metric.quantity(LOGITS, ANSWER, ALTERNATIVES))


def test_log_prob_is_that_of_the_softmax_over_the_whole_vocabulary():
    expected = torch.distributions.Categorical(logits=LOGITS.double()).log_prob(ANSWER[:, 0])
    torch.testing.assert_close(log_prob(LOGITS.double(), ANSWER), expected)


def test_a_hit_is_the_argmax_over_everything_and_of_equal_logits_the_lowest_token():
    assert hit(LOGITS, ANSWER).tolist() == [False, True]
    assert hit(LOGITS, torch.tensor([[3], [2]])).tolist() == [True, False]


def test_a_set_counts_each_token_once_however_rows_are_filled_up():
    logits = torch.tensor([[0.0, 1.0, 3.0, 2.0, -1.0]], dtype=torch.float64)
    right, foils = torch.tensor([[2, 4, 2, 4, 2]]), torch.tensor([[0, 1, 1, 0]])
    whole = sum(math.exp(x) for x in (0, 1, 3, 2, -1))
    of_right, of_foils = (math.exp(3) + math.exp(-1)) / whole, (math.exp(0) + math.exp(1)) / whole
    assert float(log_prob(logits, right)) == pytest.approx(math.log(of_right), abs=1e-12)
    assert float(probability_difference(logits, right, foils)) == pytest.approx(of_right - of_foils, abs=1e-12)
    assert float(logit_difference(logits, right, foils)) == 2.0
    assert bool(hit(logits, right))
    assert not bool(hit(logits, foils))


def test_the_log_prob_of_one_token_is_its_logit_less_that_of_all_to_the_last_bit():
    logits = torch.randn(50, 31, generator=torch.Generator().manual_seed(0)) * 9
    token = torch.arange(50)[:, None] % 31
    assert torch.equal(log_prob(logits, token), logits.gather(1, token)[:, 0] - logits.logsumexp(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_worked_on_in_float32(dtype):
    # 30.0 and 29.75 are exact in both; their log-probabilities differ by 0.25 exactly, which bfloat16 cannot hold at -8
    logits = torch.full((2, 5000), 21.0, dtype=dtype)
    logits[0, 3], logits[1, 3] = 20.25, 20.5
    answer = torch.tensor([[3], [3]])
    exact = torch.log_softmax(logits.double(), 1)[:, 3]
    assert log_prob(logits, answer).dtype == torch.float32
    torch.testing.assert_close(log_prob(logits, answer).double(), exact, rtol=0, atol=1e-5)
    assert logit_difference(logits, answer, torch.tensor([[1], [2]])).dtype == torch.float32


def test_double_precision_stays_double():
    assert log_prob(LOGITS.double(), ANSWER).dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "patched", "clean", "effect"),
    [
        ("logit_difference", 1.0, 3.5, -2.5),
        ("log_prob", -2.0, -0.5, -1.5),
        ("probability_difference", 0.25, 0.75, -0.5),
        ("relative_probability", torch.tensor(0.1).log().item(), torch.tensor(0.4).log().item(), -0.75),
        ("relative_probability", torch.tensor(0.4).log().item(), torch.tensor(0.05).log().item(), 7.0),
    ],
)
def test_effects_by_hand(name, patched, clean, effect):
    actual = metric_named(name).effect(torch.tensor([patched]), torch.tensor([clean]))
    torch.testing.assert_close(actual, torch.tensor([effect]))


def test_one_clean_row_serves_many_patched_ones():
    patched, clean = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 4)
    for metric in METRICS.values():
        assert metric.effect(patched, clean).shape == (3, 4)


def test_the_relative_change_of_a_vanishing_probability_keeps_its_digits():
    clean = torch.tensor([-200.0])
    halved = metric_named("relative_probability").effect(clean - math.log(2), clean)
    # exp(-200) is 0 in float32, so p' / p would be 0 / 0; 2e-5: resolution of float32 at 200
    torch.testing.assert_close(halved, torch.tensor([-0.5]), rtol=0, atol=2e-5)


def test_an_unknown_metric_names_the_known_ones():
    with pytest.raises(
        InputError,
        match=r"one of logit_difference, log_prob, relative_probability, probability_difference; got 'accuracy'",
    ):
        metric_named("accuracy")
