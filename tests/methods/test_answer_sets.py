"""Sets of right answers, answers of several tokens and metrics of one's own, against loops over prompts and tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from circuitdiff.circuit import Group, Head
from circuitdiff.engine import Edit
from circuitdiff.errors import InputError
from circuitdiff.evaluation import evaluate_model
from circuitdiff.methods.attribution_patching import attribution
from circuitdiff.methods.discovery import Stage, measure_with
from circuitdiff.methods.group_profile import effect_by_role
from circuitdiff.methods.knockout import random_keys
from circuitdiff.methods.path_patching import Path, group_path_effects, path_effects
from circuitdiff.prompts import Pairs
from circuitdiff.stats.metrics import METRICS
from helpers.fake_pairs import fake_pairs
from helpers.tiny_models import N_HEADS, subject

MODEL, REFERENCE = subject("llama").model, subject("llama").reference
SENDERS = [Head(0, 0), Head(1, 5), Head(3, 2)]
EVERYONE, ONE = torch.arange(N_HEADS), torch.tensor([0])


def clean_logits(pairs: Pairs, i: int) -> Tensor:
    return REFERENCE.logits(pairs.clean[i : i + 1, : pairs.lengths[i]])[0]


def sets(own_answers: bool = False) -> Pairs:
    """Four right answers, three of them in the third prompt, one in the first; some are what the model answers."""
    pairs = fake_pairs(own_answers=own_answers)
    best = [int(clean_logits(pairs, i).argmax()) for i in range(len(pairs))]
    right = torch.tensor([[7, 7, 7, 7], [9, best[1], 9, 9], [11, 40, 41, 11], [13, 42, best[3], 44], [15, 45, 15, 46]])
    return replace(pairs, right=right)


def by_hand(metric: str, logits: Tensor, right: list[int], foils: list[int]) -> float:
    """A metric's quantity of one prompt, token by token."""
    probabilities = [float(p) for p in logits.exp() / logits.exp().sum()]
    of_right, of_foils = (sum(probabilities[token] for token in set(tokens)) for tokens in (right, foils))
    if metric == "logit_difference":
        return max(float(logits[token]) for token in right) - max(float(logits[token]) for token in foils)
    if metric == "probability_difference":
        return of_right - of_foils
    return of_right if metric == "relative_probability" else float(torch.tensor(of_right, dtype=torch.float64).log())


def effect_by_hand(metric: str, patched: Tensor, clean: Tensor, right: list[int], foils: list[int]) -> float:
    after, before = (by_hand(metric, logits, right, foils) for logits in (patched, clean))
    return (after - before) / (before if metric == "relative_probability" else 1)


def patched_logits(pairs: Pairs, sender: Head, i: int) -> Tensor:
    """With the sender's z at the last position from the counterfactual, straight into the logits."""
    clean = pairs.clean[i : i + 1, : pairs.lengths[i]]
    other = pairs.counterfactual[i : i + 1, : pairs.counterfactual_lengths[i]]
    here, there = int(pairs.positions["last"][i]), int(pairs.counterfactual_positions["last"][i])
    z = REFERENCE.clean(clean).seen[sender.layer, "z"][:, here].clone()
    z[:, sender.index] = REFERENCE.clean(other).seen[sender.layer, "z"][:, there, sender.index]
    return REFERENCE.frozen(clean, [Edit(sender.layer, "z", here, EVERYONE, ONE, z[None])], 1, here)[0, 0]


def close(actual: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)


def test_a_set_is_hit_by_any_answer_and_weighs_what_all_weigh_together():
    pairs, found = sets(), evaluate_model(MODEL, sets())
    for i in range(len(pairs)):
        logits, right, foils = clean_logits(pairs, i), pairs.right_answers[i].tolist(), pairs.foils[i].tolist()
        assert found.hits[i] == (int(logits.argmax()) in right)
        assert float(found.logit_differences[i]) == pytest.approx(by_hand("logit_difference", logits, right, foils))
        assert float(found.log_probs[i]) == pytest.approx(by_hand("log_prob", logits, right, foils), abs=1e-10)
    assert found.hits.tolist() == [False, True, False, True, False]


