"""What a study asks of a task; and a pair of prompts as text with the roles marked, for a reader."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from circuitdiff.errors import InputError, choices
from circuitdiff.prompts import Pairs, PromptSet
from circuitdiff.tasks.chat import OFF
from circuitdiff.triples import Triples

DEFAULT_PLANS: Mapping[str, Mapping[str, Any]] = {
    "main": {"stages": [{"name": "mover", "at": "last", "select": {"minimum": 0.05}}]}
}  # of a task whose file has none: which heads bring the answer to the last token


@runtime_checkable
class Task(Protocol):
    """Prompt pairs with answers, and roles that every prompt has."""

    @staticmethod
    def from_file(path_or_name: str, **options: object) -> Task:
        """The task of a file by its path, or a built-in task by its name; the same as `tasks.get_task`.

        Raises: InputError if there is no such task, its file is wrong, or an option is unknown or of the wrong type.
        """
        from circuitdiff.tasks import get_task  # which reads the files of both forms of this

        return get_task(path_or_name, **options)

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str:
        """What is asked, in a few words."""
        ...

    @property
    def roles(self) -> tuple[str, ...]:
        """The names of all roles."""
        ...

    @property
    def question_roles(self) -> tuple[str, ...]:
        """The roles at the tokens that ask, whatever is asked for."""
        ...

    @property
    def plans(self) -> Mapping[str, Mapping[str, Any]]:
        """Discovery plans in the form of a study's, the main one first, for a study that names none."""
        ...

    @property
    def counterfactuals(self) -> tuple[str, ...]:
        """The kinds there are; the first is the one of a study that names none, and of means."""
        ...

    @property
    def desiderata(self) -> tuple[str, ...]:
        """What every group is asked for unless a study says otherwise. May be empty."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """All that are read."""
        ...

    def check_desiderata(self, names: Iterable[str]) -> None:
        """Raises: InputError naming the first that the task lacks."""
        ...

    def source_of(self, desideratum: str) -> Hashable:
        """What tells source prompts apart: desiderata of which it is the same share theirs."""
        ...

    def triples(
        self,
        tokenizer: PreTrainedTokenizerBase,
        desiderata: Sequence[str],
        n_triples: int,
        seed: int,
        redraw: int = 0,
        chat: str = OFF,
    ) -> list[Triples]:
        """So many triples of each desideratum, on the same base prompts; `redraw` draws other sources for them."""
        ...

    def every_segment(self, role: str) -> list[str]:
        """The same kind of role at each place that could be asked for, so that nothing depends on the answer."""
        ...

    def wrong_segment(self, role: str) -> str:
        """The same kind of role at a place that was not asked for: a control."""
        ...

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
        """Prompts with counterfactuals: the same for the same arguments; those of two splits are disjoint.

        `chat`: a chat template before each, `off`, `auto` or the path of one; see `chat_prefix`.
        """
        ...

    def n_prompts(self, split: str, queries_per_scenario: int = 1) -> int | None:
        """How many prompts a split has, at most so many of a scenario; None where they are drawn from a template."""
        ...

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
        ...

    def describe(self, pairs: Pairs, prompt: int, tokenizer: PreTrainedTokenizerBase) -> DescribedPair:
        """The tokens of one pair, as text, each with its roles."""
        return describe_pair(pairs, prompt, tokenizer)


def check_plan_roles(origin: str, plans: Mapping[str, Any], roles: Sequence[str]) -> None:
    """Raises: InputError naming the first role of a plan that there is not."""
    for name, plan in plans.items():
        stages = plan.get("stages") if isinstance(plan, dict) else None
        for stage in stages if isinstance(stages, list) else ():
            for key in ("at", "receivers_at"):
                role = stage.get(key) if isinstance(stage, dict) else None
                if isinstance(role, str) and role not in roles:
                    raise InputError(f"{origin}: plans.{name}: {key}: there is no role {role!r}{choices(role, roles)}")


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
