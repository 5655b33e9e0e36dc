"""Which prompts a unit of work takes, as plain data; and where they come from: the task, in a model's tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from circuitdiff.prompts import Pairs
from circuitdiff.study.settings import SPLIT_OF, CommonSettings, task_of
from circuitdiff.tasks import read_triples
from circuitdiff.triples import Triples, split_by_scenario


@dataclass(frozen=True)
class PromptsOf:
    """Prompts of one of a study's splits: all, or the `first` so many, which are balanced by queried index.

    With `beyond` the evaluation prompts: of scenarios that follow theirs, for what is chosen by looking at scores.
    With `queries_per_scenario`: so many questions about each of the first evaluation scenarios.
    """

    split: Literal["discovery", "replication", "evaluation", "means"]
    first: int | None = None
    beyond: bool = False
    queries_per_scenario: int | None = None


@dataclass(frozen=True)
class TriplesOf:
    """Triples of one desideratum: of the task (`all_names` are drawn together), or a JSONL file's.

    With `redraw`: some of the test triples, with other sources.
    """

    desideratum: str
    sizes: tuple[int, int, int]  # train, validation, test
    all_names: tuple[str, ...] = ()
    redraw: int = 0
    n_redrawn: int = 0


def is_file(desideratum: str) -> bool:
    """Whether it names a file of triples, not one of the task's desiderata."""
    return desideratum.endswith(".jsonl")


class PromptSource:
    """A study's prompts for one of its models, in its tokens; the same for the same request, and made once."""

    def __init__(self, settings: CommonSettings, model: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self._settings, self._tokenizer, self._task = settings, tokenizer, task_of(settings)
        self._chat = settings.chat_of(model)
        self._pairs: dict[PromptsOf, Pairs] = {}
        self._triples: dict[TriplesOf, Triples] = {}

    def pairs(self, of: PromptsOf) -> Pairs:
        """Raises: InputError if the task cannot ask so many questions about a scenario."""
        if of not in self._pairs:
            self._pairs[of] = self._sampled(of)
        return self._pairs[of]

    def triples(self, of: TriplesOf) -> Triples:
        """Raises: InputError if the file cannot be read, or the task lacks the desideratum."""
        if of not in self._triples:
            if is_file(of.desideratum):
                self._triples[of] = read_triples(of.desideratum, self._tokenizer)
            else:
                self._triples |= self._redrawn(of) if of.redraw else self._drawn(of)
        return self._triples[of]

    def _sampled(self, of: PromptsOf) -> Pairs:
        sizes, each = self._settings.prompts, of.queries_per_scenario
        if of.beyond:
            evaluation, n_prompts = self.pairs(PromptsOf("evaluation")), of.first or 0
            more = self._sample("evaluation", len(evaluation) + sizes.queries_per_scenario + n_prompts)
            fresh = (more.scenarios > evaluation.scenarios.max()).nonzero()[:, 0]
            return more.select(fresh[:n_prompts])
        if each is not None and each != sizes.queries_per_scenario:
            n_scenarios = len(self.pairs(PromptsOf("evaluation")).scenarios.unique())
            return self._sample("evaluation", min(of.first or each * n_scenarios, each * n_scenarios), each)
        if of.first is not None:
            everything = self.pairs(PromptsOf(of.split))
            return everything.select(torch.arange(min(of.first, len(everything))))
        return self._sample(of.split, getattr(sizes, of.split))

    def _sample(self, split: str, n_prompts: int, queries_per_scenario: int | None = None) -> Pairs:
        sizes = self._settings.prompts
        return self._task.sample(
            self._tokenizer,
            n_prompts,
            self._settings.seed,
            SPLIT_OF.get(split, split),
            queries_per_scenario or sizes.queries_per_scenario,
            counterfactual=None if split == "means" else sizes.counterfactual,
            chat=self._chat,
        )

    def _drawn(self, of: TriplesOf) -> dict[TriplesOf, Triples]:
        """Of every desideratum, on the same base prompts."""
        n, settings = sum(of.sizes), self._settings
        drawn = self._task.triples(self._tokenizer, of.all_names, n, settings.seed, chat=self._chat)
        return {replace(of, desideratum=each.name): each for each in drawn}

    def _redrawn(self, of: TriplesOf) -> dict[TriplesOf, Triples]:
        """Other sources for some of the test triples; alike where they were alike."""
        n, settings = sum(of.sizes), self._settings
        drawn = self._task.triples(self._tokenizer, of.all_names, n, settings.seed, of.redraw, self._chat)
        first = self.triples(replace(of, desideratum=of.all_names[0], redraw=0, n_redrawn=0))
        rows = split_by_scenario(first.scenarios, of.sizes)[2][: of.n_redrawn]
        sources = {id(each.source): each.source.select(rows) for each in drawn}
        return {
            replace(of, desideratum=each.name): replace(each.select(rows), source=sources[id(each.source)])
            for each in drawn
        }
