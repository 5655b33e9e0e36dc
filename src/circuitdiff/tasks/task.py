"""What a study asks of a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from circuitdiff.prompts import Pairs, Triples
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

    @property
    def plans(self) -> Mapping[str, Mapping[str, Any]]:
        """Discovery plans in the form of a study's, the main one first, for a study that names none. May be empty."""
        ...

    @property
    def desiderata(self) -> tuple[str, ...]:
        """What every group is asked for unless a study says otherwise. May be empty."""
        ...

    def check_desiderata(self, names: Iterable[str]) -> None:
        """Raises: InputError naming the first that the task lacks."""
        ...

    def triples(
        self, tokenizer: PreTrainedTokenizerBase, desiderata: Sequence[str], n_triples: int, seed: int, redraw: int = 0
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
        counterfactual: str = "unrelated",
    ) -> Pairs:
        """Prompts with counterfactuals: the same for the same arguments; those of two splits are disjoint."""
        ...

    def describe(self, pairs: Pairs, prompt: int, tokenizer: PreTrainedTokenizerBase) -> DescribedPair:
        """The tokens of one pair, as text, each with its roles."""
        ...
