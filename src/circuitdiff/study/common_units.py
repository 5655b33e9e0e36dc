"""Units of work that several sections ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from circuitdiff.circuit import Circuit
from circuitdiff.evaluation import By, Evaluation, Means, Replacement, evaluate_circuits, evaluate_model, slot_sums
from circuitdiff.study.context import StudyContext
from circuitdiff.study.host import LoadedModel
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.units import Needed, Unit

EVALUATION = PromptsOf("evaluation")

Replaced = By | Literal["resample", "zero"]  # by a mean of this kind, another prompt's activation, or nothing


async def model_answers(study: StudyContext, model: str) -> Evaluation:
    return await study.value(f"answers of {model}", model_alone, model, prompts=EVALUATION)


def model_alone(subject: LoadedModel, *, prompts: PromptsOf) -> Evaluation:
    return evaluate_model(subject.model, subject.pairs(prompts))


def means_of(model: str) -> Unit:
    """Means by slot and by kind over the prompts for means."""
    return Unit(f"means of {model}", slot_means, (model,), {"prompts": PromptsOf("means")})


def slot_means(subject: LoadedModel, *, prompts: PromptsOf) -> dict[By, Means]:
    sums, kinds = slot_sums(subject.model, subject.pairs(prompts)), get_args(By)
    return {by: sums.means(by, subject.model.dtype) for by in kinds}


async def circuit_answers(
    study: StudyContext,
    model: str,
    title: str,
    circuits: Sequence[Circuit],
    by: Replaced,
    prompts: PromptsOf = EVALUATION,
) -> list[Evaluation]:
    """What circuits alone answer. `by`: what all other heads are replaced with."""
    means = means_of(model) if by in get_args(By) else None
    return await study.value(
        title, circuits_alone, model, prompts=prompts, circuits=tuple(circuits), by=by, means=means
    )


def circuits_alone(
    subject: LoadedModel, *, prompts: PromptsOf, circuits: Sequence[Circuit], by: Replaced, means: Needed | None = None
) -> list[Evaluation]:
    replacement: Replacement = by if means is None else subject.means(means, by)  # pyright: ignore
    pairs, shared = subject.pairs(prompts), subject.shared
    return evaluate_circuits(subject.model, circuits, pairs, replacement, shared=shared, **subject.how)
