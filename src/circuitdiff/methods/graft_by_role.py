"""Grafting by role: the donor's weights at some tokens only, so that it is known at which of them the gain is caused.

1. The tokens of each prompt are split into parts: the token of each role, and all others.
2. The recipient is run with the donor's weights, all of them, at some parts' tokens: each alone, one part after the
   other from the first token on, and all but one. Other tokens see what those write, with the weights of their own.
3. Whose is the gain? As of parts of the weights (`stats.shapley.attribute`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitdiff.engine import Model
from circuitdiff.engine.by_token import run_by_token
from circuitdiff.errors import InputError
from circuitdiff.evaluation.answers import answers_readout, evaluation_of
from circuitdiff.evaluation.circuits import Progress, check_roles
from circuitdiff.methods.graft import Graft, Part, check_models, whole_graft_error
from circuitdiff.prompts import Pairs
from circuitdiff.stats.shapley import Subset, needed_subsets

OTHER_TOKENS = "other tokens"


@torch.no_grad()
def graft_by_role(
    donor: Model, recipient: Model, roles: Sequence[str], pairs: Pairs, *, progress: Progress | None = None
) -> Graft:
    """What the recipient answers with the donor's weights at the tokens of some roles; parts are roles.

    A run computes every layer with both models' weights, so it takes two and a half times as long as a graft.

    Raises: InputError if the models do not fit together, prompts lack a role, two roles sit at one token, or all tokens
    grafted do not make the donor.
    """
    check_models(donor, recipient, pairs)
    check_roles(pairs, roles)
    tokens = _parts(pairs, roles)
    order = tuple(tokens)
    subsets = needed_subsets(order)
    masks = torch.stack([_mask(tokens, subset) for subset in subsets])
    prompts, readout = pairs.clean_prompts, answers_readout(pairs, recipient.device)
    found = run_by_token(recipient, donor, prompts, masks, readout, progress)
    answers = {subset: evaluation_of(values, pairs) for subset, values in zip(subsets, found, strict=True)}

    def everything(few: Pairs) -> Tensor:
        all_tokens = torch.ones(1, *few.clean_prompts.tokens.shape, dtype=torch.bool)
        return run_by_token(recipient, donor, few.clean_prompts, all_tokens, lambda logits, _: logits)[0]

    return Graft(
        order=order,
        parts={name: Part(()) for name in order},
        unchanged=(),
        donor=answers[frozenset(order)],
        runs=answers,
        whole_graft_error=whole_graft_error(donor, recipient, everything, pairs),
    )


def _parts(pairs: Pairs, roles: Sequence[str]) -> dict[str, Bool[Tensor, "prompt pos"]]:
    """Which tokens each part has, the earliest role first. Raises: InputError if two roles sit at one token."""
    prompts = pairs.clean_prompts
    places, n = torch.arange(prompts.tokens.shape[1]), len(prompts)
    sorted_roles = sorted(roles, key=lambda role: float(prompts.positions[role].double().mean()))
    tokens = {role: places == prompts.positions[role][:, None] for role in sorted_roles}
    taken = torch.zeros(n, len(places), dtype=torch.long)
    for role, its in tokens.items():
        taken += its
        if (taken > 1).any():
            raise InputError(f"{role} sits at the token of another role in some prompt; give one of them")
    return tokens | {OTHER_TOKENS: taken == 0}


def _mask(tokens: dict[str, Bool[Tensor, "prompt pos"]], subset: Subset) -> Bool[Tensor, "prompt pos"]:
    none = torch.zeros_like(tokens[OTHER_TOKENS])
    return torch.stack([none, *(tokens[part] for part in subset)]).any(0)
