"""Attention knockout: what a model still answers when one role of the prompt cannot look at another.

In chosen layers every head's score of (query role, key role) is -inf before the softmax.

Source: Geva et al. 2023 (arXiv:2304.14767), section 5; Prakash et al. 2024 (arXiv:2402.14811), appendix. We differ in
the control, whose random key is never the answer, the query, or the first token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitdiff.engine import Knockout, Model
from circuitdiff.engine.memory import DEFAULT_MEMORY_GB
from circuitdiff.errors import InputError
from circuitdiff.evaluation import Evaluation, Progress, evaluate_model
from circuitdiff.evaluation.answers import evaluation_of
from circuitdiff.evaluation.edited import Editing, run_edited
from circuitdiff.prompts import Bucket, Pairs

Blocked = str | Sequence[str] | Int[Tensor, " prompt"]  # a role, several together, or a position of each prompt
Keys = Int[Tensor, "prompt key"]  # positions that are blocked


@dataclass(frozen=True)
class KnockoutCurve:
    """What the model answers when blocked from each layer upward, or in each single layer."""

    query: str
    keys: str
    upward: bool
    layers: tuple[int, ...]
    clean: Evaluation
    blocked: tuple[Evaluation, ...]  # one for each of `layers`


@dataclass(frozen=True)
class KnockoutMatrix:
    """What the model answers when a role cannot look at another, in all layers at once."""

    clean: Evaluation
    blocked: Mapping[tuple[str, str], Evaluation]  # (query, key); only keys that come before the query in every prompt
    control: Mapping[str, Evaluation]  # by query: a random key blocked instead


@dataclass(frozen=True, eq=False)
class _Variant:
    query: str
    keys: Keys
    layers: range


@torch.no_grad()
def knockout_curves(
    model: Model,
    pairs: Pairs,
    blocked: Sequence[tuple[str, Blocked]],
    *,
    layers: Sequence[int] | None = None,
    upward: bool = True,
    executor: str = "window",
    memory_gb: float = DEFAULT_MEMORY_GB,
    progress: Progress | None = None,
) -> list[KnockoutCurve]:
    """`attention_knockout` for several queries and keys, which share the run of the clean model.

    Raises: InputError as `attention_knockout` does.
    """
    chosen = tuple(range(model.n_layers)) if layers is None else tuple(layers)
    if not chosen or min(chosen) < 0 or max(chosen) >= model.n_layers:
        raise InputError(f"layers are from 0 to {model.n_layers - 1} in {model.name}; got {list(chosen)}")
    places = [_positions(pairs, query, keys) for query, keys in blocked]
    variants = [
        _Variant(query, keys, range(n, model.n_layers if upward else n + 1))
        for (query, _), keys in zip(blocked, places, strict=True)
        for n in chosen
    ]
    clean, *found = _run(model, pairs, variants, executor, memory_gb, progress)
    return [
        KnockoutCurve(query, _named(keys), upward, chosen, clean, tuple(found[i * len(chosen) : (i + 1) * len(chosen)]))
        for i, (query, keys) in enumerate(blocked)
    ]


@torch.no_grad()
def attention_knockout(
    model: Model,
    pairs: Pairs,
    query: str,
    keys: Blocked,
    *,
    layers: Sequence[int] | None = None,
    upward: bool = True,
    executor: str = "window",
    memory_gb: float = DEFAULT_MEMORY_GB,
    progress: Progress | None = None,
) -> KnockoutCurve:
    """Accuracies with role `query` blocked from seeing `keys`: a role, several together, or a position of each prompt.

    From each of `layers` (default: all) upward, as in the paper, or with `upward=False` in that layer alone.

    Raises: InputError if a role or layer does not exist, a key comes after the query, or a query is left without keys.
    """
    [curve] = knockout_curves(
        model,
        pairs,
        [(query, keys)],
        layers=layers,
        upward=upward,
        executor=executor,
        memory_gb=memory_gb,
        progress=progress,
    )
    return curve


@torch.no_grad()
def knockout_matrix(
    model: Model,
    pairs: Pairs,
    roles: Sequence[str],
    *,
    query_roles: Sequence[str],
    seed: int = 0,
    executor: str = "window",
    memory_gb: float = DEFAULT_MEMORY_GB,
    progress: Progress | None = None,
) -> KnockoutMatrix:
    """Does information flow here? Each role blocked from each role before it, in all layers; and a random key instead.

    `query_roles`: tokens of the question, which the random key avoids (see `random_keys`); () if the task has none.

    Raises: InputError if a role does not exist or a query has no key that a control could block.
    """
    _check_roles(pairs, roles)
    at = {role: pairs.positions[role] for role in roles}
    before = [(query, key) for query in roles for key in roles if bool((at[key] < at[query]).all())]
    queries = list(dict.fromkeys(query for query, _ in before))
    every = range(model.n_layers)
    variants = [_Variant(query, at[key][:, None], every) for query, key in before]
    variants += [_Variant(q, random_keys(pairs, q, query_roles, seed=seed)[:, None], every) for q in queries]
    clean, *found = _run(model, pairs, variants, executor, memory_gb, progress)
    return KnockoutMatrix(
        clean,
        dict(zip(before, found[: len(before)], strict=True)),
        dict(zip(queries, found[len(before) :], strict=True)),
    )


def random_keys(pairs: Pairs, query: str, query_roles: Iterable[str], *, seed: int = 0) -> Int[Tensor, " prompt"]:
    """A position of each prompt before the query, drawn evenly, the same for the same seed.

    Never the first token (where heads look that look nowhere), a token of the answer, or one of `query_roles`.

    Raises: InputError if a prompt has no such position.
    """
    _check_roles(pairs, [query, *query_roles])
    g = torch.Generator().manual_seed(seed)
    place = torch.arange(pairs.clean.shape[1])
    free = (place > 0) & (place < pairs.positions[query][:, None]) & (pairs.clean != pairs.answers[:, None])
    for role in query_roles:
        free &= place != pairs.positions[role][:, None]
    if not free.any(1).all():
        raise InputError(
            f"a prompt has no position before {query!r} that is neither its answer nor its query, so no random key "
            f"can be blocked; choose a later query"
        )
    return torch.where(free, torch.rand(free.shape, generator=g), -1.0).argmax(1)


def _run(
    model: Model,
    pairs: Pairs,
    variants: Sequence[_Variant],
    executor: str,
    memory_gb: float,
    progress: Progress | None,
) -> list[Evaluation]:
    """The clean model, then each variant; the clean one is a variant that blocks in no layer."""
    if not variants:
        return [evaluate_model(model, pairs)]
    roles = list(dict.fromkeys(variant.query for variant in variants))
    values = run_edited(
        model,
        pairs,
        [replace(variants[-1], layers=range(0)), *variants],
        Editing(roles, lambda variant, bucket: bucket.positions[variant.query], lambda some, b: _edits(model, some, b)),
        executor=executor,
        memory_gb=memory_gb,
        progress=progress,
    )
    return [evaluation_of(value, pairs) for value in values]


def _edits(model: Model, variants: Sequence[_Variant], bucket: Bucket) -> list[Knockout]:
    """One for each layer and query role, of all the variants that block there."""
    heads = torch.arange(model.n_heads, device=model.device)
    blocked = torch.stack([_blocked(variant.keys[bucket.prompts], bucket.length) for variant in variants])
    found = []
    for query in dict.fromkeys(variant.query for variant in variants):
        for layer in range(model.n_layers):
            mine = [i for i, v in enumerate(variants) if v.query == query and layer in v.layers]
            if mine:
                at = bucket.positions[query]
                found.append(Knockout(layer, at, heads, torch.tensor(mine), blocked[mine].to(model.device)))
    return found


def _blocked(keys: Keys, length: int) -> Bool[Tensor, "prompt pos"]:
    return torch.zeros(len(keys), length, dtype=torch.bool).scatter(1, keys, True)


def _named(keys: Blocked) -> str:
    return keys if isinstance(keys, str) else "random position" if isinstance(keys, Tensor) else " + ".join(keys)


def _positions(pairs: Pairs, query: str, keys: Blocked) -> Keys:
    _check_roles(pairs, [query])
    if isinstance(keys, Tensor):
        positions = keys[:, None]
    else:
        named = [keys] if isinstance(keys, str) else list(keys)
        if not named:
            raise InputError("no key to block was named; name a role that the query looks at")
        _check_roles(pairs, named)
        positions = torch.stack([pairs.positions[role] for role in named], dim=1)
    at = pairs.positions[query][:, None]
    if (positions > at).any():
        raise InputError(f"{query!r} cannot look at a later position, so blocking it does nothing; got keys {keys!r}")
    n_blocked = torch.tensor([len(row.unique()) for row in positions])
    if (n_blocked == at[:, 0] + 1).any():
        raise InputError(f"{query!r} would see no key any more: it cannot attend to nothing; block fewer keys")
    return positions


def _check_roles(pairs: Pairs, roles: Iterable[str]) -> None:
    for role in roles:
        if role not in pairs.positions:
            raise InputError(f"the task has no role {role!r}; it has {', '.join(sorted(pairs.positions))}")
        if (pairs.positions[role] < 0).any():
            raise InputError(f"role {role!r} has no place in some prompts; choose a role that every prompt has")
