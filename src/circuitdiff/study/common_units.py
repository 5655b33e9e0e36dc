"""Units of work that several sections ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from circuitdiff.cache.records import Record
from circuitdiff.circuit import Circuit
from circuitdiff.evaluation import By, Evaluation, evaluate_circuits, evaluate_model, slot_sums
from circuitdiff.study.context import StudyContext
from circuitdiff.study.host import LoadedModel
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.records import means_record, record_of, value_of
from circuitdiff.study.units import Needed, Unit

EVALUATION = PromptsOf("evaluation")

Replaced = By | Literal["resample", "zero"]  # by a mean of this kind, another prompt's activation, or nothing


async def model_answers(study: StudyContext, model: str, prompts: PromptsOf = EVALUATION) -> Evaluation:
    unit = Unit(f"answers of {model}", model_alone, (model,), {"prompts": prompts})
    return value_of(await study.record(unit))


def model_alone(subject: LoadedModel, *, prompts: PromptsOf) -> Record:
    return record_of(evaluate_model(subject.model, subject.pairs(prompts)))


def means_of(model: str) -> Unit:
    """Means by slot and by kind over the prompts for means."""
    return Unit(f"means of {model}", slot_means, (model,), {"prompts": PromptsOf("means")})


def slot_means(subject: LoadedModel, *, prompts: PromptsOf) -> Record:
    return means_record(slot_sums(subject.model, subject.pairs(prompts)), subject.model.dtype)


async def circuit_answers(
    study: StudyContext,
    model: str,
    title: str,
    circuits: Sequence[Circuit],
    by: Replaced,
    prompts: PromptsOf = EVALUATION,
) -> list[Evaluation]:
    """What circuits alone answer. `by`: what all other heads are replaced with."""
    arguments = {"prompts": prompts, "circuits": tuple(circuits), "by": by}
    needs = {"means": means_of(model)} if by in ("slot", "kind") else {}
    return value_of(await study.record(Unit(title, circuits_alone, (model,), arguments, needs)))


def circuits_alone(
    subject: LoadedModel,
    *,
    prompts: PromptsOf,
    circuits: tuple[Circuit, ...],
    by: Replaced,
    means: Needed | None = None,
) -> Record:
    answers = evaluate_circuits(
        subject.model,
        circuits,
        subject.pairs(prompts),
        by if means is None else subject.means(means, by),  # pyright: ignore[reportArgumentType]
        subject.executor,
        subject.progress,
        shared=subject.shared,
        memory_gb=subject.memory_gb,
    )
    return record_of(answers)
