"""Does the circuit hold all that the model uses? Without a part K of it, model and circuit should do alike.

With F the score: if the circuit C is the whole mechanism of the model M, F(M without K) = F(C without K) for every K.
Where M without K does better, something outside the circuit stands in for K. Both terms are given: near the floor,
where neither does anything, their difference says nothing.

Source: Wang et al. 2022 (arXiv:2211.00593), section 4.1; Prakash et al. 2024 (arXiv:2402.14811), who give the mean of
absolute differences of rounded accuracies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.engine import Model
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB
from circuitdiff.errors import InputError
from circuitdiff.evaluation import (
    Progress,
    Quantity,
    Replacement,
    Shared,
    check_circuit,
    evaluate_circuits,
    evaluate_without,
    minus,
)
from circuitdiff.prompts import Pairs
from circuitdiff.readable import Readable, data_frame
from circuitdiff.stats.intervals import Interval, cluster_weights, mean_interval, resampled_means
from circuitdiff.stats.proportions import accuracy_interval, paired_interval


@dataclass(frozen=True, repr=False)
class Completeness(Readable):
    """Scores of model and circuit without each of some parts of the circuit, prompt by prompt."""

    removed: tuple[Circuit, ...]
    model: Float[Tensor, "part prompt"]
    circuit: Float[Tensor, "part prompt"]
    scenarios: Int[Tensor, " prompt"]
    of_hits: bool = False  # the scores are hits

    def to_pandas(self) -> Any:
        """A row for each part, by its heads; the interval is the difference's. Raises: InputError without pandas."""
        heads = [", ".join(str(h) for group in part.groups.values() for h in group.heads) for part in self.removed]
        rows = zip(heads, self.of_model().value, self.of_circuit().value, *self.differences(), strict=True)  # pyright: ignore
        return data_frame("removed model circuit difference low high", rows)

    def of_model(self) -> Interval:
        """F(M without K), mean over prompts; arrays [part]."""
        return self._mean(self.model)

    def of_circuit(self) -> Interval:
        """F(C without K)."""
        return self._mean(self.circuit)

    def _mean(self, scores: Float[Tensor, "part prompt"]) -> Interval:
        return (accuracy_interval if self.of_hits else mean_interval)(scores.numpy(), self.scenarios.numpy())

    def differences(self) -> Interval:
        """F(M without K) - F(C without K), paired. Positive: something outside the circuit stands in for K."""
        interval = paired_interval if self.of_hits else mean_interval
        return interval((self.model - self.circuit).numpy(), self.scenarios.numpy())

    def absolute_differences(self) -> Interval:
        """|F(M without K) - F(C without K)|, by the bounds of the signed one; the lower is 0 if that lies between."""
        value, low, high = (np.asarray(bound) for bound in self.differences())
        nearest = np.where((low <= 0) & (high >= 0), 0.0, np.minimum(abs(low), abs(high)))
        return Interval(abs(value), np.where(np.isnan(low), np.nan, nearest), np.maximum(abs(low), abs(high)))

    def correlation(self) -> Interval:
        """Pearson's r of F(M without K) and F(C without K) over the parts, with a bootstrap interval over scenarios.

        The interval is for these parts: it says how well the prompts fix r, not how r would vary with other parts.
        nan with fewer than three parts, or if all score alike.
        """
        scenarios = self.scenarios.numpy()
        weights = np.concatenate([np.ones((1, len(scenarios))), cluster_weights(scenarios)])  # first the sample itself
        r = _correlations(*(resampled_means(values.numpy(), weights) for values in (self.model, self.circuit)))
        few = len(self.removed) < 3 or len(np.unique(scenarios)) < 2 or np.isnan(r).any()
        low, high = (np.nan, np.nan) if few else np.quantile(r[1:], [(1 - 0.95) / 2, (1 + 0.95) / 2])
        return Interval(np.nan if len(self.removed) < 3 else float(r[0]), float(low), float(high))


@dataclass(frozen=True)
class GreedyStep:
    """A head taken out by the search, and the score of model and circuit without it and all before it."""

    group: str
    head: Head
    model: float
    circuit: float

    @property
    def difference(self) -> float:
        return self.model - self.circuit


@dataclass(frozen=True, repr=False)
class GreedyPart(Readable):
    """The part with the largest |difference| that a search came by, on the prompts that it searched."""

    removed: Circuit
    steps: tuple[GreedyStep, ...]  # the whole search; `removed` are the first few


