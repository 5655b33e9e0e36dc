"""Which heads does a circuit need? What each costs it, and its faithfulness without those that are not needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, get_args

from pydantic import Field

from circuitdiff.circuit import Circuit
from circuitdiff.config.settings import COUNTS_PROMPTS
from circuitdiff.methods.minimality import HeadCost, MinimalityResult, MinimalityRule, Outcome, minimality, most_removed
from circuitdiff.prompts import halves
from circuitdiff.readable import Readable
from circuitdiff.study.common_units import circuit_answers, means_of, model_answers
from circuitdiff.study.estimates import (
    Estimate,
    GroupHeads,
    HeadPlace,
    Number,
    Ratio,
    estimate,
    faithfulness,
    groups_of,
    result_of,
)
from circuitdiff.study.preflight import check_enough, check_scenarios
from circuitdiff.study.section import LoadedModel, Needed, Outlined, Part, PromptsOf, Section, Sizes, StudyContext
from circuitdiff.study.sections.discovery import Discovered, main_circuits


@dataclass(frozen=True)
class MinimalityOptions(MinimalityRule):
    """See `MinimalityRule`. The published rule: hits, not held out, ratio, 0.01, and no joint removal.

    `prompts` are beyond those for evaluation; half of their scenarios choose removal sets, half test.
    """

    prompts: Annotated[int, Field(ge=8, le=100_000), COUNTS_PROMPTS] = (
        300  # where no prompt shows a cost, 100 to test are too few for a margin of 0.03
    )

    @property
    def rule(self) -> MinimalityRule:
        return MinimalityRule(**{each.name: getattr(self, each.name) for each in fields(MinimalityRule)})


@dataclass(frozen=True)
class HeadResult:
    """What the circuit loses with a head, once the heads that stand in for it are gone. Positive: it helps.

    `cost`, `before` and `after` are in the rule's score; `cost_in_hits` is a share of prompts.
    """

    head: HeadPlace
    cost: Number
    low: Number
    high: Number
    needed_p: Number  # one-sided, against a cost of at most the threshold; adjusted over the whole circuit
    not_needed_p: Number  # against a cost of threshold + margin or more; adjusted over the whole circuit
    outcome: Outcome
    removed_with: tuple[HeadPlace, ...]  # gone before and after
    before: Number
    after: Number
    cost_in_hits: Estimate


@dataclass(frozen=True)
class PromptCounts:
    """Prompts on which removal sets were chosen, costs tested, and faithfulness measured."""

    choosing: int
    testing: int
    fresh: int


@dataclass(frozen=True)
class HeadCounts:
    needed: int
    not_needed: int  # pruned
    open: int


@dataclass(frozen=True, repr=False)
class PrunedCircuit(Readable):
    """A circuit in the model where it was found: what each head costs, and the circuit without those not needed."""

    model: str
    groups: dict[str, tuple[HeadResult, ...]]
    kept: dict[str, GroupHeads]  # the heads that are needed or open
    rule: MinimalityRule
    n_prompts: PromptCounts
    faithfulness_before: Ratio
    faithfulness_pruned: Ratio
    n_heads: HeadCounts


async def run(study: StudyContext, options: MinimalityOptions) -> dict[str, PrunedCircuit]:
    """By circuit. Costs are measured on prompts beyond those for evaluation, on which faithfulness is measured."""
    circuits = await main_circuits(study)
    return await study.by_item(circuits, lambda name: _pruned(study, name, circuits[name], options))


async def _pruned(study: StudyContext, name: str, of: Discovered, options: MinimalityOptions) -> PrunedCircuit:
    prompts = PromptsOf("evaluation", first=options.prompts, beyond=True)
    given = {"circuit": of.circuit, "rule": options.rule, "means": means_of(of.model)}
    result = await study.value(f"minimality of circuit {name}", cost_of_heads, of.model, prompts=prompts, **given)
    outcomes = [each.outcome for group in result.groups.values() for each in group.costs]
    title = f"circuit {name} before and after pruning"
    before, pruned = await circuit_answers(study, of.model, title, [of.circuit, result.pruned], "slot")
    model = await model_answers(study, of.model)
    return PrunedCircuit(
        model=of.model,
        groups={name: tuple(map(_head, group.costs)) for name, group in result.groups.items()},
        kept=groups_of(result.pruned),
        rule=result.rule,
        n_prompts=PromptCounts(result.n_choosing, len(result.scenarios), len(model.hits)),
        faithfulness_before=faithfulness(before, model),
        faithfulness_pruned=faithfulness(pruned, model),
        n_heads=HeadCounts(*(outcomes.count(each) for each in get_args(Outcome))),
    )


def cost_of_heads(
    subject: LoadedModel, *, prompts: PromptsOf, circuit: Circuit, rule: MinimalityRule, means: Needed
) -> MinimalityResult:
    pairs, of_slots = subject.pairs(prompts), subject.means(means, "slot")
    return minimality(subject.model, circuit, pairs, of_slots, rule, shared=subject.shared, **subject.how)


def _head(cost: HeadCost) -> HeadResult:
    bounds = estimate(cost.cost)
    return result_of(HeadResult, cost, cost=bounds.value, low=bounds.low, high=bounds.high)


def cost(sizes: Sizes, options: MinimalityOptions) -> Iterator[Part]:
    """Twice the whole circuit, on which all others build: from their first head, and its role, on.

    A group of n heads: each head and each pair on prompts that choose, and on those that test its heads' removal sets,
    taken to be as large as they may be, and these with the head.
    """
    beyond = sizes.prompts.pairs(PromptsOf("evaluation", first=options.prompts, beyond=True))
    parts = halves(beyond) if options.held_out else (beyond, beyond)
    n = len(beyond) / (2 if options.held_out else 1)
    layers, n_circuits = sizes.base.n_layers * sizes.speed.flop_of_layer, 0.0
    flop = sizes.runs(2 * n, sizes.places_from()) + sizes.constant_tokens(parts, [sizes.sample]) * layers
    for stage in sizes.main.stages:
        size = sizes.groups[stage.name]
        removed = most_removed(size, options.fraction)
        for times, heads in ((size, 1), (size * (size - 1) / 2, 2), (size, removed), (size, removed + 1)):
            flop += sizes.runs(times * n, sizes.places_from(stage.at), sizes.layers_from(stage.name, heads))
            n_circuits += times
    yield Part("minimality", sizes.n_searched * n_circuits * n, sizes.n_searched * flop)


def check(outlined: Outlined, options: MinimalityOptions) -> None:
    """Each half needs two scenarios for an interval, beyond those for evaluation."""
    sizes = outlined.settings.prompts
    if options.held_out:
        check_scenarios("minimality.prompts", options.prompts, sizes.queries_per_scenario, 4)
    check_enough("minimality.prompts", outlined, options.prompts, beyond=True)


SECTION = Section("minimality", MinimalityOptions, dict[str, PrunedCircuit], run, cost, check)
