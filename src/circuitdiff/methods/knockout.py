"""Attention knockout: what a model still answers when one role of the prompt cannot look at another.

In chosen layers every head's score of (query role, key role) is -inf before the softmax.

Source: Geva et al. 2023 (arXiv:2304.14767), section 5; Prakash et al. 2024 (arXiv:2402.14811), appendix. We differ in
the control, whose random key is never the answer, the query, or the first token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitdiff.engine import Knockout, Model
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB, check_pairs
from circuitdiff.errors import InputError
from circuitdiff.evaluation import Evaluation, Progress, evaluate_model
from circuitdiff.evaluation.answers import evaluation_of
from circuitdiff.evaluation.circuits import check_layers, check_roles
from circuitdiff.evaluation.edited import Editing, run_edited
from circuitdiff.prompts import Bucket, Pairs
from circuitdiff.readable import Plotted, Readable, data_frame

Blocked = str | Sequence[str] | Int[Tensor, " prompt"]  # a role, several together, or a position of each prompt
Keys = Int[Tensor, "prompt key"]  # positions that are blocked

EVERYWHERE = (0,)  # from the first layer upward


@dataclass(frozen=True, eq=False, repr=False)
class Blocking(Readable):
    """A role that cannot look at others: in a run for each layer, from there upward (the paper's) or there alone."""

    query: str
    keys: Blocked
    layers: Sequence[int] = EVERYWHERE
    upward: bool = True

    @property
    def says(self) -> str | None:
        """The keys' roles; None: positions that differ from prompt to prompt."""
        if isinstance(self.keys, Tensor):
            return None
        return self.keys if isinstance(self.keys, str) else ", ".join(self.keys)


def blocking(
    pairs: Pairs,
    query: str,
    key: str | None,
    layers: Sequence[int] = EVERYWHERE,
    upward: bool = True,
    *,
    query_roles: Iterable[str] = (),
    seed: int = 0,
) -> Blocking:
    """The key as a role, or (None) at random; see `random_keys`."""
    keys = random_keys(pairs, query, query_roles, seed=seed) if key is None else key
    return Blocking(query, keys, layers, upward)


@dataclass(frozen=True)
class _Variant:
    query: str
    keys: tuple[tuple[int, ...], ...]  # of each prompt
    layers: range


@dataclass(frozen=True, repr=False)
class Knockouts(Plotted):
    """What the clean model answers; and, for each blocking, what it answers when blocked from each of its layers."""

    clean: Evaluation
    blocked: list[tuple[Evaluation, ...]]
    wanted: Sequence[Blocking]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.clean, self.blocked))

    def to_pandas(self) -> Any:
        """A row for each blocking and layer. Raises: InputError if there is no pandas."""
        rows = (
            (each.query, each.says, layer, *evaluation.accuracy)
            for each, its in zip(self.wanted, self.blocked, strict=True)
            for layer, evaluation in zip(each.layers, its, strict=True)
        )
        return data_frame("query keys layer accuracy low high", rows)


@torch.no_grad()
def attention_knockout(
    model: Model,
    pairs: Pairs,
    wanted: Sequence[Blocking],
    *,
    executor: str = "window",
    memory_gb: float = DEFAULT_MEMORY_GB,
    progress: Progress | None = None,
) -> Knockouts:
    """What the model answers when roles cannot look at others. What two blockings have in common runs once.

    Raises: InputError if a role or layer does not exist, a key comes after the query, or a query is left without keys.
    """
    check_pairs(model, pairs, "attention knockout")
    variants = [_variants(model, pairs, each) for each in wanted]
    clean = _Variant("", (), range(0))
    needed = list(dict.fromkeys([clean, *(variant for its in variants for variant in its)]))
    roles = list(dict.fromkeys(variant.query for variant in needed if variant.layers))

    def begins(variant: _Variant, bucket: Bucket) -> int:
        return bucket.positions[variant.query] if variant.layers else max(bucket.positions.values())

    editing = Editing(roles, begins, lambda some, bucket: _edits(model, some, bucket))
    if not roles:
        return Knockouts(evaluate_model(model, pairs), [], wanted)
    values = run_edited(model, pairs, needed, editing, executor=executor, memory_gb=memory_gb, progress=progress)
    found = {variant: evaluation_of(each, pairs) for variant, each in zip(needed, values, strict=True)}
    return Knockouts(found[clean], [tuple(found[variant] for variant in its) for its in variants], wanted)


