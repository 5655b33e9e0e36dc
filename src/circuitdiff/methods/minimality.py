"""Which heads of a circuit it needs: for each head, is there a set whose absence lays its part bare?

1. On half of the scenarios: the score of the circuit without each pair of a group's heads (the pair table).
2. From the table, for each head: the heads that stand in for it, which are removed first (its removal set K).
3. On the other scenarios: the head's cost, score(circuit minus K) - score(circuit minus K minus the head).
4. Heads are needed whose cost surely exceeds a threshold, not needed whose cost surely exceeds it by less than a
   margin, and open otherwise. Only heads that are not needed are pruned: on few prompts none are.

Source: Wang et al. 2022 (arXiv:2211.00593), section 4.2, for minimality by removal sets; Prakash et al. 2024
(arXiv:2402.14811) for pair tables. They choose K and measure the cost on the same prompts, in hits, without an
interval, and know no open heads: `PUBLISHED` does that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from circuitdiff.circuit import Circuit, Group, Head
from circuitdiff.config.settings import Share
from circuitdiff.config.validation import check_fields
from circuitdiff.engine import Model
from circuitdiff.engine.fits import DEFAULT_MEMORY_GB
from circuitdiff.evaluation import Evaluation, Progress, Quantity, Replacement, Shared, check_circuit, evaluate_circuits
from circuitdiff.prompts import Pairs, halves
from circuitdiff.readable import Readable, data_frame
from circuitdiff.stats.intervals import Interval, cluster_p_values, false_discovery_adjusted, mean_interval, one_sided
from circuitdiff.stats.proportions import paired_interval


@dataclass(frozen=True, repr=False)
class MinimalityRule(Readable):
    """How a head is tested, and what it takes to be needed or not.

    `score`: what circuits are compared by, the answer's mean probability or the number of hits. A hundred prompts of
    hits see a cost of two points one time in eight.
    `fraction`: at most this share of a group is removed before one of its heads is tested.
    `held_out`: removal sets are chosen on half of the scenarios and costs measured on the others; without, both on all.
    `decision`: "credible" needs a head whose cost is above `threshold`, and does not need one whose cost is below
    `threshold + margin`: by its interval at `level`, and in a test at `error_rate`. Both tests control the
    share of false ones among all heads of the circuit that get this outcome (Benjamini and Hochberg): what matters
    when many are pruned is how many of them are needed, and what the pruned circuit lost as a whole is measured on
    other prompts. A cost surely between threshold and threshold + margin is needed. "ratio" needs what `keep` keeps,
    and nothing is open.
    """

    score: Literal["probability", "hits"] = "probability"
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.3
    held_out: bool = True
    decision: Literal["credible", "ratio"] = "credible"
    threshold: float = 0.0
    margin: Annotated[float, Field(ge=0)] = 0.03  # of the answer's probability, or of the prompts
    error_rate: Share = 0.05
    level: Share = 0.95
    joint_removal_of_same_index: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


# Prakash et al. 2024 (arXiv:2402.14811), as published: one lost hit of the same 100 prompts is enough to stay.
PUBLISHED = MinimalityRule(
    score="hits", held_out=False, decision="ratio", threshold=0.01, joint_removal_of_same_index=False
)


@dataclass(frozen=True, repr=False)
class PairTable(Readable):
    """Scores of the full circuit without each pair of a group's heads; on the diagonal, without the one head.

    Hits (whole numbers) compare exactly; the published tables hold accuracies. nan: not measured.
    """

    heads: tuple[Head, ...]
    scores: Float[Tensor, "first second"]


def pair_removal(first: Head, second: Head, *, joint_removal_of_same_index: bool = True) -> frozenset[Head]:
    """The heads to remove for one entry of the pair table.

    Differs from the published code, which removes only the first of two heads with the same index in different layers
    (it compares object identities); `joint_removal_of_same_index=False` does that.
    """
    if not joint_removal_of_same_index and first.index == second.index:
        return frozenset([first])
    return frozenset([first, second])


def removal_set(table: PairTable, head: Head, fraction: float = 0.3) -> list[Head]:
    """The heads to take out before `head` is tested: those that hide its part, at most `fraction` of the group.

    Removing `head` once another head b is gone costs drop = D[b][b] - D[head][b]. The ceil(fraction * group size) heads
    of the largest drops, the largest first, as far as these are above 0; ties keep the table's order, and pairs that
    were not measured (nan) are left out.

    Source: Prakash et al. 2024 (arXiv:2402.14811), minimality.
    """
    drops = (table.scores.diagonal() - table.scores[table.heads.index(head)]).nan_to_num(nan=-math.inf)
    order = torch.argsort(drops, descending=True, stable=True).tolist()
    most = most_removed(len(table.heads), fraction)
    return [table.heads[i] for i in order[:most] if drops[i] > 0]


def most_removed(size: int, fraction: float) -> int:
    """How many heads of a group a removal set may have."""
    return math.ceil(round(fraction * size, 9))  # 0.07 * 100 is 7.000000000000001


def keep(before: float | int, after: float | int, threshold: float = 0.01) -> bool:
    """Does the circuit need a head that takes its score from `before` to `after`?

    before / after - 1 >= threshold. A score that falls to 0 is always needed (the published code divides by 0 there);
    one that was 0 has nothing to lose, and changes by 0.
    """
    if after == 0:
        return before > 0 or threshold <= 0
    return before / after - 1 >= threshold


Outcome = Literal["needed", "not_needed", "open"]


@dataclass(frozen=True, repr=False)
class HeadCost(Readable):
    """What the circuit loses with a head, once the heads that stand in for it are gone. Positive = it helps."""

    head: Head
    removed_with: tuple[Head, ...]  # gone before and after
    before: float  # score without them: mean probability, or number of hits
    after: float  # score without them and the head
    cost: Interval  # in probability, or as a share of prompts where the score is hits
    cost_in_hits: Interval  # share of prompts
    needed_p: float  # one-sided, against a cost of at most the threshold; adjusted over the whole circuit
    not_needed_p: float  # of `not_needed_p_values` against threshold + margin; adjusted over the whole circuit
    outcome: Outcome


@dataclass(frozen=True, repr=False)
class GroupMinimality(Readable):
    """One group's pair table and its heads' costs, in the group's order."""

    at: str
    table: PairTable
    costs: tuple[HeadCost, ...]
    per_prompt: Float[Tensor, "head prompt"]  # the costs, in the rule's score

    @property
    def kept(self) -> tuple[Head, ...]:
        """The heads that are needed or open."""
        return tuple(entry.head for entry in self.costs if entry.outcome != "not_needed")


