"""The roles at which a method can act in every prompt."""

from __future__ import annotations

import torch

from circuitdiff.prompts import Pairs

LAST = "last"  # every task's role at the last token


def everywhere(role: str, pairs: Pairs) -> bool:
    """Whether every clean and counterfactual prompt has the role."""
    both = (pairs.positions, pairs.counterfactual_positions)
    return all(role in positions and bool((positions[role] >= 0).all()) for positions in both)


def roles_everywhere(pairs: Pairs) -> list[str]:
    """Those of every prompt and counterfactual, in the prompts' order; of those always at one token, the first.

    Without those of one segment, which have a dot: whether it is asked for differs from prompt to prompt.
    """
    chosen: list[str] = []
    for role in (role for role in pairs.positions if "." not in role and everywhere(role, pairs)):
        if not any(torch.equal(pairs.positions[role], pairs.positions[other]) for other in chosen):
            chosen.append(role)
    return sorted(chosen, key=lambda role: float(pairs.positions[role].double().mean()))