def completeness(
    model: Model,
    circuit: Circuit,
    removed: Sequence[Circuit],
    pairs: Pairs,
    means: Replacement,
    quantity: Quantity = "probability",
    executor: str = "window",
    progress: Progress | None = None,
    *,
    shared: Shared | None = None,
    memory_gb: float = DEFAULT_MEMORY_GB,
) -> Completeness:
    """What model and circuit do without each of `removed`, parts of the circuit (see `random_parts`, `whole_groups`).

    In the model the part's heads are at their mean at their own role, and nothing else is touched.

    Raises: InputError if a group is empty, or the model or task lacks a head or role.
    """
    check_circuit(model, circuit, pairs, "completeness")
    _check_parts(circuit, removed)
    half = None if progress is None else lambda done, total: progress(done, 2 * total)
    other = None if progress is None else lambda done, total: progress(total + done, 2 * total)
    remaining = [minus(circuit, part) for part in removed]
    alone = evaluate_circuits(model, remaining, pairs, means, executor, half, shared=shared, memory_gb=memory_gb)
    without = evaluate_without(model, removed, pairs, means, executor, other, memory_gb=memory_gb)
    model_scores, circuit_scores = (
        torch.stack([evaluation.per_prompt(quantity) for evaluation in evaluations]) for evaluations in (without, alone)
    )
    return Completeness(tuple(removed), model_scores, circuit_scores, pairs.scenarios, quantity == "hits")


def whole_groups(circuit: Circuit) -> list[Circuit]:
    """Each group of the circuit as a part of its own."""
    return [Circuit({name: group}) for name, group in circuit.groups.items()]


def random_parts(circuit: Circuit, n_parts: int, generator: torch.Generator) -> list[Circuit]:
    """Parts that hold each head of the circuit with probability one half."""
    members = _members(circuit)
    coins = torch.rand(n_parts, len(members), generator=generator) < 0.5
    return [_part(circuit, [members[i] for i in row.nonzero()[:, 0].tolist()]) for row in coins]


def greedy_part(
    model: Model,
    circuit: Circuit,
    pairs: Pairs,
    means: Replacement,
    quantity: Quantity = "probability",
    executor: str = "window",
    progress: Progress | None = None,
    *,
    n_steps: int = 10,
    n_candidates: int = 5,
    generator: torch.Generator,
    shared: Shared | None = None,
    memory_gb: float = DEFAULT_MEMORY_GB,
) -> GreedyPart:
    """The worst part that a sampled greedy search finds.

    At each step some heads are drawn from those that are left, and the one joins the part that makes |F(M without K) -
    F(C without K)| largest. It was searched for: measure its difference on other scenarios, with `completeness`.

    Source: Wang et al. 2022 (arXiv:2211.00593), section 4.1.

    Raises: InputError as `completeness` does.
    """
    check_circuit(model, circuit, pairs, "completeness")
    known, members, steps = shared or Shared(), _members(circuit), list[GreedyStep]()
    for _ in range(min(n_steps, len(members))):
        taken = [(step.group, step.head) for step in steps]
        left = [member for member in members if member not in taken]
        drawn = torch.randperm(len(left), generator=generator)[:n_candidates].tolist()
        parts = [_part(circuit, [*taken, left[i]]) for i in drawn]
        found = completeness(model, circuit, parts, pairs, means, quantity, executor, shared=known, memory_gb=memory_gb)
        scores = zip(drawn, found.model.mean(1).tolist(), found.circuit.mean(1).tolist(), strict=True)
        steps.append(max((GreedyStep(*left[i], *both) for i, *both in scores), key=lambda step: abs(step.difference)))
        if progress:
            progress(len(steps), min(n_steps, len(members)))
    worst = max(range(len(steps)), key=lambda i: abs(steps[i].difference))
    return GreedyPart(_part(circuit, [(step.group, step.head) for step in steps[: worst + 1]]), tuple(steps))


def _members(circuit: Circuit) -> list[tuple[str, Head]]:
    return [(name, head) for name, group in circuit.groups.items() for head in group.heads]


def _part(circuit: Circuit, members: Sequence[tuple[str, Head]]) -> Circuit:
    """The circuit's heads that are among `members`; groups without any are left out."""
    chosen = frozenset(members)
    groups = {
        name: Group(group.at, tuple(head for head in group.heads if (name, head) in chosen))
        for name, group in circuit.groups.items()
    }
    return Circuit({name: group for name, group in groups.items() if group.heads})


def _check_parts(circuit: Circuit, removed: Sequence[Circuit]) -> None:
    for part in removed:
        for role in part.roles:
            if foreign := sorted(part.heads_at(role) - circuit.heads_at(role)):
                raise InputError(
                    f"a part to remove has head {foreign[0]} at {role!r}, which the circuit does not; "
                    f"remove heads of the circuit only"
                )


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's r of each row of two tables [row, part]; nan where a row is constant."""
    one, other = (table - table.mean(1, keepdims=True) for table in (first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (one * other).sum(1) / np.sqrt((one**2).sum(1) * (other**2).sum(1))
