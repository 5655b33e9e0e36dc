"""The roles at which a method can act in every prompt."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from circuitdiff.prompts import Pairs

LAST = "last"  # every task's role at the last token


def everywhere(role: str, pairs: Pairs) -> bool:
    """Whether every clean and counterfactual prompt has the role."""
    both = (pairs.positions, pairs.counterfactual_positions)
    return all(role in positions and bool((positions[role] >= 0).all()) for positions in both)


def roles_everywhere(*splits: Pairs) -> list[str]:
    """Those of every prompt and counterfactual, in the prompts' order; of those always at one token the first, or LAST.

    Without those of one segment, which have a dot: whether it is asked for differs from prompt to prompt.
    """
    names = sorted(splits[0].positions, key=lambda role: role != LAST)
    chosen: list[str] = []
    for role in names:
        there = "." not in role and all(everywhere(role, pairs) for pairs in splits)
        if there and not any(_at_one_token(role, other, splits) for other in chosen):
            chosen.append(role)
    return sorted(chosen, key=lambda role: float(splits[0].positions[role].double().mean()))


def _at_one_token(one: str, other: str, splits: Iterable[Pairs]) -> bool:
    both = [at for pairs in splits for at in (pairs.positions, pairs.counterfactual_positions)]
    return all(torch.equal(at[one], at[other]) for at in both)
