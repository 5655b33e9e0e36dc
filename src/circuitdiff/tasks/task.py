"""What a study asks of a task; and a pair of prompts as text with the roles marked, for a reader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError, choices
from circuitdiff.prompts import Pairs, PromptSet
from circuitdiff.readable import Readable
from circuitdiff.tasks.chat import OFF
from circuitdiff.tasks.scenarios import SPLITS
from circuitdiff.tasks.table_file import TableFile
from circuitdiff.tasks.template_file import TemplateFile
from circuitdiff.triples import Triples

DEFAULT_PLANS: Mapping[str, Any] = {"main": "auto"}  # of a task whose file has none


_MOST_PROMPTS = 1_000_000  # hours to draw; more is a slip of the pen


@dataclass(frozen=True)
class Sampling:
    """Which prompts, or triples, of a task are drawn; see `Task.sample` and `Task.triples`."""

    n_prompts: int
    seed: int
    split: str
    queries_per_scenario: int = 1
    counterfactual: str = ""
    redraw: int = 0
    chat: str = OFF

    def check(self, most_queries: int) -> None:
        """Raises: InputError if there is no such split, or so many prompts or queries cannot be."""
        if self.split not in SPLITS:
            raise InputError(f"unknown split {self.split!r}{choices(self.split, SPLITS)}")
        if not 1 <= self.n_prompts <= _MOST_PROMPTS:
            raise InputError(f"n_prompts must be from 1 to {_MOST_PROMPTS:,}; got {self.n_prompts}")
        if not 1 <= self.queries_per_scenario <= most_queries:
            raise InputError(f"queries_per_scenario must be from 1 to {most_queries}; got {self.queries_per_scenario}")


@dataclass(frozen=True, repr=False, kw_only=True)
class Task(Readable, ABC):
    """Prompt pairs with answers, and roles that every prompt has.

    `counterfactuals`: the kinds there are; the first is the one of a study that names none, and of means.
    `desiderata`: what every group is asked for unless a study says otherwise. `files`: all that are read.
    """

    _shown = ("name", "about", "roles", "counterfactuals", "desiderata", "files")

    name: str
    form: TableFile | TemplateFile
    counterfactuals: tuple[str, ...]
    desiderata: tuple[str, ...]
    files: tuple[Path, ...]

    @staticmethod
    def from_file(path_or_name: str, **options: object) -> Task:
        """The task of a file by its path, or a built-in task by its name; the same as `tasks.get_task`.

        Raises: InputError if there is no such task, its file is wrong, or an option is unknown or of the wrong type.
        """
        from circuitdiff.tasks import get_task  # which reads the files of both forms of this

        return get_task(path_or_name, **options)

    @property
    def about(self) -> str:
        """What is asked, in a few words."""
        return self.form.about

    @property
    def plans(self) -> Mapping[str, Any]:
        """Discovery plans in the form of a study's, the main one first, for a study that names none."""
        return self.form.plans or DEFAULT_PLANS

    @cached_property
    @abstractmethod
    def roles(self) -> tuple[str, ...]:
        """The names of all roles that every prompt has."""

    @property
    def question_roles(self) -> tuple[str, ...]:
        """The roles at the tokens that ask, whatever is asked for."""
        if self.form.question is not None:
            return self.form.question
        return (*(role for role in self.roles if role.startswith(("query_", "after_query_"))), "last")

    @cached_property
    @abstractmethod
    def answer_roles(self) -> tuple[str, ...]:
        """The roles at which the answer itself stands, whatever it is; none if no prompt mentions it."""

    def check_role(self, role: str) -> None:
        """Raises: InputError if there is no such role."""
        if role not in self.roles:
            raise InputError(f"{self.name} has no role {role!r}{choices(role, self.roles)}")

    @abstractmethod
    def every_segment(self, role: str) -> list[str]:
        """The same kind of role at each place that could be asked for, so that nothing depends on the answer.

        A role that belongs to no such place, like `last`, comes back alone.
        """

    @abstractmethod
    def wrong_segment(self, role: str) -> str:
        """The same kind of role at a place that was not asked for, a control; the role itself where there is none."""

    def sample(
        self,
        tokenizer: PreTrainedTokenizerBase,
        n_prompts: int = 64,
        seed: int = 0,
        split: str = "evaluation",
        queries_per_scenario: int = 1,
        counterfactual: str | None = None,
        chat: str = OFF,
    ) -> Pairs:
        """Prompts with counterfactuals (None: of the first kind): the same for the same arguments.

        Those of two splits are disjoint. The clean prompts do not depend on `counterfactual`, nor the first on how
        many follow. `chat`: a chat template before each, `off`, `auto` or the path of one; see `chat_prefix`.

        Raises: InputError if an option is unknown, or there are not so many prompts in the tokenizer's words.
        """
        kind = self.counterfactuals[0] if counterfactual is None else counterfactual
        if kind not in self.counterfactuals:
            raise InputError(f"unknown counterfactual {kind!r}{choices(kind, self.counterfactuals)}")
        return self._sample(tokenizer, Sampling(n_prompts, seed, split, queries_per_scenario, kind, chat=chat))

    @abstractmethod
    def _sample(self, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> Pairs: ...

    def available(
        self,
        tokenizer: PreTrainedTokenizerBase,
        most: int,
        seed: int = 0,
        split: str = "evaluation",
        queries_per_scenario: int = 1,
    ) -> int:
        """How many prompts `sample` can draw with these arguments, `most` at most.

        Raises: InputError if the task cannot be written in these tokens at all.
        """
        return self._available(tokenizer, Sampling(most, seed, split, queries_per_scenario))

    @abstractmethod
    def _available(self, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> int: ...

    @abstractmethod
    def n_prompts(self, split: str, queries_per_scenario: int = 1) -> int | None:
        """How many prompts a split has, at most so many of a scenario; None where they are drawn from a template."""

    @abstractmethod
    def check_desiderata(self, names: Iterable[str]) -> None:
        """Raises: InputError naming the first that the task lacks."""

    @abstractmethod
    def source_of(self, desideratum: str) -> Hashable:
        """What tells source prompts apart: desiderata of which it is the same share theirs."""

    def triples(
        self,
        tokenizer: PreTrainedTokenizerBase,
        desiderata: Sequence[str],
        n_triples: int,
        seed: int,
        redraw: int = 0,
        chat: str = OFF,
        split: str = "mask",
    ) -> list[Triples]:
        """So many triples of each desideratum, on the same base prompts; `redraw` draws other sources for them.

        Raises: InputError as `sample_triples`.
        """
        self.check_desiderata(desiderata)
        return self._triples(tokenizer, desiderata, Sampling(n_triples, seed, split, redraw=redraw, chat=chat))

    @abstractmethod
    def _triples(
        self, tokenizer: PreTrainedTokenizerBase, desiderata: Sequence[str], sampling: Sampling
    ) -> list[Triples]: ...

    def describe(self, pairs: Pairs, prompt: int, tokenizer: PreTrainedTokenizerBase) -> DescribedPair:
        """The tokens of one pair, as text, each with its roles."""
        return describe_pair(pairs, prompt, tokenizer)


def check_named_roles(form: TableFile | TemplateFile, roles: Sequence[str]) -> None:
    """Raises: InputError naming the first role of a file's plans, or of its question, that there is not."""
    for name, plan in form.plans.items():
        stages = plan.get("stages") if isinstance(plan, dict) else None
        for stage in stages if isinstance(stages, list) else ():
            for key in ("at", "receivers_at"):
                role = stage.get(key) if isinstance(stage, dict) else None
                if isinstance(role, str) and role not in roles:
                    raise InputError(f"plans.{name}: {key}: there is no role {role!r}{choices(role, roles)}")
    for role in form.question or ():
        check_known(f"question has the role {role!r}", role, roles)


def check_known(what: str, name: str, known: Collection[str]) -> None:
    """Raises: InputError if there is no such name."""
    if name not in known:
        raise InputError(f"{what}, which is unknown{choices(name, known)}")


@dataclass(frozen=True)
class DescribedPrompt:
    """A prompt's tokens as text, and for each the slot that it fills and the roles that sit there."""

    tokens: tuple[str, ...]
    slots: tuple[str, ...]
    roles: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class DescribedPair:
    """A clean prompt and its counterfactual with their answers; None where there is no answer."""

    clean: DescribedPrompt
    counterfactual: DescribedPrompt
    answer: str
    counterfactual_answer: str | None


def describe_pair(pairs: Pairs, prompt: int, tokenizer: PreTrainedTokenizerBase) -> DescribedPair:
    """Pair number `prompt`, from zero, as text."""
    own = pairs.counterfactual_answers
    return DescribedPair(
        clean=describe_prompt(pairs.clean_prompts, prompt, tokenizer),
        counterfactual=describe_prompt(pairs.counterfactual_prompts, prompt, tokenizer),
        answer=_answer(pairs, prompt, tokenizer),
        counterfactual_answer=None if own is None else _text(tokenizer, int(own[prompt])),
    )


def _answer(pairs: Pairs, prompt: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """All its tokens; of several right answers each, with | between them."""
    more = (
        [] if pairs.continuations is None else [token for token in pairs.continuations[prompt].tolist() if token >= 0]
    )
    right = dict.fromkeys(pairs.right_answers[prompt].tolist())
    return " |".join(str(tokenizer.decode([token, *more])) for token in right)


def describe_prompt(prompts: PromptSet, prompt: int, tokenizer: PreTrainedTokenizerBase) -> DescribedPrompt:
    """Prompt number `prompt`, from zero, as text, without padding."""
    length = int(prompts.lengths[prompt])
    ids: list[int] = prompts.tokens[prompt, :length].tolist()
    slots: list[int] = prompts.slots[prompt, :length].tolist()
    sits_at = {role: int(positions[prompt]) for role, positions in prompts.positions.items()}
    return DescribedPrompt(
        tokens=tuple(_text(tokenizer, token) for token in ids),
        slots=tuple(prompts.slot_names[slot] for slot in slots),
        roles=tuple(tuple(role for role, at in sits_at.items() if at == place) for place in range(length)),
    )


def _text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.decode([token]))
