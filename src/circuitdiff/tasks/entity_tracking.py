"""Entity tracking: `The apple is in Box F, the book is in Box K. Box F contains the` -> ` apple`.

Source: Prakash et al. 2024 (arXiv:2402.14811), after Kim and Schuster 2023 (arXiv:2305.02363).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError, choices
from circuitdiff.prompts import Pairs, Triples
from circuitdiff.tasks.desiderata import MAIN, desideratum_named, sample_desiderata
from circuitdiff.tasks.scenarios import (
    COUNTERFACTUALS,
    OTHER,
    QUERIED,
    QUERY_SLOTS,
    SEGMENT_SLOTS,
    Question,
    check_options,
    draw_counterfactual,
    draw_questions,
    generator,
    prompt_for,
)
from circuitdiff.tasks.task import DescribedPair, describe_pair
from circuitdiff.tasks.template import Words, check_places, one_token_words, tokenise
from circuitdiff.vocabulary import LABELS, OBJECTS, TRAIN_OBJECTS

_MOST_BOXES = 100
_FEWEST_WORDS = 14  # two disjoint contexts of seven boxes

# Prakash et al. 2024 (arXiv:2402.14811), section 3.2, with the k of its code's command line. Their structure readers
# are read from anywhere (no `receivers_at`); the path one means ends at the query label.
_PAPER = (
    {"name": "value_fetcher", "at": "last", "select": {"top": 20}},
    {
        "name": "position_transmitter",
        "at": "last",
        "via": "q",
        "receivers_from": "value_fetcher",
        "select": {"top": 5},
    },
    {
        "name": "position_detector",
        "at": "query_label",
        "via": "v",
        "receivers_from": "position_transmitter",
        "select": {"top": 10},
    },
    {
        "name": "structure_reader",
        "at": "previous_query_label",
        "via": "v",
        "receivers_from": "position_detector",
        "receivers_at": "query_label",
        "select": {"top": 5},
    },
)


@dataclass(frozen=True)
class EntityTracking:
    """Which object is in the box asked for?

    Roles: one per slot (`segment_3.label`, `query_label`, `last`, ...), and those that follow the query: in the
    segment asked for (`previous_query_label`, `correct_object`, and the token after each) and, as a control,
    in one other segment, drawn once per prompt (`other_label`, `other_object`, and the token after each).
    """

    n_boxes: int
    objects: tuple[str, ...]
    train_objects: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        return "entity_tracking"

    @property
    def roles(self) -> tuple[str, ...]:
        """The names of all roles."""
        segments = [f"segment_{i}.{slot}" for i in range(self.n_boxes) for slot in SEGMENT_SLOTS]
        return (*segments, *QUERY_SLOTS, *QUERIED, *OTHER)

    @property
    def question_roles(self) -> tuple[str, ...]:
        """The roles at the tokens that ask for a box."""
        return QUERY_SLOTS

    @property
    def plans(self) -> Mapping[str, Mapping[str, Any]]:
        """The paper's."""
        return {"paper": {"stages": _PAPER}}

    @property
    def desiderata(self) -> tuple[str, ...]:
        """The main ones."""
        return tuple(each.name for each in MAIN)

    def check_desiderata(self, names: Iterable[str]) -> None:
        """Raises: InputError naming the first that is unknown."""
        for name in names:
            desideratum_named(name)

    def triples(
        self, tokenizer: PreTrainedTokenizerBase, desiderata: Sequence[str], n_triples: int, seed: int, redraw: int = 0
    ) -> list[Triples]:
        """Triples of each desideratum; see `sample_desiderata`."""
        return sample_desiderata(self, tokenizer, desiderata, n_triples, seed, redraw=redraw)

    def every_segment(self, role: str) -> list[str]:
        """The same kind of role in each segment, so that nothing depends on the query.

        A role outside the segments, like `last`, comes back alone.
        """
        self._check_role(role)
        slot = (QUERIED | OTHER).get(role) or role.partition(".")[2]
        return [f"segment_{i}.{slot}" for i in range(self.n_boxes)] if slot else [role]

    def wrong_segment(self, role: str) -> str:
        """The same kind of role in a segment that was not asked for.

        A role that does not follow the query comes back as it is.
        """
        self._check_role(role)
        wrong = dict(zip(QUERIED, OTHER, strict=True))
        return wrong.get(role, role)

    def usable_objects(self, tokenizer: PreTrainedTokenizerBase, split: str = "evaluation") -> Words:
        """The objects that the tokenizer keeps whole, as answers and in the context, and those left out."""
        words = self.train_objects if split == "train" else self.objects
        return one_token_words(tokenizer, words, "Box A contains the", [" is"])

    def usable_labels(self, tokenizer: PreTrainedTokenizerBase) -> Words:
        """The labels that the tokenizer keeps whole, in the context and in the query, and those left out."""
        return one_token_words(tokenizer, self.labels, "The book is in Box", [",", ".", " contains"])

    def sample(
        self,
        tokenizer: PreTrainedTokenizerBase,
        n_prompts: int = 64,
        seed: int = 0,
        split: str = "evaluation",
        queries_per_scenario: int = 1,
        counterfactual: str = "unrelated",
    ) -> Pairs:
        """Prompts with counterfactuals: the same for the same arguments.

        Splits share no combination of objects and labels, and `train` has objects of its own. All segments
        are queried equally often, up to a remainder. The clean prompts do not depend on `counterfactual`, nor
        the first on how many follow. `unrelated` counterfactuals have no valid query and so serve as a mean set.

        Raises: InputError if an option is unknown or the tokenizer keeps too few objects or labels whole.
        """
        check_options(n_prompts, split, queries_per_scenario, self.n_boxes, counterfactual, COUNTERFACTUALS)
        objects, labels = self.usable_objects(tokenizer, split), self.usable_labels(tokenizer)
        objects.check_enough(max(_FEWEST_WORDS, 2 * self.n_boxes), "objects", ", or fewer boxes")
        labels.check_enough(max(_FEWEST_WORDS, 2 * self.n_boxes + 1), "labels", ", or fewer boxes")
        vocabulary = (tuple(objects.ids), tuple(labels.ids))
        key = (self.name, self.n_boxes, split, seed)
        drawn = draw_questions(key, split, vocabulary, self.n_boxes, queries_per_scenario)
        numbered = ((scenario, question) for scenario, questions in enumerate(drawn) for question in questions)
        scenarios, questions = zip(*islice(numbered, n_prompts), strict=True)
        random = generator(*key, counterfactual)
        changed = [draw_counterfactual(random, counterfactual, question, *vocabulary) for question in questions]
        return _pairs(tokenizer, scenarios, questions, changed, objects.ids)

    def describe(self, pairs: Pairs, prompt: int, tokenizer: PreTrainedTokenizerBase) -> DescribedPair:
        """The tokens of one pair, as text, each with its roles."""
        return describe_pair(pairs, prompt, tokenizer)

    def _check_role(self, role: str) -> None:
        if role not in self.roles:
            raise InputError(f"entity_tracking has no role {role!r}{choices(role, self.roles)}")


