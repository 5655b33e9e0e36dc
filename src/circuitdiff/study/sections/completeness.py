"""Does a circuit hold all that the model uses? What both do without the same parts of the circuit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from circuitdiff.circuit import Circuit
from circuitdiff.config.settings import Count, CountOrZero, Draws, Prompts
from circuitdiff.evaluation import Quantity
from circuitdiff.methods.completeness import (
    Completeness,
    GreedyPart,
    completeness,
    greedy_part,
    random_parts,
    whole_groups,
)
from circuitdiff.readable import Readable
from circuitdiff.study.common_units import means_of
from circuitdiff.study.estimates import Estimate, GroupHeads, HeadPlace, Number, estimate, groups_of, result_of
from circuitdiff.study.preflight import check_enough
from circuitdiff.study.section import LoadedModel, Needed, Outlined, Part, PromptsOf, Section, Sizes, StudyContext
from circuitdiff.study.sections.discovery import Discovered, main_circuits

_OTHER_PARTS = 3  # beside random ones and whole groups: nothing, everything, and the worst part


@dataclass(frozen=True)
class CompletenessOptions:
    """Parts of the circuit are removed from the model and from the circuit; see `methods.completeness`."""

    prompts: Prompts = 100  # of the evaluation prompts
    quantity: Quantity = "probability"
    random_parts: Draws = 20
    greedy_steps: CountOrZero = 10  # 0: no search
    greedy_candidates: Count = 5
    greedy_prompts: Prompts = 50  # beyond those for evaluation, for the search


@dataclass(frozen=True)
class Removed:
    """What model and circuit do without so many heads of the circuit, in the section's quantity.

    `difference`: model - circuit, paired by prompts. Positive: something outside the circuit stands in for the heads.
    """

    n_removed: int
    model: Estimate
    circuit: Estimate
    difference: Estimate
    absolute_difference: Estimate


@dataclass(frozen=True)
class RemovedGroup(Removed):
    group: str


@dataclass(frozen=True)
class SearchStep:
    """A head that the search took out, and both scores without it and all before it, on the search's prompts."""

    group: str
    head: HeadPlace
    model: Number
    circuit: Number
    difference: Number


@dataclass(frozen=True)
class WorstPart(Removed):
    """The part with the largest absolute difference that the search came by; `removed` are its first few steps."""

    removed: dict[str, GroupHeads]
    search: tuple[SearchStep, ...]


@dataclass(frozen=True, repr=False)
class PartsRemoved(Readable):
    """A circuit in a model. All values but those of `search` are taken on evaluation prompts."""

    quantity: Quantity
    n_prompts: int
    random: tuple[Removed, ...]
    groups: tuple[RemovedGroup, ...]
    nothing_removed: Removed
    everything_removed: Removed
    greedy: WorstPart | None
    correlation: Estimate  # of model and circuit, over the random parts


async def run(study: StudyContext, options: CompletenessOptions) -> dict[str, dict[str, PartsRemoved]]:
    """By circuit, and the model in which it was found."""
    circuits = await main_circuits(study)
    return await study.by_item(circuits, lambda name: _without_parts(study, name, circuits[name], options))


async def _without_parts(
    study: StudyContext, name: str, of: Discovered, options: CompletenessOptions
) -> dict[str, PartsRemoved]:
    prompts = PromptsOf("evaluation", first=options.prompts)
    search_prompts = PromptsOf("evaluation", first=options.greedy_prompts, beyond=True)
    given = {"circuit": of.circuit, "options": options, "seed": study.settings.seed, "means": means_of(of.model)}
    title, more = f"completeness of circuit {name} in {of.model}", {"search_prompts": search_prompts, **given}
    result, worst = await study.value(title, parts_removed, of.model, prompts=prompts, **more)
    return {of.model: _result(result, worst, list(of.circuit.groups), options)}


def parts_removed(
    subject: LoadedModel,
    *,
    prompts: PromptsOf,
    search_prompts: PromptsOf,
    circuit: Circuit,
    options: CompletenessOptions,
    seed: int,
    means: Needed,
) -> tuple[Completeness, GreedyPart | None]:
    """Both without random parts, whole groups, nothing, everything, and the worst part that a greedy search finds."""
    generator, worst = torch.Generator().manual_seed(seed), None
    how = (subject.means(means, "slot"), options.quantity, subject.executor, subject.progress)
    shared = {"shared": subject.shared, "memory_gb": subject.memory_gb}
    parts = [*random_parts(circuit, options.random_parts, generator), *whole_groups(circuit), Circuit({}), circuit]
    if options.greedy_steps:
        pairs = subject.pairs(search_prompts)
        search = {"n_steps": options.greedy_steps, "n_candidates": options.greedy_candidates, "generator": generator}
        worst = greedy_part(subject.model, circuit, pairs, *how, **search, **shared)
        parts.append(worst.removed)
    return completeness(subject.model, circuit, parts, subject.pairs(prompts), *how, **shared), worst


def _result(
    result: Completeness, worst: GreedyPart | None, groups: list[str], options: CompletenessOptions
) -> PartsRemoved:
    rows, n_random = _rows(result), options.random_parts
    of_groups = rows[n_random : n_random + len(groups)]
    nothing, everything, *searched = rows[n_random + len(groups) :]
    model, circuit = result.model[:n_random], result.circuit[:n_random]
    of_random = Completeness(result.removed[:n_random], model, circuit, result.scenarios)
    greedy = None
    if worst is not None:
        steps = tuple(result_of(SearchStep, step) for step in worst.steps)
        greedy = WorstPart(**vars(searched[0]), removed=groups_of(worst.removed), search=steps)
    return PartsRemoved(
        quantity=options.quantity,
        n_prompts=len(result.scenarios),
        random=tuple(rows[:n_random]),
        groups=tuple(RemovedGroup(**vars(row), group=name) for name, row in zip(groups, of_groups, strict=True)),
        nothing_removed=nothing,
        everything_removed=everything,
        greedy=greedy,
        correlation=estimate(of_random.correlation()),
    )


def _rows(result: Completeness) -> list[Removed]:
    columns = {
        "model": result.of_model(),
        "circuit": result.of_circuit(),
        "difference": result.differences(),
        "absolute_difference": result.absolute_differences(),
    }
    return [
        Removed(len(part), **{name: estimate(interval, i) for name, interval in columns.items()})
        for i, part in enumerate(result.removed)
    ]


def cost(sizes: Sizes, options: CompletenessOptions) -> Iterator[Part]:
    """The model without a part changes everything from the part's first role on, of a clean run."""
    stages = sizes.main.stages
    searched = options.greedy_steps * options.greedy_candidates * options.greedy_prompts
    n = sizes.n_searched * (searched + options.prompts * (options.random_parts + len(stages) + _OTHER_PARTS))
    width = max(sizes.width(stage.at) for stage in stages)
    clean = sizes.n_searched * (options.prompts + options.greedy_steps * options.greedy_prompts)
    yield Part("completeness", 2 * n, sizes.runs(n, sizes.n_roles + width) + sizes.passes(clean))


def check(outlined: Outlined, options: CompletenessOptions) -> None:
    if options.greedy_steps:
        check_enough("completeness.greedy_prompts", outlined, options.greedy_prompts, beyond=True)


SECTION = Section("completeness", CompletenessOptions, dict[str, dict[str, PartsRemoved]], run, cost, check)