@dataclass(frozen=True, repr=False)
class MinimalityResult(Readable):
    """All groups, on the same prompts."""

    groups: Mapping[str, GroupMinimality]
    rule: MinimalityRule
    scenarios: Int[Tensor, " prompt"]  # of the prompts on which costs were measured
    n_choosing: int  # prompts on which removal sets were chosen

    @property
    def pruned(self) -> Circuit:
        """Without the heads that are not needed. Its faithfulness is to be measured on scenarios not used here."""
        return Circuit({name: Group(group.at, group.kept) for name, group in self.groups.items()})

    def to_pandas(self) -> Any:
        """A row for each head of each group. Raises: InputError if there is no pandas."""
        own = ("before", "after", "needed_p", "not_needed_p", "outcome")
        rows = (
            (name, group.at, str(each.head), *each.cost, *(getattr(each, column) for column in own))
            for name, group in self.groups.items()
            for each in group.costs
        )
        return data_frame("group role head cost low high " + " ".join(own), rows)


class _Removal(NamedTuple):
    """Heads to take out of the circuit at one role."""

    at: str
    heads: frozenset[Head]


class _Tested(NamedTuple):
    """One head of a group: the circuit without its removal set, and without the head, too."""

    group: str
    head: Head
    removed: tuple[Head, ...]
    before: Evaluation
    after: Evaluation


def minimality(
    model: Model,
    circuit: Circuit,
    pairs: Pairs,
    means: Replacement,
    rule: MinimalityRule | None = None,
    executor: str = "window",
    progress: Progress | None = None,
    *,
    shared: Shared | None = None,
    memory_gb: float = DEFAULT_MEMORY_GB,
) -> MinimalityResult:
    """What each head costs the circuit, and whether it needs it by `rule`; every group inside the whole circuit.

    A group of n heads takes n (n + 1) / 2 circuits on the prompts that choose, and at most 2 n on those that test.

    Raises: InputError if a group is empty, the model or task lacks a head or role, or the scenarios are too few.
    """
    rule, known = rule or MinimalityRule(), shared or Shared()
    check_circuit(model, circuit, pairs, "minimality")
    choosing, testing = halves(pairs) if rule.held_out else (pairs, pairs)

    def evaluate(removals: Iterable[_Removal], on: Pairs) -> dict[_Removal, Evaluation]:
        distinct = list(dict.fromkeys(removals))
        circuits = [circuit.without(removal.heads, removal.at) for removal in distinct]
        found = evaluate_circuits(model, circuits, on, means, executor, progress, shared=known, memory_gb=memory_gb)
        return dict(zip(distinct, found, strict=True))

    pairs_of = {name: _pairs_of(group, rule) for name, group in circuit.groups.items()}
    alone = evaluate((pair for its in pairs_of.values() for pair in its), choosing)
    tables, sets = {}, []
    for name, group in circuit.groups.items():
        table = torch.tensor([score(alone[pair], rule) for pair in pairs_of[name]], dtype=torch.float64)
        tables[name] = PairTable(group.heads, table.view(len(group.heads), -1))
        for head in group.heads:
            removed = tuple(removal_set(tables[name], head, rule.fraction))
            before, after = (_Removal(group.at, frozenset(gone)) for gone in (removed, [*removed, head]))
            sets.append((name, head, removed, before, after))
    found = evaluate((end for *_, before, after in sets for end in (before, after)), testing)
    tested = [_Tested(name, head, removed, found[before], found[after]) for name, head, removed, before, after in sets]
    return MinimalityResult(_judged(circuit, tables, tested, rule), rule, testing.scenarios, len(choosing))


