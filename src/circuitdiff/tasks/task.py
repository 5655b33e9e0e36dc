"""What a study asks of a task."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from circuitdiff.prompts import Pairs
from circuitdiff.tasks.describe import DescribedPair


@runtime_checkable
class Task(Protocol):
    """Prompt pairs with answers, and roles that every prompt has."""

    @property
    def name(self) -> str: ...

    @property
    def roles(self) -> tuple[str, ...]:
        """The names of all roles."""
        ...

    @property
    def question_roles(self) -> tuple[str, ...]:
        """The roles at the tokens that ask, whatever is asked for."""
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
        counterfactual: str = "unrelated",
    ) -> Pairs:
        """Prompts with counterfactuals: the same for the same arguments; those of two splits are disjoint."""
        ...

    def describe(self, pairs: Pairs, prompt: int, tokenizer: PreTrainedTokenizerBase) -> DescribedPair:
        """The tokens of one pair, as text, each with its roles."""
        ...
