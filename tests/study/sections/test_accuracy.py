"""What models answer, and what they answer instead."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from circuitdiff.evaluation import Evaluation
from circuitdiff.study.sections.accuracy import accuracy_of
from helpers.fake_pairs import fake_pairs


def answered(words: list[int], answers: torch.Tensor) -> Evaluation:
    predictions, zeros = torch.tensor(words), torch.zeros(len(words))
    return Evaluation(predictions == answers, predictions, zeros, zeros, torch.arange(len(words)))


def test_wrong_answers_are_counted_by_where_they_stand_in_the_list():
    """Lists of 10, 11, 12, 13; the answer is taken out of the others."""
    queried, answers = torch.tensor([0, 1, 2, 3, 2]), torch.tensor([10, 11, 12, 13, 12])
    others = torch.tensor([[w for w in range(10, 14) if w != answer] for answer in answers.tolist()])
    pairs = replace(fake_pairs(), queried=queried, answers=answers, foils=others)
    said = {
        "before": ([12, 10, 11, 12, 11], [4, 0, 1, 0]),  # nothing is before the first: 12 is another one
        "after": ([11, 12, 13, 13, 13], [0, 4, 0, 0]),  # the last has none after it: 13 is right
        "another": ([13, 13, 10, 10, 10], [0, 0, 5, 0]),
        "none": ([3, 4, 5, 6, 7], [0, 0, 0, 5]),
    }
    errors = []
    for words, counts in said.values():
        errors = accuracy_of(answered(words, answers), pairs).errors
        assert [error.hits for error in errors] == counts
    assert [error.kind for error in errors] == ["before", "after", "other", "none"]


@pytest.mark.parametrize(("said", "expected"), [([7, 8, 9, 7, 8], [5, 0]), ([1, 1, 1, 1, 1], [0, 5])])
def test_with_few_others_there_are_no_neighbours(said, expected):
    others = torch.tensor([[7], [8], [9], [7], [8]])
    pairs = replace(fake_pairs(), answers=torch.full((5,), 2), foils=others)
    errors = accuracy_of(answered(said, pairs.answers), pairs).errors
    assert [error.kind for error in errors] == ["other", "none"]
    assert [error.hits for error in errors] == expected


def test_where_several_answers_are_right_there_are_no_neighbours():
    pairs = fake_pairs()
    pairs = replace(pairs, right=torch.stack([pairs.answers, pairs.answers + 40], dim=1))
    errors = accuracy_of(answered([8, 20, 22, 53, 1], pairs.answers + 40), pairs).errors
    assert [(error.kind, error.hits) for error in errors] == [("other", 2), ("none", 2)]