def score(evaluation: Evaluation, rule: MinimalityRule) -> float:
    """The answer's mean probability, or the number of hits, which compares exactly."""
    values = evaluation.per_prompt(rule.score)
    return float(values.sum() if rule.score == "hits" else values.mean())


def _pairs_of(group: Group, rule: MinimalityRule) -> list[_Removal]:
    """Every pair of a group's heads, row by row of the pair table; a head with itself included."""
    joint = rule.joint_removal_of_same_index
    both = (pair_removal(*pair, joint_removal_of_same_index=joint) for pair in product(group.heads, repeat=2))
    return [_Removal(group.at, heads) for heads in both]


def _judged(
    circuit: Circuit, tables: Mapping[str, PairTable], tested: Sequence[_Tested], rule: MinimalityRule
) -> dict[str, GroupMinimality]:
    """Steps 3 and 4."""
    per_prompt, hits = _costs(tested, rule.score), _costs(tested, "hits").numpy()
    costs, scenarios = per_prompt.numpy(), tested[0].before.scenarios.numpy()
    hit_intervals = paired_interval(hits, scenarios, level=rule.level)
    intervals = hit_intervals if rule.score == "hits" else mean_interval(costs, scenarios, level=rule.level)
    least = rule.threshold if rule.decision == "credible" else 0.0  # a ratio is no cost
    whole = np.array([float(one.before.per_prompt(rule.score).max()) for one in tested])
    needed_p = false_discovery_adjusted(_one_sided_p(costs - least, scenarios, negative=False))
    not_needed_p = false_discovery_adjusted(not_needed_p_values(costs, whole, scenarios, least + rule.margin))
    of_group: dict[str, list[HeadCost]] = {name: [] for name in circuit.groups}
    for i, (one, needed, not_needed) in enumerate(zip(tested, needed_p.tolist(), not_needed_p.tolist(), strict=True)):
        scores, cost = (score(one.before, rule), score(one.after, rule)), _row(intervals, i)
        outcome = _outcome(scores, cost, needed, not_needed, rule)
        of_group[one.group].append(
            HeadCost(one.head, one.removed, *scores, cost, _row(hit_intervals, i), needed, not_needed, outcome)
        )
    groups, rows = circuit.groups, per_prompt.split([len(group.heads) for group in circuit.groups.values()])
    return {
        name: GroupMinimality(groups[name].at, tables[name], tuple(of_group[name]), of_prompts.clone())
        for name, of_prompts in zip(groups, rows, strict=True)
    }


def not_needed_p_values(
    costs: Float[ndarray, "head prompt"],
    whole: Float[ndarray, " head"],
    scenarios: Int[ndarray, " prompt"],
    limit: float,
) -> Float[ndarray, " head"]:
    """Two-sided p of each head against "its mean cost is the limit"; 1 where the cost is above it.

    The t-test on scenarios, with one scenario more than there are, in which the head costs `whole`, all that it could.
    Few prompts may carry a head's cost, and a sample without any of them shows neither the cost nor its variance. So p
    is below 0.05 only from 3 * whole / limit scenarios on, and of so many 19 samples in 20 hold such a prompt: with a
    mean of `limit` at least a share of limit / whole of the prompts has a cost.
    """
    size = round(len(scenarios) / len(np.unique(scenarios)))
    costs = np.hstack([costs, whole[:, None].repeat(size, axis=1)])
    scenarios = np.append(scenarios, np.full(size, scenarios.max() + 1))
    return np.minimum(2 * _one_sided_p(costs - limit, scenarios, negative=True), 1)


def _one_sided_p(values: ndarray, scenarios: ndarray, *, negative: bool) -> ndarray:
    return one_sided(cluster_p_values(values, scenarios, n_flips=1), np.full(len(values), negative))


def _outcome(
    scores: tuple[float, float], cost: Interval, needed_p: float, not_needed_p: float, rule: MinimalityRule
) -> Outcome:
    """Interval and test must agree; a cost surely between threshold and threshold + margin is needed."""
    if rule.decision == "ratio":
        return "needed" if keep(*scores, rule.threshold) else "not_needed"
    if cost.low > rule.threshold and needed_p <= rule.error_rate:
        return "needed"
    if cost.high < rule.threshold + rule.margin and not_needed_p <= rule.error_rate:
        return "not_needed"
    return "open"


def _costs(tested: Sequence[_Tested], quantity: Quantity) -> Float[Tensor, "head prompt"]:
    return torch.stack([one.before.per_prompt(quantity) - one.after.per_prompt(quantity) for one in tested])


def _row(intervals: Interval, i: int) -> Interval:
    return Interval(*(float(np.asarray(bound)[i]) for bound in intervals))
