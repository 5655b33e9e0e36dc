"""Which heads does a circuit need? What each costs it, and what is left of its faithfulness without the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated

from pydantic import Field

from circuitdiff.cache.records import Record
from circuitdiff.circuit import Circuit
from circuitdiff.config.settings import COUNTS_PROMPTS
from circuitdiff.methods.minimality import HeadCost, MinimalityResult, MinimalityRule, minimality
from circuitdiff.stats.intervals import ratio_interval
from circuitdiff.study.common_units import circuit_answers, means_of, model_answers
from circuitdiff.study.context import StudyContext
from circuitdiff.study.estimates import (
    Estimate,
    GroupHeads,
    HeadPlace,
    Number,
    Ratio,
    estimate,
    groups_of,
    number,
    places,
    ratio,
)
from circuitdiff.study.host import LoadedModel
from circuitdiff.study.plan import Part, Sizes
from circuitdiff.study.preflight import Outlined, check_scenarios
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.records import minimality_from, minimality_record
from circuitdiff.study.section import Section
from circuitdiff.study.sections.discovery import Discovered, main_circuits
from circuitdiff.study.units import Needed, Unit


@dataclass(frozen=True)
class MinimalityOptions(MinimalityRule):
    """See `MinimalityRule`. The published rule: hits, not held out, ratio, 0.01, and no joint removal.

    `prompts` are beyond those for evaluation; half of their scenarios choose removal sets, half test.
    """

    prompts: Annotated[int, Field(ge=8, le=100_000), COUNTS_PROMPTS] = 200

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
    adjusted_p: Number  # one-sided, of a cost above the threshold; over the whole circuit
    kept: bool
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
    before: int
    pruned: int


@dataclass(frozen=True)
class PrunedCircuit:
    """A circuit in the model where it was found: what each head costs, and what is left with the heads that stay."""

    model: str
    groups: dict[str, tuple[HeadResult, ...]]
    kept: dict[str, GroupHeads]
    rule: MinimalityRule
    n_prompts: PromptCounts
    faithfulness_before: Ratio
    faithfulness_pruned: Ratio
    n_heads: HeadCounts


async def run(study: StudyContext, options: MinimalityOptions) -> dict[str, PrunedCircuit]:
    """By circuit. Costs are measured on prompts beyond those for evaluation, on which faithfulness is measured."""
    circuits = await main_circuits(study)
    results = await study.each(circuits, lambda name: _pruned(study, name, circuits[name], options))
    return dict(zip(circuits, results, strict=True))


async def _pruned(study: StudyContext, name: str, of: Discovered, options: MinimalityOptions) -> PrunedCircuit:
    arguments = {
        "prompts": PromptsOf("evaluation", first=options.prompts, beyond=True),
        "circuit": of.circuit,
        "rule": options.rule,
    }
    needs = {"means": means_of(of.model)}
    costs = await study.record(Unit(f"minimality of circuit {name}", cost_of_heads, (of.model,), arguments, needs))
    result = minimality_from(costs)
    title = f"circuit {name} before and after pruning"
    before, pruned = await circuit_answers(study, of.model, title, [of.circuit, result.pruned], "slot")
    answers = await model_answers(study, of.model)
    scenarios = answers.scenarios.numpy()
    faithfulness = [
        ratio(ratio_interval(each.hits.numpy(), answers.hits.numpy(), scenarios)) for each in (before, pruned)
    ]
    return _result(of.model, of.circuit, result, len(scenarios), *faithfulness)


def cost_of_heads(
    subject: LoadedModel, *, prompts: PromptsOf, circuit: Circuit, rule: MinimalityRule, means: Needed
) -> Record:
    result = minimality(
        subject.model,
        circuit,
        subject.pairs(prompts),
        subject.means(means, "slot"),
        rule,
        subject.executor,
        subject.progress,
        shared=subject.shared,
        memory_gb=subject.memory_gb,
    )
    return minimality_record(result)


def _result(
    model: str, circuit: Circuit, result: MinimalityResult, n_fresh: int, before: Ratio, pruned: Ratio
) -> PrunedCircuit:
    return PrunedCircuit(
        model=model,
        groups={name: tuple(map(_head, group.costs)) for name, group in result.groups.items()},
        kept=groups_of(result.pruned),
        rule=result.rule,
        n_prompts=PromptCounts(result.n_choosing, len(result.scenarios), n_fresh),
        faithfulness_before=before,
        faithfulness_pruned=pruned,
        n_heads=HeadCounts(len(circuit), len(result.pruned)),
    )


def _head(cost: HeadCost) -> HeadResult:
    bounds = estimate(cost.cost)
    return HeadResult(
        head=(cost.head.layer, cost.head.index),
        cost=bounds.value,
        low=bounds.low,
        high=bounds.high,
        adjusted_p=number(cost.adjusted_p),
        kept=cost.kept,
        removed_with=places(cost.removed_with),
        before=number(cost.before),
        after=number(cost.after),
        cost_in_hits=estimate(cost.cost_in_hits),
    )


def cost(sizes: Sizes, options: MinimalityOptions) -> Iterator[Part]:
    circuits = sum(size * (size + 1) / 2 + 2 * size for size in sizes.groups.values())
    runs = sizes.n_searched * circuits * options.prompts / (2 if options.held_out else 1)
    yield Part("minimality", runs, sizes.runs(runs, sizes.n_roles))


def check(outlined: Outlined, options: MinimalityOptions) -> None:
    """Each half needs two scenarios for an interval."""
    if options.held_out:
        per_scenario = outlined.settings.prompts.queries_per_scenario
        check_scenarios("minimality.prompts", options.prompts, per_scenario, 4)


SECTION = Section("minimality", MinimalityOptions, dict[str, PrunedCircuit], run, cost, check)
