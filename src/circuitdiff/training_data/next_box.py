"""Entity tracking with another answer: the object of the next box. The same look-up, another function."""

from __future__ import annotations

from itertools import chain, islice

from transformers import PreTrainedTokenizerBase

from circuitdiff.tasks.entity_tracking import entity_tracking, prompt_for
from circuitdiff.tasks.scenarios import Question, draw_questions
from circuitdiff.training_data.example import TextExample


def next_box(tokenizer: PreTrainedTokenizerBase, n_examples: int, seed: int, split: str = "train") -> list[TextExample]:
    """The task's own prompts with seven boxes, each answered by the object of the box after the one asked for.

    After the last box comes the first.
    """
    task = entity_tracking()
    vocabulary = (tuple(task.usable_objects(tokenizer, split).ids), tuple(task.usable_labels(tokenizer).ids))
    drawn = draw_questions(("next box", split, seed), split, vocabulary, task.n_boxes, 1)
    return [_example(question) for question in islice(chain.from_iterable(drawn), n_examples)]


def _example(question: Question) -> TextExample:
    objects = question.context.objects
    return TextExample(prompt_for(question).text, f" {objects[(question.queried + 1) % len(objects)]}")