def entity_tracking(
    n_boxes: int = 7,
    *,
    objects: Sequence[str] = OBJECTS,
    train_objects: Sequence[str] = TRAIN_OBJECTS,
    labels: Sequence[str] = LABELS,
) -> EntityTracking:
    """The task with `n_boxes` boxes and, if given, words of your own.

    Raises: InputError if there are fewer than two boxes, or an object serves both training and evaluation.
    """
    if not 2 <= n_boxes <= _MOST_BOXES:
        raise InputError(f"entity tracking takes 2 to {_MOST_BOXES} boxes; got {n_boxes}")
    if shared := sorted(set(objects) & set(train_objects)):
        raise InputError(f"train_objects must not occur in objects; both have {', '.join(shared)}")
    return EntityTracking(n_boxes, tuple(objects), tuple(train_objects), tuple(labels))


def _pairs(
    tokenizer: PreTrainedTokenizerBase,
    scenarios: Sequence[int],
    questions: Sequence[Question],
    changed: Sequence[Question],
    ids: Mapping[str, int],
) -> Pairs:
    """The questions and their counterfactuals as tokens, both with the same slot names."""
    prompts = tokenise(tokenizer, [prompt_for(question) for question in [*questions, *changed]])
    rows = torch.arange(len(prompts))
    answers, new_answers = _answers(questions, ids), _answers(changed, ids)
    pairs = Pairs(
        clean_prompts=prompts.select(rows[: len(questions)]),
        counterfactual_prompts=prompts.select(rows[len(questions) :]),
        answers=answers,
        alternatives=torch.tensor([[ids[o] for o in q.context.objects if o != q.answer] for q in questions]),
        counterfactual_answers=None if (new_answers < 0).all() else new_answers,
        scenarios=torch.tensor(scenarios),
        queried=torch.tensor([question.queried for question in questions]),
    )
    query_labels = pairs.clean[torch.arange(len(pairs)), pairs.positions["query_label"]]
    check_places(pairs.clean_prompts, {"previous_query_label": query_labels, "correct_object": answers})
    return pairs


def _answers(questions: Sequence[Question], ids: Mapping[str, int]) -> Int[Tensor, " prompt"]:
    """Each question's answer token; -1 without an answer."""
    return torch.tensor([-1 if question.answer is None else ids[question.answer] for question in questions])
