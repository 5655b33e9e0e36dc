"""Faithfulness by what everything outside the circuit is replaced with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from circuitdiff.circuit import Circuit
from circuitdiff.config.settings import Prompts
from circuitdiff.errors import InputError
from circuitdiff.evaluation import Evaluation, Quantity, check_replacement, moved
from circuitdiff.methods.ablations import ABLATIONS, Ablated, AblationName, ablation_scores
from circuitdiff.readable import Readable
from circuitdiff.study.common_units import Replaced, circuit_answers, model_answers
from circuitdiff.study.estimates import Estimate, Ratio, result_of
from circuitdiff.study.plan import DISTINCT
from circuitdiff.study.section import Part, PromptsOf, Section, Sizes, StudyContext
from circuitdiff.study.sections.discovery import Discovered, main_circuits

EVERY_SEGMENT = "_every_segment"  # how the names end of those with heads kept at every segment
_MARKING: tuple[AblationName, ...] = ("mean_by_kind", "zero")


@dataclass(frozen=True)
class AblationsOptions:
    """What everything outside the circuit is replaced with."""

    ablations: Annotated[tuple[AblationName, ...], Field(min_length=1)] = ABLATIONS
    prompts: Prompts | None = None  # the first of the evaluation prompts; None: all


@dataclass(frozen=True)
class AblationScores:
    """One quantity of circuit, model and fully ablated model, and how much of the model's the circuit has."""

    circuit: Estimate
    model: Estimate
    ablated: Estimate
    ratio: Ratio  # circuit / model
    normalised: Ratio  # (circuit - ablated) / (model - ablated)


@dataclass(frozen=True, repr=False)
class UnderAblation(Readable):
    """A circuit in a model under one ablation."""

    n_prompts: int
    accuracy: AblationScores
    probability: AblationScores
    logit_difference: AblationScores


async def run(study: StudyContext, options: AblationsOptions) -> dict[str, dict[str, dict[str, UnderAblation]]]:
    """By circuit, the model in which it was found, and ablation.

    Means by kind and zeros are the same in all segments, so heads kept at one segment alone mark it: under these the
    circuit is evaluated with its heads kept at every segment, too.

    Resampling is left out, with a warning, where counterfactuals lack a slot of their prompts.
    """
    circuits = await main_circuits(study)

    async def of_circuit(name: str) -> dict[str, dict[str, UnderAblation]]:
        of = circuits[name]
        possible = await _possible(study, name, of.model, options)
        results = await study.each(possible, lambda ablation: _under(study, name, of, ablation, options))
        return {of.model: {key: scores for result in results for key, scores in result.items()}}

    return await study.by_item(circuits, of_circuit)


async def _possible(study: StudyContext, name: str, model: str, options: AblationsOptions) -> list[AblationName]:
    if "resample" in options.ablations:
        try:
            check_replacement(await study.pairs(model, _prompts(options)), "resample")
        except InputError as error:
            study.warn(f"circuit {name} was not evaluated with resampled activations: {error}")
            return [ablation for ablation in options.ablations if ablation != "resample"]
    return list(options.ablations)


def _prompts(options: AblationsOptions) -> PromptsOf:
    return PromptsOf("evaluation", first=options.prompts)


async def _under(
    study: StudyContext, name: str, of: Discovered, ablation: AblationName, options: AblationsOptions
) -> dict[str, UnderAblation]:
    kept = {ablation: of.circuit}
    everywhere = moved(of.circuit, study.task.every_segment) if ablation in _MARKING else of.circuit
    if set(everywhere.roles) != set(of.circuit.roles):
        kept[ablation + EVERY_SEGMENT] = everywhere
    title, circuits = f"ablations of circuit {name} in {of.model}: {ablation}", [*kept.values(), Circuit({})]
    by: Replaced = ablation.removeprefix("mean_by_")  # pyright: ignore[reportAssignmentType]
    *alone, nothing = await circuit_answers(study, of.model, title, circuits, by, _prompts(options))
    model = (await model_answers(study, of.model)).select(torch.arange(len(nothing.hits)))
    return {key: scores_of(answers, model, nothing) for key, answers in zip(kept, alone, strict=True)}


def scores_of(circuit: Evaluation, model: Evaluation, ablated: Evaluation) -> UnderAblation:
    """Each quantity of the three, on the same prompts, with both ratios."""

    def scores(quantity: Quantity) -> AblationScores:
        return result_of(AblationScores, ablation_scores(Ablated(circuit, model, ablated), quantity))

    return UnderAblation(len(model.hits), scores("hits"), scores("probability"), scores("logit_difference"))


def cost(sizes: Sizes, options: AblationsOptions) -> Iterator[Part]:
    """Resampled activations are each prompt's own; those of means are known from other sections."""
    evaluation = sizes.settings.prompts.evaluation
    n = sizes.n_searched * min(options.prompts or evaluation, evaluation)
    own = (2 if "resample" in options.ablations else 0) + (DISTINCT if "zero" in options.ablations else 0)
    runs = 2 * n * len(options.ablations)
    yield Part("ablations", runs, sizes.runs(runs, sizes.n_roles) + sizes.passes(own * n))


SECTION = Section("ablations", AblationsOptions, dict[str, dict[str, dict[str, UnderAblation]]], run, cost)
