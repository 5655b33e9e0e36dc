"""Triples of a task's desiderata: a base prompt, a source prompt, and the answer that patching should bring about.

The source points in three ways: its own *answer*, the *position* asked for (the base's answer, were that item asked
for), and the word *given* (the base's answer for the item that the given word names). These and the base's own answer
never coincide. A source is written as the task writes it, or with one thing about the text changed.

Source: Davies et al. 2023 (arXiv:2307.03637) for the idea; Prakash et al. 2024 (arXiv:2402.14811). We differ where the
published text could collide with the prompt (inserted words are drawn from those that neither prompt has) or was
ungrammatical (a changed last segment still ends the sentence).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from random import Random
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError
from circuitdiff.prompts import PromptSet
from circuitdiff.tasks.answers import AnswerTokens
from circuitdiff.tasks.chat import OFF
from circuitdiff.tasks.markup import parse
from circuitdiff.tasks.scenarios import (
    MOST_DRAWS,
    Pools,
    Question,
    draw_questions,
    generator,
    other_item,
    split_of,
)
from circuitdiff.tasks.task import Sampling
from circuitdiff.tasks.template_file import Desideratum
from circuitdiff.tasks.writing import Texts, with_between
from circuitdiff.triples import Triples

if TYPE_CHECKING:
    from circuitdiff.tasks.template import TemplateTask

N_TRIPLES = 750  # 300 to train on, 150 to choose the mask, 300 to test
_N_SPARE = 3  # words of each field that neither prompt has


@dataclass(frozen=True)
class Source:
    """The question that a source prompt asks, and by field words that neither it nor its base prompt has."""

    question: Question
    spare: Mapping[str, Sequence[str]]


def sample_triples(
    task: TemplateTask,
    tokenizer: PreTrainedTokenizerBase,
    desideratum: str,
    n_triples: int = N_TRIPLES,
    seed: int = 0,
    split: str = "mask",
    redraw: int = 0,
    chat: str = OFF,
) -> Triples:
    """Triples of one desideratum, each base prompt a scenario of its own: the same for the same arguments.

    Base prompts depend on neither desideratum nor `redraw`, which draws other source prompts for them; nor do the
    first triples on how many follow.

    Raises: InputError if an option is unknown, the words are too few, or the tokenizer does not know an inserted word.
    """
    return task.triples(tokenizer, [desideratum], n_triples, seed, redraw, chat, split)[0]


class TripleDrawing:
    """Questions of one task, split and seed, their sources and texts; what desiderata share is made once."""

    def __init__(self, task: TemplateTask, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> None:
        self._task, self._tokenizer, self._sampling = task, tokenizer, sampling
        self._key = (task.name, "desiderata", *task.options, sampling.split, sampling.seed)
        self._pools = task.pools(tokenizer, sampling.split)
        drawn = draw_questions(self._key, sampling.split, self._pools, 1)
        self._questions = list(islice(chain.from_iterable(drawn), sampling.n_prompts))
        self._base_texts = [task.text(question) for question in self._questions]
        self._answers = AnswerTokens(tokenizer, task.form.answer_tokens, task.form.space)
        self._sources: dict[str, list[Source]] = {}
        self._prompts: dict[object, PromptSet] = {}
        self._given = task.given_field or ""  # a file with desiderata has one

    @cached_property
    def _base(self) -> PromptSet:
        return self._task.tokens(self._tokenizer, self._questions, chat=self._sampling.chat)

    def triples(self, name: str, wanted: Desideratum) -> Triples:
        sources = self._sources_of(wanted.sources)
        pairs = [(base, source.question) for base, source in zip(self._questions, sources, strict=True)]
        targets = self._tokens(wanted.wants, pairs)
        if (targets < 0).any():
            raise InputError(
                f"desideratum {name!r} wants what the source of triple {int((targets < 0).nonzero()[0]) + 1} does not "
                f"point to: choose other `sources`"
            )
        form = self._task.form.desiderata
        pointers = {pointer: each.wants for pointer, each in form.items() if each.main}
        return Triples(
            name=name,
            base=self._base,
            source=self._source_prompts(name, wanted, sources),
            answers=self._tokens("answer", [(base, base) for base in self._questions]),
            targets=targets,
            pointers={pointer: self._tokens(wants, pairs) for pointer, wants in pointers.items()},
            scenarios=torch.arange(len(pairs)),
            queried=torch.tensor([base.asked for base, _ in pairs]),
            source_queried=torch.tensor([source.asked for _, source in pairs]),
        )

    def _sources_of(self, kind: str) -> list[Source]:
        if kind not in self._sources:
            random = generator(*self._key, "sources", kind, self._sampling.redraw)
            self._sources[kind] = [
                _with_spares(random, base, draw_source(random, kind, base, self._pools, self._given), self._pools)
                for base in self._questions
            ]
        return self._sources[kind]

    def _source_prompts(self, name: str, wanted: Desideratum, sources: Sequence[Source]) -> PromptSet:
        key = self._task.source_of(name)
        if key not in self._prompts:
            texts = _texts(self._task, wanted)
            prompts = [self._task.prompt(source.question, texts, source.spare) for source in sources]
            questions = [source.question for source in sources]
            self._prompts[key] = self._task.tokens(self._tokenizer, questions, prompts, self._sampling.chat)
        return self._prompts[key]

    def _tokens(self, wants: str, pairs: Sequence[tuple[Question, Question]]) -> Int[Tensor, " triple"]:
        """What each source points to, as a token; -1 for nothing."""
        texts = self._base_texts
        return torch.tensor([self._token(wants, *pair, text) for pair, text in zip(pairs, texts, strict=True)])

    def _token(self, wants: str, base: Question, source: Question, text: str) -> int:
        pointed = pointed_to(wants, base, source, self._given)
        right = () if pointed is None else self._task.answers(pointed).right
        if not right:
            return -1
        tokens = self._answers.of(text, right[0], self._task.origin)
        if len(tokens) != 1:
            raise InputError(f"desiderata need answers of one token; {right[0]!r} is not")
        return tokens[0]


def pointed_to(wants: str, base: Question, source: Question, given: str) -> Question | None:
    """The question whose right answer a source points to, by what is wanted of it; None for nothing."""
    if wants == "answer":
        return source
    names = base.scenario.items[given]
    if wants == "given":
        name = source.scenario.items[given][source.asked]
        return replace(base, asked=names.index(name)) if name in names else None
    return replace(base, asked=(source.asked + (wants == "next_position")) % len(names))


def draw_source(random: Random, kind: str, base: Question, pools: Pools, given: str) -> Question:
    """A source question of the base's split: other words, and another item asked for, by the name of the base's third.

    Then base answer, answer, position and given word point to four different answers. The source's other names are not
    the base's. With `next_unrelated` the item after the source's gives a fifth answer; with `conflicting` the source's
    own answer is one of the base's, too: all four are in the base's list.
    """
    n, listed = pools.n_items, None
    if kind == "unrelated":
        segment, named = _items(random, base, n, 2, ())
    elif kind == "conflicting":
        segment, named, listed = _items(random, base, n, 3, ())
    else:
        (segment,) = _items(random, base, n, 1, ((base.asked - 1) % n,))
        (named,) = _items(random, base, n, 1, (segment, (segment + 1) % n))
    return _source(random, base, pools, given, segment, named, listed)


def _items(random: Random, base: Question, n_items: int, n_wanted: int, taken: Sequence[int]) -> list[int]:
    """Different items, none of them the base's or taken."""
    free = [i for i in range(n_items) if i != base.asked and i not in taken]
    if len(free) < n_wanted:
        raise InputError(f"{n_items} items are too few for answers that all differ: use at least 4")
    return random.sample(free, n_wanted)