def roles_before(pairs: Pairs, roles: Sequence[str]) -> list[tuple[str, str]]:
    """Each role with each that comes before it in every prompt: what it could look at.

    Raises: InputError if a role does not exist.
    """
    check_roles(pairs, roles)
    at = {role: pairs.positions[role] for role in roles}
    return [(query, key) for query in roles for key in roles if bool((at[key] < at[query]).all())]


def random_keys(pairs: Pairs, query: str, query_roles: Iterable[str], *, seed: int = 0) -> Int[Tensor, " prompt"]:
    """A position of each prompt before the query, drawn evenly, the same for the same seed.

    Never the first token (where heads look that look nowhere), a right answer, or one of `query_roles`.

    Raises: InputError if a prompt has no such position.
    """
    free, g = _free(pairs, query, query_roles), torch.Generator().manual_seed(seed)
    if not free.any(1).all():
        raise InputError(
            f"a prompt has no position before {query!r} that is neither its answer nor its query, so no random key "
            f"can be blocked; choose a later query"
        )
    return torch.where(free, torch.rand(free.shape, generator=g), -1.0).argmax(1)


def has_random_keys(pairs: Pairs, query: str, query_roles: Iterable[str]) -> bool:
    """Whether every prompt has a position that `random_keys` could draw."""
    return bool(_free(pairs, query, query_roles).any(1).all())


def _free(pairs: Pairs, query: str, query_roles: Iterable[str]) -> Bool[Tensor, "prompt pos"]:
    check_roles(pairs, [query, *query_roles])
    place = torch.arange(pairs.clean.shape[1])
    is_answer = (pairs.clean[:, :, None] == pairs.right_answers[:, None]).any(2)
    free = (place > 0) & (place < pairs.positions[query][:, None]) & ~is_answer
    for role in query_roles:
        free &= place != pairs.positions[role][:, None]
    return free


def _variants(model: Model, pairs: Pairs, wanted: Blocking) -> list[_Variant]:
    chosen = wanted.layers
    check_layers(model, chosen)
    keys = tuple(map(tuple, _positions(pairs, wanted.query, wanted.keys).tolist()))
    return [_Variant(wanted.query, keys, range(n, model.n_layers if wanted.upward else n + 1)) for n in chosen]


def _edits(model: Model, variants: Sequence[_Variant], bucket: Bucket) -> list[Knockout]:
    """One for each layer and query role, of all the variants that block there."""
    heads = torch.arange(model.n_heads, device=model.device)
    found = []
    for query in dict.fromkeys(variant.query for variant in variants if variant.layers):
        mine = [i for i, variant in enumerate(variants) if variant.query == query and variant.layers]
        blocked = torch.stack([_blocked(variants[i], bucket) for i in mine]).to(model.device)
        for layer in range(model.n_layers):
            here = [j for j, i in enumerate(mine) if layer in variants[i].layers]
            if here:
                numbers = torch.tensor([mine[j] for j in here])
                found.append(Knockout(layer, bucket.positions[query], heads, numbers, blocked[here]))
    return found


def _blocked(variant: _Variant, bucket: Bucket) -> Bool[Tensor, "prompt pos"]:
    keys = torch.tensor([variant.keys[i] for i in bucket.prompts.tolist()])
    return torch.zeros(len(keys), bucket.length, dtype=torch.bool).scatter(1, keys, True)


def _positions(pairs: Pairs, query: str, keys: Blocked) -> Keys:
    check_roles(pairs, [query])
    if isinstance(keys, Tensor):
        positions = keys[:, None]
    else:
        named = [keys] if isinstance(keys, str) else list(keys)
        if not named:
            raise InputError("no key to block was named; name a role that the query looks at")
        check_roles(pairs, named)
        positions = torch.stack([pairs.positions[role] for role in named], dim=1)
    at = pairs.positions[query][:, None]
    if (positions > at).any():
        raise InputError(f"{query!r} cannot look at a later position, so blocking it does nothing; got keys {keys!r}")
    n_blocked = torch.tensor([len(row.unique()) for row in positions])
    if (n_blocked == at[:, 0] + 1).any():
        raise InputError(f"{query!r} would see no key any more: it cannot attend to nothing; block fewer keys")
    return positions
