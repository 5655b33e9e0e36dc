"""Units of work that several sections ask for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from circuitdiff.circuit import Circuit
from circuitdiff.evaluation import By, Evaluation, Means, Replacement, evaluate_circuits, evaluate_model, slot_sums
from circuitdiff.methods.attention import AttentionToRoles, attention_to_roles
from circuitdiff.methods.attribution_patching import attribution
from circuitdiff.study.context import StudyContext
from circuitdiff.study.host import LoadedModel
from circuitdiff.study.plan import Part, Sizes
from circuitdiff.study.prompts import PromptsOf
from circuitdiff.study.units import Needed, Unit

EVALUATION, DISCOVERY = PromptsOf("evaluation"), PromptsOf("discovery")

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


async def attribution_scores(
    study: StudyContext,
    model: str,
    roles: tuple[str, ...],
    steps: int = 1,
    metric: str = "logit_difference",
    held: Circuit | None = None,
) -> dict[str, Float[Tensor, "layer head"]]:
    """By role, each head's mean attribution on the prompts of discovery, in the metric's unit; negative = it helps.

    `held`: heads that carry their slot means meanwhile.
    """
    title = f"attribution in {model}" + (f", {steps} steps" if steps > 1 else "") + (", circuit held" if held else "")
    more = {"held": held, "means": held and means_of(model)}
    given = {"prompts": DISCOVERY, "roles": roles, "steps": steps, "metric": metric}
    return await study.value(title, attributed, model, **given, **more)


def attributed(
    subject: LoadedModel,
    *,
    prompts: PromptsOf,
    roles: tuple[str, ...],
    steps: int,
    metric: str,
    held: Circuit | None,
    means: Needed | None,
) -> dict[str, Float[Tensor, "layer head"]]:
    constant = {} if means is None else {"held": held, "means": subject.means(means, "slot")}
    given = {"steps": steps, "metric": metric, **constant, **subject.how}
    return attribution(subject.model, subject.pairs(prompts), roles, **given).scores


def attribution_cost(what: str, sizes: Sizes, asked: Iterable[tuple[Collection[str], int, int]]) -> Part:
    """Roles, in how many models, in how many steps. Counterfactuals and clean prompts are run once; each step goes
    through the window of all roles and back.
    """
    forwards = flop = 0.0
    for roles, n_models, steps in asked:
        n, width = n_models * sizes.settings.prompts.discovery, max(map(sizes.width, roles))
        forwards += 2 * n * (1 + steps)
        flop += sizes.passes(2 * n) + sizes.runs(2 * n * steps, width)
    return Part(what, forwards, flop)


def attended(
    subject: LoadedModel, *, prompts: PromptsOf, circuit: Circuit, roles: tuple[str, ...]
) -> dict[str, AttentionToRoles]:
    """By group of the circuit, where its heads attend."""
    return attention_to_roles(subject.model, circuit, subject.pairs(prompts), roles, memory_gb=subject.memory_gb)


def circuits_alone(
    subject: LoadedModel, *, prompts: PromptsOf, circuits: Sequence[Circuit], by: Replaced, means: Needed | None = None
) -> list[Evaluation]:
    replacement: Replacement = by if means is None else subject.means(means, by)  # pyright: ignore
    pairs, shared = subject.pairs(prompts), subject.shared
    return evaluate_circuits(subject.model, circuits, pairs, replacement, shared=shared, **subject.how)