def _source(
    random: Random, base: Question, pools: Pools, given: str, segment: int, named: int, listed: int | None
) -> Question:
    """A question that asks for `segment`, named as the base's item `named`, its answer that of the base's `listed`."""
    clean, n, fresh = base.scenario, pools.n_items, pools.without(base.scenario)
    needed = {name: n - (name == given) for name in fresh.items}
    for name, pool in fresh.items.items():
        if len(pool) < needed[name]:
            raise InputError(
                f"a source prompt needs {needed[name]} other {pools.categories[name]} than its base; {len(pool)} are "
                f"left: give the task more words or fewer items"
            )
    for _ in range(MOST_DRAWS):
        drawn = {name: random.sample(pool, needed[name]) for name, pool in fresh.items.items()}
        drawn[given].insert(segment, clean.items[given][named])
        if listed is not None:
            for name in drawn.keys() - {given}:
                drawn[name][segment] = clean.items[name][listed]
        scenario = replace(clean, items={name: tuple(words) for name, words in drawn.items()})
        if split_of(scenario.words) == split_of(clean.words):
            return replace(base, scenario=scenario, asked=segment, other=other_item(random, segment, n))
    raise InputError("no source prompt is left in this split: give the task more words or fewer items")


def _with_spares(random: Random, base: Question, source: Question, pools: Pools) -> Source:
    """The source with a few words of each field, in random order, that neither prompt has."""
    spare: dict[str, Sequence[str]] = {}
    for name, pool in pools.items.items():
        used = {*base.scenario.items[name], *source.scenario.items[name]}
        words = [word for word in pool if word not in used]
        spare[name] = random.sample(words, min(len(words), _N_SPARE))
    return Source(source, spare)


def _texts(task: TemplateTask, wanted: Desideratum) -> Texts:
    """The task's texts with what the desideratum writes otherwise."""
    texts = task.texts
    if wanted.text is not None:
        texts = replace(texts, wordings=(parse(wanted.text, "text"),) * len(texts.wordings))
    if wanted.list is not None:
        texts = replace(texts, list=parse(wanted.list, "list"))
    if wanted.asked is not None:
        texts = replace(texts, asked=parse(wanted.asked, "asked"))
    return texts if wanted.between is None else with_between(texts, wanted.between)
