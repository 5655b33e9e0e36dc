"""Triples of a desideratum: base prompts, source prompts, and the answers that patching should bring about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from circuitdiff.errors import InputError
from circuitdiff.prompts import PromptSet, check_count, check_numbers, fingerprint_of, selected
from circuitdiff.readable import Readable


@dataclass(frozen=True, repr=False)
class Triples(Readable):
    """What one desideratum wants of each base prompt: its target, were some heads to act as on the source prompt.

    `name`: the desideratum's. `base`, `source`: as many prompts of each, in one order.
    `answers` [triple]: the token that is right for the base prompt as it is.
    `targets` [triple]: the token that is wanted with the source patched in; never the answer.
    `pointers`: by kind, the token [triple] that else the source could point to; -1 for nothing.
    `scenarios` [triple]: of the base prompt; parts to train and to test on share none.
    `queried`, `source_queried` [triple]: which item, from 0, the base and the source prompt ask for; -1 unknown.
    """

    name: str
    base: PromptSet
    source: PromptSet
    answers: Int[Tensor, " triple"]
    targets: Int[Tensor, " triple"]
    pointers: Mapping[str, Int[Tensor, " triple"]]
    scenarios: Int[Tensor, " triple"]
    queried: Int[Tensor, " triple"]
    source_queried: Int[Tensor, " triple"]

    def __post_init__(self) -> None:
        n = len(self.base)
        check_count("Triples.source", self.source, n)
        check_numbers("Triples.answers", self.answers, (n,), at_least=0)
        check_numbers("Triples.targets", self.targets, (n,), at_least=0)
        for kind, tokens in self.pointers.items():
            check_numbers(f"Triples.pointers[{kind!r}]", tokens, (n,), at_least=-1)
        check_numbers("Triples.scenarios", self.scenarios, (n,))
        check_numbers("Triples.queried", self.queried, (n,), at_least=-1)
        check_numbers("Triples.source_queried", self.source_queried, (n,), at_least=-1)
        self._check_targets()

    def _check_targets(self) -> None:
        """A target that is the answer anyway: patching nothing would look like a success."""
        trivial = (self.targets == self.answers).nonzero()[:, 0].tolist()
        if trivial:
            raise InputError(
                f"desideratum {self.name!r} must want another answer than the unpatched one; triple {trivial[0] + 1} "
                f"(and {len(trivial) - 1} more) wants the same: choose another source or target"
            )

    def __len__(self) -> int:
        return len(self.targets)

    def fingerprint(self) -> str:
        """The same for the same content, whatever its name: prompts, sources, targets and scenarios."""
        both, kinds = [self.base.fingerprint(), self.source.fingerprint()], sorted(self.pointers)
        numbers = [self.answers, self.targets, self.scenarios, self.queried, self.source_queried]
        return fingerprint_of([*both, *kinds], *numbers, *(self.pointers[kind] for kind in kinds))

    def select(self, triples: Int[Tensor, " chosen"]) -> Triples:
        """The chosen triples, in the order given."""
        return selected(self, triples)

    def check_role(self, role: str) -> None:
        """Raises: InputError if a base or source prompt has no place for `role`."""
        for which, prompts in (("base", self.base), ("source", self.source)):
            places = prompts.positions.get(role)
            lacking = range(len(prompts)) if places is None else (places < 0).nonzero()[:, 0].tolist()
            if len(lacking):
                raise InputError(
                    f"desideratum {self.name!r} cannot be tested at role {role!r}: {len(lacking)} of {len(prompts)} "
                    f"{which} prompts lack it; choose a group at another role or another desideratum"
                )


def split_by_scenario(scenarios: Int[Tensor, " triple"], sizes: Sequence[int]) -> list[Int[Tensor, " _part"]]:
    """Consecutive parts of at least `sizes` triples, none of which shares a scenario with another.

    Raises: InputError if there are too few triples.
    """
    parts, order = [], list(dict.fromkeys(scenarios.tolist()))
    for size in sizes:
        part: list[int] = []
        while len(part) < size and order:
            part += (scenarios == order.pop(0)).nonzero()[:, 0].tolist()
        if len(part) < size:
            raise InputError(
                f"the parts need {' + '.join(map(str, sizes))} triples of scenarios of their own, and "
                f"{len(scenarios)} triples of {len(scenarios.unique())} scenarios are too few: give more triples"
            )
        parts.append(torch.tensor(part))
    return parts