def test_a_set_of_one_changes_no_bit():
    pairs = fake_pairs(own_answers=True)
    repeated = replace(pairs, right=pairs.answers[:, None].expand(-1, 3).contiguous())
    first, second = (evaluate_model(MODEL, each) for each in (pairs, repeated))
    for field in ("hits", "predictions", "logit_differences", "log_probs"):
        assert torch.equal(getattr(first, field), getattr(second, field))
    for metric in METRICS:
        one, other = (path_effects(MODEL, each, "last", senders=SENDERS, metric=metric) for each in (pairs, repeated))
        assert torch.equal(one.per_prompt[0, 0], other.per_prompt[0, 0])
        assert one.on_counterfactual_answer is not None
        assert other.on_counterfactual_answer is not None
        assert torch.equal(one.on_counterfactual_answer[0, 0], other.on_counterfactual_answer[0, 0])


@pytest.mark.parametrize("metric", METRICS)
def test_effects_on_a_set_agree_with_loops(metric):
    pairs = sets(own_answers=True)
    found = path_effects(MODEL, pairs, "last", senders=SENDERS, metric=metric)
    assert found.on_counterfactual_answer is not None
    for sender in SENDERS:
        both: tuple[list[float], list[float]] = [], []
        for i in range(len(pairs)):
            logits = patched_logits(pairs, sender, i), clean_logits(pairs, i)
            right, foils = pairs.right_answers[i].tolist(), pairs.foils[i].tolist()
            both[0].append(effect_by_hand(metric, *logits, right, foils))
            swapped = [foil for foil in foils if foil != 8] + right  # 8 is the counterfactual's answer, and listed
            both[1].append(effect_by_hand(metric, *logits, [8], swapped))
        close(found.per_prompt[sender.layer, sender.index], both[0])
        close(found.on_counterfactual_answer[sender.layer, sender.index], both[1])


def test_a_metric_of_ones_own_sees_its_rows_and_is_named():
    pairs, asked = sets(own_answers=True), torch.tensor([3, 60, 17, 29, 5])

    def entropy_and_more(logits: Tensor, prompt: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1) + logits.gather(1, asked[prompt, None])[:, 0]

    def loop(logits: Tensor, i: int) -> float:
        p = [float(x) for x in logits.exp() / logits.exp().sum()]
        return -sum(x * float(torch.tensor(x, dtype=torch.float64).log()) for x in p) + float(logits[asked[i]])

    found = path_effects(MODEL, pairs, "last", senders=SENDERS, metric=entropy_and_more, memory_gb=1e-5)
    assert found.metric == "entropy_and_more"
    assert found.on_counterfactual_answer is None
    for sender in SENDERS:
        expected = [
            loop(patched_logits(pairs, sender, i), i) - loop(clean_logits(pairs, i), i) for i in range(len(pairs))
        ]
        close(found.per_prompt[sender.layer, sender.index], expected)
    measure = measure_with(MODEL, {"discovery": pairs}, metric=entropy_and_more)
    staged = measure(Stage("first", "last"), None, "discovery", None)
    torch.testing.assert_close(staged.per_prompt[1, 5], found.per_prompt[1, 5], rtol=0, atol=1e-12)


def share(logits: Tensor, prompt: Tensor, by: float) -> Tensor:
    return logits[:, 0] / by


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            lambda logits, prompt: logits,
            r"metric <lambda>: expected a tensor \[\d+\] .*each row.*; got \[\d+, 61\]: corr",
        ),
        (lambda logits, prompt: 1.0, r"metric <lambda>: .*got float"),
        (partial(share, by=0.0), r"metric partial: .*finite.*got nan or infinity"),
    ],
)
def test_a_metric_that_gives_no_number_for_each_row_is_refused_by_name(metric, message):
    with pytest.raises(InputError, match=message):
        path_effects(MODEL, fake_pairs(), "last", senders=SENDERS, metric=metric)


def test_groups_and_gradients_take_the_best_of_a_set():
    pairs, heads = sets(), (Head(3, 2),)
    expected = [
        effect_by_hand(
            "logit_difference",
            patched_logits(pairs, heads[0], i),
            clean_logits(pairs, i),
            pairs.right_answers[i].tolist(),
            pairs.foils[i].tolist(),
        )
        for i in range(len(pairs))
    ]
    close(group_path_effects(MODEL, pairs, heads, Path("last")), expected)
    # In the last layer nothing attends to what was patched, so that freezing or not is the same.
    close(effect_by_role(MODEL, {"g": Group("last", heads)}, pairs, ["last"])["g"][0], expected)
    best = [max(pairs.right_answers[i].tolist(), key=lambda token: clean_logits(pairs, i)[token]) for i in range(5)]
    alone = replace(pairs, answers=torch.tensor(best), right=None)
    assert best != pairs.answers.tolist()
    of_set, of_best = (attribution(MODEL, each, "last").per_prompt["last"] for each in (pairs, alone))
    torch.testing.assert_close(of_set, of_best, rtol=0, atol=1e-12)


def test_a_random_key_is_none_of_the_right_answers():
    pairs = sets()
    tokens = pairs.clean.clone()
    tokens[:, 3], tokens[:, 5] = pairs.right_answers[:, 1], pairs.right_answers[:, 2]
    pairs = replace(pairs, clean_prompts=replace(pairs.clean_prompts, tokens=tokens))
    drawn = torch.stack([random_keys(pairs, "last", (), seed=seed) for seed in range(100)])
    assert not {3, 5} & set(drawn.flatten().tolist())


def continued() -> Pairs:
    """Answers of one to three tokens; the second and the fourth are what the model says, the last to its second."""
    pairs = fake_pairs()
    answers, more = pairs.answers.clone(), torch.tensor([[19, 4], [0, -1], [-1, -1], [0, 0], [0, 12]])
    for i in (1, 3, 4):
        answers[i] = clean_logits(pairs, i).argmax()
        given = [int(answers[i])]
        for place in range(2):
            tokens = torch.cat([pairs.clean[i, : pairs.lengths[i]], torch.tensor(given)])[None]
            if more[i, place] == 0:
                more[i, place] = REFERENCE.logits(tokens)[0].argmax()
            given.append(int(more[i, place]))
    return replace(pairs, answers=answers, foils=pairs.foils % 34, continuations=more)


def test_an_answer_of_several_tokens_is_read_token_by_token_after_the_right_ones():
    pairs, found = continued(), evaluate_model(MODEL, continued())
    for i in range(len(pairs)):
        tokens, hit, log_prob = pairs.clean[i : i + 1, : pairs.lengths[i]], True, 0.0
        answer = [int(pairs.answers[i]), *(token for token in pairs.continuations[i].tolist() if token >= 0)]
        for token in answer:
            logits = REFERENCE.logits(tokens)[0]
            hit = hit and int(logits.argmax()) == token
            log_prob += float(logits.log_softmax(0)[token])
            tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
        assert bool(found.hits[i]) == hit
        assert float(found.log_probs[i]) == pytest.approx(log_prob, abs=1e-10)
        first, foils = clean_logits(pairs, i), pairs.foils[i].tolist()
        assert float(found.logit_differences[i]) == pytest.approx(
            by_hand("logit_difference", first, answer[:1], foils), abs=1e-10
        )
        assert found.predictions[i] == first.argmax()
    assert found.hits.tolist() == [False, True, False, True, False]
    assert len(set(pairs.lengths.tolist())) > 1


def test_prompts_read_with_their_answer_must_fit_the_model():
    pairs, limit = continued(), MODEL.module.config.max_position_embeddings
    long = pairs.continuations.new_full((5, limit - 12), -1)
    long[0] = 5
    with pytest.raises(InputError, match=rf"clean prompts, row 0 .*at most {limit} tokens.*got {limit + 1}: shorten"):
        evaluate_model(MODEL, replace(pairs, continuations=long))


@pytest.mark.parametrize(
    ("field", "message"), [("right", "right answers, row 3"), ("continuations", "continuations, row 0")]
)
def test_every_token_of_an_answer_must_be_the_models(field, message):
    pairs = sets() if field == "right" else continued()
    tokens = getattr(pairs, field).clone()
    tokens[3 if field == "right" else 0, 1] = 61
    with pytest.raises(InputError, match=rf"^{message} .*got 61: use this model's tokenizer"):
        evaluate_model(MODEL, replace(pairs, **{field: tokens}))
